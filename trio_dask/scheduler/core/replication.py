"""More copies of results, or fewer, as a client wants them."""

from __future__ import annotations

from trio_dask.ids import Key
from trio_dask.protocol.messages import Acquire, Replicate
from trio_dask.scheduler.core.pending_requests import PendingRequest, ReplicasMade
from trio_dask.scheduler.core.state import Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.task_transitions import remove_replica


def replicate(state: State, client: Client, message: Replicate) -> None:
    """Drop the surplus copies, and order those that are missing. The reply follows when they are there."""
    for key, address in message.surplus:
        task, worker = state.tasks.get(key), state.addresses.get(address)
        if task is None or worker is None or not isinstance(task.phase, InMemory):
            continue
        if (
            worker in task.phase.holders
            and not task.options.actor
            and any(holder.phase.has_session for holder in task.phase.holders if holder is not worker)
        ):
            state.free(worker.peer, key)
            remove_replica(state, task, worker, f"client {client.name} wants fewer copies")
    orders: dict[Worker, list[tuple[Key, tuple[str, ...]]]] = {}
    expected: dict[tuple[Task, Worker], None] = {}
    for key, address in message.copies:
        task, worker = state.tasks.get(key), state.addresses.get(address)
        if task is None or worker is None or not isinstance(task.phase, InMemory) or not worker.phase.has_session:
            continue
        if worker not in task.phase.holders and not task.options.actor:
            holders = tuple([holder.info.address for holder in task.phase.holders if holder.phase.has_session])
            orders.setdefault(worker, []).append((key, holders))
            expected[task, worker] = None
    state.pending.add(PendingRequest(client.peer, message.request, ReplicasMade(expected, [])))
    for worker, rows in orders.items():
        state.send(worker.peer, Acquire(tuple(rows)))
