"""More copies of results, or fewer, as a client wants them; they spread as a tree."""

from __future__ import annotations

from heapq import nsmallest

from trio_dask.protocol.messages import Replicate, Reply
from trio_dask.scheduler.core.copies import spread, takes_copies
from trio_dask.scheduler.core.copy_records import Spread
from trio_dask.scheduler.core.pending_requests import CopiesMade, PendingRequest
from trio_dask.scheduler.core.retirement import select_or_all
from trio_dask.scheduler.core.state import Client, State, Worker
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.worker_states import HERE


def replicate(state: State, client: Client, message: Replicate) -> None:
    """Order the copies that are missing, and drop surplus ones. The reply follows when the copies are there.

    Each worker that has a result gives it to `fan_out` others at once, and these do the same as soon as they have it.
    """
    chosen = select_or_all(state, message.workers)
    if isinstance(chosen, str):
        state.send(client.peer, Reply(message.request, {"refused": chosen}))
        return
    takers = [worker for worker in chosen if takes_copies(worker)]
    number = min(message.number, len(chosen)) or len(chosen)
    loads = {worker: worker.managed_bytes for worker in chosen}
    goal = CopiesMade(0)
    spreads: list[Spread] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None or task.options.actor:
            continue
        phase = task.phase
        if not isinstance(phase, InMemory):
            goal.missing[key] = None  # it was lost a moment ago
            continue
        there = [worker for worker in phase.holders if worker in loads]
        phase.replicas = max(number, phase.replicas) if message.stay else number
        if message.number and not message.stay:
            # Those that leave drop it first, then the fullest.
            kept = nsmallest(number, there, key=lambda worker: (worker.phase is not HERE, loads[worker]))
            state.moved += [(task, worker, phase) for worker in there if worker not in kept]
        if len(there) < number:
            others = [worker for worker in takers if worker not in phase.holders]
            targets: list[Worker] = nsmallest(number - len(there), others, key=loads.__getitem__)
            if len(there) + len(targets) < number:
                goal.missing[key] = None
            for target in targets:
                loads[target] += phase.nbytes
            if targets:
                spreads.append(Spread(task, dict.fromkeys(targets), goal, max(1, message.fan_out), takers))
    goal.open = len(spreads)
    state.pending.add(PendingRequest(client.peer, message.request, goal))
    spread(state, spreads)
