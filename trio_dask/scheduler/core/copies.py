"""Copies of results: ordered, awaited, and dropped where they are surplus. All data is moved by this.

`rebalancing`, `replication`, `retirement` and the memory manager decide what is to be where. What keeps values
safe meanwhile stands here alone:

- A copy counts once its worker has said that it has it. An order names the result, not the key: it is withdrawn with
  the result (`withdraw_copies`), and an answer that crosses the withdrawal quotes a number that is not known.
- A replica is dropped only while a worker that stays has another one, and only while neither a run that has not
  started nor a copy may be reading it. Otherwise it stays among `State.surplus`, and is looked at again later.

So a worker that dies, or a result that is released, at any moment leaves one replica too many, never one too few.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from trio_dask.ids import Key
from trio_dask.protocol.messages import Acquire, Free, NotAcquired, Replicas
from trio_dask.scheduler.core.copy_records import Copy, Order, Spread, end_spread
from trio_dask.scheduler.core.state import State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory, Processing
from trio_dask.scheduler.core.task_transitions import add_replica, remove_replica
from trio_dask.scheduler.core.worker_states import HERE, Away, Returning

SURPLUS_GAP_S: Final = 0.01
"""The least time between two looks at what is surplus, since each reads the tasks that may need it."""

READ_AT_ONCE: Final = 20_000
"""Tasks that one look reads: about 2 ms."""

MOVED: Final = "other workers have it"
"""Why a surplus replica is dropped."""

# ------------------------------------------------------------------------------------------------- ordering


def order(state: State, orders: Iterable[Order]) -> None:
    """Have workers copy results. None of these workers has the result already, or was told to copy it."""
    rows: dict[Worker, list[tuple[Key, tuple[str, ...]]]] = {}
    numbers: dict[Worker, int] = {}
    for task, source, target in orders:
        phase = task.phase
        assert isinstance(phase, InMemory)
        if target not in numbers:
            state.last_order += 1
            numbers[target] = state.last_order
        state.copies.setdefault(task, {})[target] = Copy(numbers[target], source)
        others = [holder.info.address for holder in phase.holders if holder is not source and holder.phase.has_session]
        rows.setdefault(target, []).append((task.key, (source.info.address, *others)))
    for target, keys in rows.items():
        state.send(target.peer, Acquire(tuple(keys), numbers[target]))


def spread(state: State, spreads: Iterable[Spread]) -> None:
    """Begin these; their goal counts them already."""
    orders: list[Order] = []
    for one in spreads:
        state.spreads.setdefault(one.task, []).append(one)
        orders += _next_orders(state, one.task)
    order(state, orders)


def takes_copies(worker: Worker) -> bool:
    """Whether results may be put there: it stays, and is not short of memory."""
    return worker.phase is HERE and worker.capacity > 0


def _next_orders(state: State, task: Task) -> list[Order]:
    """End the spreads of a result that are over, and order what may be ordered now for the others."""
    phase = task.phase
    assert isinstance(phase, InMemory)
    under_way = state.copies.get(task, {})
    serving = Counter(copy.source for copy in under_way.values())
    sources = [holder for holder in phase.holders if holder.phase.has_session]
    orders: dict[Worker, Order] = {}
    going_on: list[Spread] = []
    for one in state.spreads.pop(task, ()):
        if not sources:
            one.patience = 0
        targets = deque(one.targets)
        while targets:
            target = targets.popleft()
            if target in phase.holders:
                del one.targets[target]
            elif not sources or target.phase is not HERE:
                targets += _miss(one, target)
            elif target not in under_way and target not in orders:
                source = min(sources, key=serving.__getitem__)
                if serving[source] < one.fan_out:
                    serving[source] += 1
                    orders[target] = Order(task, source, target)
        if one.targets:
            going_on.append(one)
        else:
            _end(state, one)
    if going_on:
        state.spreads[task] = going_on
    return list(orders.values())


def _end(state: State, one: Spread) -> None:
    end_spread(state, one)
    phase = one.task.phase
    if one.moved_from is not None and isinstance(phase, InMemory):
        state.moved.append((one.task, one.moved_from, phase))


def _miss(one: Spread, target: Worker) -> tuple[Worker, ...]:
    """A target is lost, or could not copy the result; returns the one that is to try it now, if there is one."""
    del one.targets[target]
    phase = one.task.phase
    assert isinstance(phase, InMemory)
    one.patience -= 1
    if one.patience >= 0:
        for other in (*[spare for spare in one.spares if spare is not target], target):
            if takes_copies(other) and other not in phase.holders and other not in one.targets:
                one.targets[other] = None
                return (other,)
    if one.moved_from is None or one.patience < 0:
        one.goal.missing[one.task.key] = None
    one.moved_from = None
    return ()


# ------------------------------------------------------------------------------------------------- what comes of it


def copied(state: State, worker: Worker, message: Replicas) -> None:
    """A worker has results that it was to copy, or that it needed for runs."""
    unknown: list[Key] = []
    orders: list[Order] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if message.order and not _is_awaited(state, task, worker, message.order):
            continue  # it was withdrawn, and the worker was told to drop it
        if task is None or not isinstance(task.phase, InMemory):
            unknown.append(key)
            continue
        add_replica(task, task.phase, worker)
        _forget(state, task, worker)
        if state.manager is not None:
            state.manager.note(task, state.now)
        if task in state.spreads:
            orders += _next_orders(state, task)
    if unknown:
        state.send(worker.peer, Free(tuple(unknown)))
    order(state, orders)
    state.check_retirements_soon()


def not_acquired(state: State, worker: Worker, message: NotAcquired) -> None:
    """A worker could not copy these results."""
    tasks = [state.tasks.get(key) for key in message.keys]
    _failed(state, worker, [task for task in tasks if task and _is_awaited(state, task, worker, message.order)])


def target_left(state: State, worker: Worker) -> None:
    """This worker has no session any more; if it comes back, it has forgotten what it was to copy."""
    _failed(state, worker, [task for task, under_way in state.copies.items() if worker in under_way])


def _failed(state: State, worker: Worker, tasks: list[Task]) -> None:
    orders: list[Order] = []
    for task in tasks:
        _forget(state, task, worker)
        for one in state.spreads.get(task, ()):
            if worker in one.targets:
                _miss(one, worker)
        if task in state.spreads:
            orders += _next_orders(state, task)
    order(state, orders)
    state.check_retirements_soon()


def _is_awaited(state: State, task: Task | None, worker: Worker, number: int) -> bool:
    """Whether this worker is to copy the result, by the order of this number (0: by any)."""
    copy = None if task is None else state.copies.get(task, {}).get(worker)
    return copy is not None and number in (0, copy.order)


def _forget(state: State, task: Task, worker: Worker) -> None:
    under_way = state.copies.get(task)
    if under_way is not None and under_way.pop(worker, None) is not None and not under_way:
        del state.copies[task]


# ------------------------------------------------------------------------------------------------- dropping


def drop_surplus(state: State) -> None:
    """Drop the surplus replicas that nothing needs any more. Call it after each batch of events."""
    fresh, state.moved = state.moved, []
    for task, worker, phase in fresh:
        _drop_or_keep(state, task, worker, phase)
    due_at = state.surplus_read_at + SURPLUS_GAP_S
    if state.now < due_at:
        state.surplus_at = due_at if state.surplus else float("inf")
        return
    state.surplus_read_at, state.surplus_at = state.now, float("inf")
    read = 0
    for (task, worker), phase in list(state.surplus.items()):
        if read > READ_AT_ONCE:
            state.surplus_at = state.now + SURPLUS_GAP_S
            return
        read += 1 + len(task.dependents or ())
        del state.surplus[task, worker]
        _drop_or_keep(state, task, worker, phase)


def _drop_or_keep(state: State, task: Task, worker: Worker, phase: InMemory) -> None:
    if task.phase is not phase or not has_spare(phase, worker):
        return  # it was released, or this is the last copy by now
    if is_needed_at(state, task, phase, worker):
        state.surplus[task, worker] = phase  # behind the others, which have their turn first
    else:
        drop(state, task, worker, MOVED)


def has_spare(phase: InMemory, worker: Worker) -> bool:
    """Whether this worker has a replica, and another one, which stays, has one as well."""
    return worker in phase.holders and any(holder.phase is HERE for holder in phase.holders if holder is not worker)


def is_needed_at(state: State, task: Task, phase: InMemory, worker: Worker) -> bool:
    """Whether a run that has not started, or a copy, may be reading this replica."""
    if task in state.copies or isinstance(worker.phase, Away | Returning):
        return True
    if not task.waiters:
        return False
    for dependent in task.dependents or ():
        below = dependent.phase
        if (
            type(below) is Processing
            and below.started_at is None
            and (below.worker is worker or below.worker not in phase.holders)
        ):
            return True
    return False


def drop(state: State, task: Task, worker: Worker, why: str) -> None:
    """Have a worker drop a replica that it need not have."""
    state.free(worker.peer, task.key)
    remove_replica(state, task, worker, why)
