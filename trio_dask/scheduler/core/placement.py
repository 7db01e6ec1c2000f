"""Which worker runs what: called once per batch of events, with every decision O(inputs of the task).

A ready task goes one of three ways:

- it has demands (certain workers, resources): to the queue of those demands;
- it has no inputs: to the common queue, ordered by priority, from which workers with room are filled;
- it has inputs: to the worker that holds most of them, at once if that one has room, else to that worker's backlog;
  but to an idle worker, if moving the inputs there takes less time than waiting.

So what is not started stays here, ordered by priority, and a wide graph does not flood the memory of the workers. A
worker has room while it holds fewer than two runs per slot, or less estimated work than `ahead_s` per slot: slots never
wait for the network, and little has to be taken back when the load shifts.

A task that misses only inputs that are being computed on one worker is assigned there ahead, so that the links of a
chain follow one another without a round trip.

Sources: data-aware placement by least bytes to move, with balancing left to a separate step, follows the scheduler
described in Böhm and Beránek, "Runtime vs Scheduler: Analyzing Dask's Overheads" (2020); keeping root tasks at the
scheduler follows dask's `worker-saturation`.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.protocol.wire_constants import PRIORITY_BITS
from trio_dask.scheduler.core.blobs import ship
from trio_dask.scheduler.core.estimates import (
    INPUT_BYTES,
    LEAST_S,
    SAMPLED_INPUTS,
    UNKNOWN_S,
    moving_s,
    sampled_inputs,
    waiting_s,
)
from trio_dask.scheduler.core.state import (
    DEFAULT_OPTIONS,
    PRUNE_QUEUES_FROM,
    Queue,
    State,
    Task,
    TaskOptions,
    Worker,
)
from trio_dask.scheduler.core.stuck_tasks import note_arrivals
from trio_dask.scheduler.core.task_states import InMemory, Processing, Waiting
from trio_dask.scheduler.core.task_transitions import CHAIN_FAN_IN, CHAIN_FAN_OUT, addresses_of, move
from trio_dask.scheduler.core.worker_states import HERE, Away

CHUNK: Final = 32
"""Consecutive root tasks that go to one worker, so that siblings meet there."""

SAMPLED_HOLDERS: Final = 4

ROUNDING: Final = 5e-10
"""Resources may be short of this much: 1.0 is enough for three times 0.1 and 0.7, whatever floats add up to."""

MOST_SMALL_VALUES: Final = 2**12
"""Small values that go with one run, so that it stays a message of moderate size; further ones are fetched."""

_PLAIN: Final[dict[str, object]] = {}


def place(state: State) -> None:
    """Decide on all ready tasks, and give work to every worker that has come to have room."""
    index = state.index
    if state.ready or state.chain_candidates:  # else each dirty worker is updated once it has been given work
        for worker in index.dirty:
            index.update(worker)
    fresh: dict[Queue, None] = {}
    common = state.queue.tasks
    while True:
        if state.ready:
            ready, state.ready = state.ready, []
            for task in ready:
                phase = task.phase
                if type(phase) is Waiting and not phase.missing:
                    _dispatch(state, task, fresh)
        if fresh:
            for queue in fresh:
                note_arrivals(state, queue)
                for worker in queue.eligible:
                    if worker in index.has_capacity:
                        index.mark_dirty(worker)
            _fill_slots(state, fresh)
            fresh.clear()
        if index.dirty:
            for worker in index.take_dirty():
                _refill(state, worker)
        if index.has_capacity and common:
            _hand_out_common(state)
        if state.chain_candidates:
            candidates, state.chain_candidates = state.chain_candidates, []
            for task in candidates:
                if type(task.phase) is Waiting:
                    _assign_ahead(state, task)
        if not (state.ready or state.chain_candidates or index.dirty):
            return


def queue_for(state: State, options: TaskOptions) -> Queue:
    """The queue of tasks with these demands."""
    if not options.workers and not options.resources:
        return state.queue
    identity = (options.workers, options.resources)
    queue = state.queues.get(identity)
    if queue is None:
        if len(state.queues) >= state.prune_queues_at:
            _drop_empty_queues(state)
        queue = state.queues[identity] = Queue(options)
        for worker in state.queue.eligible:  # all that are given work
            register_eligible(queue, worker)
    if options.workers and options.allow_other_workers and not queue.eligible:
        return queue_for(state, options._replace(workers=()))
    return queue


def _drop_empty_queues(state: State) -> None:
    """Drop queues without tasks; perhaps the workers that they name are long gone."""
    for identity, queue in list(state.queues.items()):
        if queue.tasks.first() is None:
            del state.queues[identity]
            for worker in queue.eligible:
                worker.queues.remove(queue)
    # The number may double until the next time, so that this costs little for each queue that is added.
    state.prune_queues_at = max(PRUNE_QUEUES_FROM, 2 * len(state.queues))


def register_eligible(queue: Queue, worker: Worker) -> None:
    """Make a worker eligible for a queue if it meets the demands."""
    options = queue.options
    if is_named(worker, options) and offers_resources(worker, options):
        queue.eligible[worker] = None
        worker.queues.append(queue)


def is_named(worker: Worker, options: TaskOptions) -> bool:
    """Whether tasks with these options name this worker, or none."""
    return not options.workers or worker.info.is_among(options.workers)


def offers_resources(worker: Worker, options: TaskOptions) -> bool:
    """Whether a worker offers as much as these options require."""
    return all(worker.info.resources.get(name, 0.0) >= amount for name, amount in options.resources)


def has_resources(worker: Worker, options: TaskOptions) -> bool:
    """Whether a worker that offers what is required has it left."""
    return all(worker.available[name] + ROUNDING >= amount for name, amount in options.resources)


def keep_off(state: State, task: Task, worker: Worker) -> None:
    """Have this task run on another worker, if any other may run it."""
    options = task.options
    others = tuple(other.info.name for other in queue_for(state, options).eligible if other is not worker)
    if others:
        lenient = options.allow_other_workers or not options.workers
        task.options = options._replace(workers=others, allow_other_workers=lenient)


def assign(state: State, task: Task, worker: Worker, missing: int) -> None:
    """Give a task to a worker."""
    state.last_run = run = RunId(state.last_run + 1)
    function = task.function
    assert function is not None
    expected_s = function.expected_s
    if expected_s is None:
        expected_s = UNKNOWN_S
        function.guesses[task] = None
    elif expected_s < LEAST_S:
        expected_s = LEAST_S
    worker.processing[run] = task
    worker.occupancy_s += expected_s
    if worker not in function.shipped:
        ship(state, function, worker)
    for blob in task.blobs:
        if worker not in blob.shipped:
            ship(state, blob, worker)
    options = task.options
    extra, priority = _PLAIN, task.priority
    if options is not DEFAULT_OPTIONS or task.history is not None:
        extra, priority = _extra(task), task.submission
    for name, amount in options.resources:
        worker.available[name] -= amount
    inputs: tuple[tuple[str, tuple[str, ...] | bytes], ...] = ()
    if task.dependencies:
        rows: list[tuple[str, tuple[str, ...] | bytes]] = []
        room = MOST_SMALL_VALUES
        for dependency in task.dependencies:
            phase = dependency.phase
            if type(phase) is InMemory and worker not in phase.holders:
                if phase.small_value is not None and room:
                    room -= 1
                    rows.append((dependency.key, phase.small_value))
                else:
                    rows.append((dependency.key, addresses_of(phase)))
            else:
                rows.append((dependency.key, ()))
        inputs = tuple(rows)
    move(state, task, Processing(run, worker, missing, expected_s), "assigned")
    wanted = bool(task.wanted) and max(task.wanted) > 0
    shared = bool(task.dependents) and len(state.workers) > 1
    state.send(worker.peer, Run(run, task.key, function.digest, task.call, inputs, priority, extra, wanted, shared))
    if task.dependents and len(task.dependents) <= CHAIN_FAN_OUT:
        for dependent in task.dependents:
            if type(dependent.phase) is Waiting and len(dependent.dependencies) <= CHAIN_FAN_IN:
                state.chain_candidates.append(dependent)


def _extra(task: Task) -> dict[str, object]:
    extra: dict[str, object] = {}
    if task.options.priority:
        extra["priority"] = -task.options.priority
    if task.options.time_limit_s is not None:
        extra["time_limit"] = task.options.time_limit_s
    if task.options.actor:
        extra["actor"] = True
    if task.options.output:
        extra["output"] = task.options.output
    if task.options.executor:
        extra["executor"] = task.options.executor
    if task.history is not None:
        extra["attempt"] = task.history.attempts
        if task.history.suspect:
            extra["announce"] = True
    return extra


def _dispatch(state: State, task: Task, fresh: dict[Queue, None]) -> None:
    options = task.options
    queue = state.queue if options is DEFAULT_OPTIONS else queue_for(state, options)
    if queue is not state.queue:
        if state.away and block_on_return(state, task):
            return
        queue.tasks.put(task)
        move(state, task, queue.phase, "queued")
        fresh[queue] = None
        return
    if task.dependencies:
        if state.away and block_on_return(state, task):
            return
        worker = _best_worker(state, task)
        if worker is not None:
            if state.index.has_room(worker):
                assign(state, task, worker, 0)
                state.index.update(worker)
            else:
                worker.backlog.put(task)
                move(state, task, queue.phase, "queued")
            return
    queue.tasks.put(task)
    move(state, task, queue.phase, "queued")


def block_on_return(state: State, task: Task) -> bool:
    """Have a ready task wait if only workers that are away hold one of its inputs; False if there is no such input."""
    for dependency in task.dependencies:
        phase = dependency.phase
        if isinstance(phase, InMemory) and all(type(holder.phase) is Away for holder in phase.holders):
            first = phase.holders[0].phase
            assert isinstance(first, Away)
            first.absence.blocked_tasks[task] = None
            return True
    return False


def _best_worker(state: State, task: Task) -> Worker | None:
    """The worker with most of the inputs, or an idle one if moving the inputs takes less time than waiting."""
    dependencies = task.dependencies
    if len(dependencies) > SAMPLED_INPUTS:
        dependencies = sampled_inputs(task)
    scores: dict[Worker, int] = {}
    for dependency in dependencies:
        phase = dependency.phase
        if type(phase) is InMemory:
            size = phase.nbytes + INPUT_BYTES
            holders = phase.holders
            if len(holders) > SAMPLED_HOLDERS:
                holders = holders[:SAMPLED_HOLDERS]
            for holder in holders:
                if holder.slots:
                    scores[holder] = scores.get(holder, 0) + size
    if not scores:
        return None
    best: Worker | None = None
    most = -1
    for worker, size in scores.items():
        if size > most or (size == most and best is not None and worker.occupancy_s < best.occupancy_s):
            best, most = worker, size
    assert best is not None
    if len(best.processing) < best.slots or not state.index.idle:
        return best
    idle = next(iter(state.index.idle))
    return idle if waiting_s(best) > moving_s(state, task, idle) else best


def _fill_slots(state: State, queues: dict[Queue, None]) -> None:
    """Give the idle ones among the workers of these queues as much as they have slots, before any gets runs ahead.

    Those that hold least come first.
    """
    idle = {worker: None for queue in queues for worker in queue.eligible if worker in state.index.idle}
    if len(idle) > 1:
        for worker in sorted(idle, key=_managed_bytes):
            _refill(state, worker, ahead=False)


def _managed_bytes(worker: Worker) -> int:
    return worker.managed_bytes


def _refill(state: State, worker: Worker, *, ahead: bool = True) -> None:
    """Give a worker with room what waits for it: its backlog and its queues by priority, then the common queue."""
    if worker.phase is not HERE:
        state.check_retirements_soon()  # what it ran or held may have been all that kept it
        return
    index = state.index
    while index.has_room(worker) and (ahead or len(worker.processing) < worker.slots):
        source = worker.backlog
        best = source.first()
        for queue in worker.queues:
            first = queue.tasks.first()
            if (
                first is not None
                and (best is None or first.priority < best.priority)
                and (not queue.options.resources or has_resources(worker, queue.options))
            ):
                source, best = queue.tasks, first
        if best is None:
            break
        common = state.queue.tasks.first()
        if common is not None and common.priority >> PRIORITY_BITS < best.priority >> PRIORITY_BITS:
            source, best = state.queue.tasks, common
        source.take()
        assign(state, best, worker, 0)
    index.update(worker)


def _hand_out_common(state: State) -> None:
    """Hand the common queue out to workers with capacity: idle ones first, a run of consecutive tasks to each.

    A few tasks are first spread over the free slots, none behind another one that may take longer than expected. Of
    many, a worker that has done its own takes those that wait elsewhere.
    """
    common = state.queue.tasks
    index = state.index
    if len(index.idle) > 1 and len(common) <= CHUNK:
        for worker in list(islice(index.idle, len(common))):
            while len(worker.processing) < worker.slots and index.has_room(worker):
                task = common.take()
                if task is None:
                    break
                assign(state, task, worker, 0)
            index.update_last(worker)
    while index.has_capacity and common:
        share = min(CHUNK, max(1, len(common) // len(index.has_capacity)))
        worker = next(iter(index.idle or index.has_capacity))
        while share and index.has_room(worker):
            task = common.take()
            if task is None:
                break
            assign(state, task, worker, 0)
            share -= 1
        index.update_last(worker)


def _assign_ahead(state: State, task: Task) -> None:
    """Assign a waiting task to the one worker where all its inputs are or are being computed, if there is one."""
    if task.options is not DEFAULT_OPTIONS and (task.options.workers or task.options.resources):
        return
    worker: Worker | None = None
    missing = 0
    for dependency in task.dependencies:
        phase = dependency.phase
        if type(phase) is Processing:
            if worker is None:
                worker = phase.worker
            elif worker is not phase.worker:
                return
            if phase.retraction is not None or (dependency.dependents and len(dependency.dependents) > CHAIN_FAN_OUT):
                return
            missing += 1
        elif type(phase) is not InMemory:
            return
    if worker is None or not missing or not worker.slots:
        return
    for dependency in task.dependencies:
        phase = dependency.phase
        if type(phase) is InMemory and worker not in phase.holders:
            return
    if len(worker.processing) < state.settings.chain_runs:
        assign(state, task, worker, missing)
        state.index.update(worker)
