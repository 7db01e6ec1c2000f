"""Even out the bytes that workers hold: results move from those with the most to those with the fewest."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from heapq import heapify, heappop, heappush

from trio_dask.protocol.messages import Rebalance, Reply
from trio_dask.scheduler.core.copies import spread, takes_copies
from trio_dask.scheduler.core.copy_records import Order, Spread
from trio_dask.scheduler.core.pending_requests import CopiesMade, PendingRequest
from trio_dask.scheduler.core.retirement import select_or_all
from trio_dask.scheduler.core.state import Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory

NO_LIMIT = 2**31


def rebalance(state: State, client: Client, message: Rebalance) -> None:
    """Move results. The reply follows when the copies are there; the originals go once nothing needs them."""
    chosen = select_or_all(state, message.workers)
    if isinstance(chosen, str):
        state.send(client.peer, Reply(message.request, {"refused": chosen}))
        return
    tasks = [task for key in message.keys if (task := state.tasks.get(key)) is not None]
    moves = plan(state, [worker for worker in chosen if takes_copies(worker)], tasks if message.keys else None)
    goal = CopiesMade(len(moves))
    state.pending.add(PendingRequest(client.peer, message.request, goal))
    spread(state, [Spread(task, {target: None}, goal, NO_LIMIT, moved_from=source) for task, source, target in moves])


def plan(state: State, workers: Sequence[Worker], tasks: Collection[Task] | None = None) -> list[Order]:
    """Which of these results (None: all) move where, so that the workers' bytes become as equal as they can.

    The largest result of the worker with the most bytes goes to the worker with the fewest, if that makes the two more
    equal; else the next smaller one. A result that is being copied or moved already stays.
    """
    loads = [worker.managed_bytes for worker in workers]
    stacks = [_movable(state, worker, tasks if tasks is None else dict.fromkeys(tasks)) for worker in workers]
    fullest = [(-load, place) for place, load in enumerate(loads) if stacks[place]]
    emptiest = [(load, place) for place, load in enumerate(loads)]
    heapify(fullest)
    heapify(emptiest)
    moves: dict[Task, Order] = {}
    while fullest:
        load, source = heappop(fullest)
        if -load != loads[source]:
            continue  # the entry is older than the last move
        while emptiest[0][0] != loads[emptiest[0][1]]:
            place = heappop(emptiest)[1]
            heappush(emptiest, (loads[place], place))
        target = emptiest[0][1]
        gap = loads[source] - loads[target]
        if gap <= 0:
            break
        while stacks[source]:
            size, _, task = heappop(stacks[source])
            phase = task.phase
            assert isinstance(phase, InMemory)
            if task not in moves and workers[target] not in phase.holders and -2 * size <= gap:
                moves[task] = Order(task, workers[source], workers[target])
                loads[source] += size
                loads[target] -= size
                for place in (source, target):
                    heappush(fullest, (-loads[place], place))
                break
    return list(moves.values())


def _movable(state: State, worker: Worker, tasks: Container[Task] | None) -> list[tuple[int, int, Task]]:
    """A heap of the results that this worker may give away, with their negative sizes: the largest is the first."""
    movable: list[tuple[int, int, Task]] = []
    for place, task in enumerate(worker.holds):
        phase = task.phase
        if (
            isinstance(phase, InMemory)
            and phase.nbytes
            and (tasks is None or task in tasks)
            and not task.options.actor
            and task not in state.copies
            and (task, worker) not in state.surplus
        ):
            movable.append((-phase.nbytes, place, task))
    heapify(movable)
    return movable
