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

from typing import Final

from trio_dask.ids import RunId, places_of
from trio_dask.protocol.messages import Run
from trio_dask.protocol.wire_constants import PRIORITY_BITS
from trio_dask.scheduler.core.blobs import ship
from trio_dask.scheduler.core.state import (
    MANY_QUEUES,
    NO_TERMS,
    Content,
    InMemory,
    Processing,
    Queue,
    State,
    Task,
    Terms,
    Waiting,
    Worker,
)
from trio_dask.scheduler.core.stuck_tasks import note_arrivals
from trio_dask.scheduler.core.task_transitions import CHAIN_FAN_IN, CHAIN_FAN_OUT, addresses_of, move

__all__ = ["admit", "assign", "has_room", "learn", "place", "queue_for", "settle"]

UNKNOWN_S: Final = 0.5
"""Expected duration of a call of a function that has not run yet."""

LEAST_S: Final = 10e-6
"""What even the shortest call costs a worker."""

SUBMISSION_MASK: Final = (1 << PRIORITY_BITS) - 1

SMOOTHING: Final = 0.3
"""Weight of the newest call in the expected duration of a function."""

CHUNK: Final = 32
"""Consecutive root tasks that go to one worker, so that siblings meet there."""

SAMPLED_INPUTS: Final = 64
"""Inputs looked at when the best worker is sought; of a wider task every so manyth."""

SAMPLED_HOLDERS: Final = 4

ROUNDING: Final = 5e-10
"""So much of a resource is not looked at: of 1.0, three times 0.1 and 0.7 can be given, whatever floats add up to."""

INPUT_BYTES: Final = 1000
"""What fetching an input costs beyond its size."""

_PLAIN: Final[dict[str, object]] = {}


def place(state: State) -> None:
    """Decide on all ready tasks, and give work to every worker that has come to have room."""
    if state.ready or state.ahead:  # else whoever is touched is settled when work for it has been looked for
        for worker in state.touched:
            settle(state, worker)
    fresh: dict[Queue, None] = {}
    common = state.queue.line
    while True:
        touched = state.touched
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
                    if worker in state.roomy:
                        touched[worker] = None
            fresh.clear()
        if touched:
            state.touched = {}
            for worker in touched:
                _refill(state, worker)
        if state.roomy and common:
            _drain_queue(state)
        if state.ahead:
            candidates, state.ahead = state.ahead, []
            for task in candidates:
                if type(task.phase) is Waiting:
                    _hand_ahead(state, task)
        if not (state.ready or state.ahead or state.touched):
            return


def has_room(state: State, worker: Worker) -> bool:
    """Whether a worker should be given more."""
    count = len(worker.processing)
    if count < 2 * worker.slots:
        return True
    settings = state.settings
    return count < settings.ahead_runs and worker.occupancy_s < settings.ahead_s * worker.slots


def settle(state: State, worker: Worker) -> None:
    """Bring the lists of idle, roomy and surplus workers up to date for one worker."""
    if worker.peer not in state.workers or worker.leaving or worker.returning:
        return
    count = len(worker.processing)
    slots = worker.slots
    if count < slots:
        if worker not in state.idle:
            state.idle[worker] = None
    else:
        state.idle.pop(worker, None)
    if count > slots:
        state.surplus[worker] = None
    else:
        state.surplus.pop(worker, None)
    if has_room(state, worker):
        if worker not in state.roomy:
            state.roomy[worker] = None
    else:
        state.roomy.pop(worker, None)


def queue_for(state: State, terms: Terms) -> Queue:
    """The queue of tasks with these demands."""
    if not terms.workers and not terms.resources:
        return state.queue
    identity = (terms.workers, terms.resources)
    queue = state.queues.get(identity)
    if queue is None:
        if len(state.queues) >= state.most_queues:
            _drop_empty_queues(state)
        queue = state.queues[identity] = Queue(terms)
        for worker in state.workers.values():
            admit(queue, worker)
    if terms.workers and terms.allow_other_workers and not queue.eligible:
        return queue_for(state, terms._replace(workers=()))
    return queue


def _drop_empty_queues(state: State) -> None:
    """Forget demands that nobody makes now: of workers that are long gone, perhaps."""
    for identity, queue in list(state.queues.items()):
        if queue.line.first() is None:
            del state.queues[identity]
            for worker in queue.eligible:
                worker.queues.remove(queue)
    # Twice as many may gather until the next time, so that looking costs little for each that is added.
    state.most_queues = max(MANY_QUEUES, 2 * len(state.queues))


def admit(queue: Queue, worker: Worker) -> None:
    """Note a worker at a queue, if it meets the demands."""
    terms = queue.terms
    info = worker.info
    if worker in queue.eligible:
        return  # it returned, and this queue was made before it had said what it brings
    if terms.workers:
        names = (info.name, info.host, *places_of(info.address))
        if not any(name in names for name in terms.workers):
            return
    if all(info.resources.get(name, 0.0) >= amount for name, amount in terms.resources):
        queue.eligible[worker] = None
        worker.queues.append(queue)


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
    for content in task.blobs:
        if worker not in content.shipped:
            ship(state, content, worker)
    terms = task.terms
    extra, priority = _PLAIN, task.priority
    if terms is not NO_TERMS or task.past is not None:
        extra, priority = _extra(task), priority & SUBMISSION_MASK
    for name, amount in terms.resources:
        worker.available[name] -= amount
    inputs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    if task.dependencies:
        rows: list[tuple[str, tuple[str, ...]]] = []
        for dependency in task.dependencies:
            phase = dependency.phase
            if type(phase) is InMemory and worker not in phase.holders:
                rows.append((dependency.key, addresses_of(phase)))
            else:
                rows.append((dependency.key, ()))
        inputs = tuple(rows)
    move(state, task, Processing(run, worker, missing, expected_s), "assigned")
    state.send(worker.peer, Run(run, task.key, function.digest, task.call, inputs, priority, extra))
    if task.dependents and len(task.dependents) <= CHAIN_FAN_OUT:
        for dependent in task.dependents:
            if type(dependent.phase) is Waiting and len(dependent.dependencies) <= CHAIN_FAN_IN:
                state.ahead.append(dependent)


def learn(state: State, function: Content, seconds: float) -> None:
    """A call has taken so long. The first one corrects what was guessed for those under way."""
    known_s = function.expected_s
    if known_s is not None:
        function.expected_s = known_s + SMOOTHING * (seconds - known_s)
        return
    function.expected_s = seconds
    expected_s = max(seconds, LEAST_S)
    for task in function.guesses:
        phase = task.phase
        if type(phase) is Processing and phase.expected_s == UNKNOWN_S:
            phase.worker.occupancy_s += expected_s - UNKNOWN_S
            phase.expected_s = expected_s
            state.touched[phase.worker] = None
    function.guesses.clear()


def _extra(task: Task) -> dict[str, object]:
    extra: dict[str, object] = {}
    if task.terms.priority:
        extra["priority"] = -task.terms.priority
    if task.terms.time_limit_s is not None:
        extra["time_limit"] = task.terms.time_limit_s
    if task.past is not None:
        extra["attempt"] = task.past.attempts
        if task.past.suspect:
            extra["announce"] = True
    return extra


def _dispatch(state: State, task: Task, fresh: dict[Queue, None]) -> None:
    terms = task.terms
    queue = state.queue if terms is NO_TERMS else queue_for(state, terms)
    if queue is not state.queue:
        if state.away and _park(state, task):
            return
        queue.line.put(task)
        move(state, task, queue.phase, "queued")
        fresh[queue] = None
        return
    if task.dependencies:
        if state.away and _park(state, task):
            return
        worker = _best_worker(state, task)
        if worker is not None:
            if has_room(state, worker):
                assign(state, task, worker, 0)
                settle(state, worker)
            else:
                worker.backlog.put(task)
                move(state, task, queue.phase, "queued")
            return
    queue.line.put(task)
    move(state, task, queue.phase, "queued")


def _park(state: State, task: Task) -> bool:
    """Have a ready task wait if an input of it is nowhere but at workers that are away; False if none is."""
    for dependency in task.dependencies:
        phase = dependency.phase
        if isinstance(phase, InMemory) and all(holder.away_until is not None for holder in phase.holders):
            phase.holders[0].parked[task] = None
            return True
    return False


def _best_worker(state: State, task: Task) -> Worker | None:
    """The worker with most of the inputs, or an idle one if moving the inputs takes less time than waiting."""
    dependencies = task.dependencies
    if len(dependencies) > SAMPLED_INPUTS:
        dependencies = dependencies[:: len(dependencies) // SAMPLED_INPUTS]
    scores: dict[Worker, int] = {}
    total = 0
    for dependency in dependencies:
        phase = dependency.phase
        if type(phase) is InMemory:
            size = phase.nbytes + INPUT_BYTES
            total += size
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
    if len(best.processing) < best.slots or not state.idle:
        return best
    idle = next(iter(state.idle))
    settings = state.settings
    moving_s = settings.latency_s + (total - scores.get(idle, 0)) / settings.bandwidth_bytes_per_s
    return idle if best.occupancy_s / best.slots > moving_s else best


def _refill(state: State, worker: Worker) -> None:
    """Give a worker with room what waits for it: its backlog and its queues by priority, then the common queue."""
    if worker.peer not in state.workers:
        return
    while has_room(state, worker):
        line = worker.backlog
        best = line.first()
        for queue in worker.queues:
            first = queue.line.first()
            if (
                first is not None
                and (best is None or first.priority < best.priority)
                and all(worker.available[name] + ROUNDING >= amount for name, amount in queue.terms.resources)
            ):
                line, best = queue.line, first
        if best is None:
            break
        common = state.queue.line.first()
        if common is not None and common.priority >> PRIORITY_BITS < best.priority >> PRIORITY_BITS:
            line, best = state.queue.line, common
        line.take()
        assign(state, best, worker, 0)
    settle(state, worker)


def _drain_queue(state: State) -> None:
    """Hand the common queue out to workers with room: idle ones first, a run of consecutive tasks to each."""
    line = state.queue.line
    roomy = state.roomy
    idle = state.idle
    while roomy and line:
        share = min(CHUNK, max(1, len(line) // len(roomy)))
        worker = next(iter(idle or roomy))
        while share and has_room(state, worker):
            task = line.take()
            if task is None:
                break
            assign(state, task, worker, 0)
            share -= 1
        settle(state, worker)
        if worker in roomy:
            roomy.move_to_end(worker)
        if worker in idle:
            idle.move_to_end(worker)


def _hand_ahead(state: State, task: Task) -> None:
    """Assign a waiting task to the one worker where all its inputs are or are being computed, if there is one."""
    if task.terms is not NO_TERMS and (task.terms.workers or task.terms.resources):
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
            if phase.retracting or (dependency.dependents and len(dependency.dependents) > CHAIN_FAN_OUT):
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
        settle(state, worker)
