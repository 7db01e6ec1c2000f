"""How long things take: calls, the work that a worker has, and bringing the inputs of a task to another worker.

Placement and stealing decide by these figures alone. A task moves to an idle worker if its inputs are there sooner than
the worker that it would wait for comes to it.

Three figures are measured: the duration of a function's calls, for how long a call has been running already, and the
speed at which workers fetch. Until then, they are guessed.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from trio_dask.scheduler.core.state import State, StoredBlob, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory, Processing

UNKNOWN_S: Final = 0.5
"""Expected duration of a call of a function that has not run yet."""

LEAST_S: Final = 10e-6
"""What even the shortest call costs a worker."""

SMOOTHING: Final = 0.3
"""Weight of the newest call in the expected duration of a function, and of the newest report in the speed of links."""

SAMPLED_INPUTS: Final = 64
"""Inputs examined when the best worker is chosen; of a wider task, as many at even distances."""

FALL: Final = 0.5
"""The same for a call that was shorter than expected: the first one of all often has to import something."""

FETCH_S: Final = 0.003
"""What it takes to ask another worker for inputs, however small they are."""

INPUT_BYTES: Final = 5000
"""What each input costs beyond its size, as bytes: some 50 µs."""

EXAMINED_RUNS: Final = 16
"""Runs of one worker, beyond its slots, that are examined to find the running ones."""


def update_duration(state: State, function: StoredBlob, seconds: float) -> None:
    """A call has finished. The first one of a function corrects the guesses for those under way."""
    known_s = function.expected_s
    if known_s is not None:
        function.expected_s = known_s + (FALL if seconds < known_s else SMOOTHING) * (seconds - known_s)
        return
    function.expected_s = seconds
    expected_s = max(seconds, LEAST_S)
    for task in function.guesses:
        phase = task.phase
        if type(phase) is Processing and phase.expected_s == UNKNOWN_S:
            phase.worker.occupancy_s += expected_s - UNKNOWN_S
            phase.expected_s = expected_s
            state.index.mark_dirty(phase.worker)
    function.guesses.clear()


def correct_overruns(state: State, worker: Worker) -> None:
    """A call that has been running for longer than expected takes as long again, as far as anybody knows."""
    for task in islice(worker.processing.values(), worker.slots + EXAMINED_RUNS):
        phase = task.phase
        if type(phase) is Processing and phase.started_at is not None:
            running_s = state.now - phase.started_at
            if running_s > phase.expected_s:
                worker.occupancy_s += 2 * running_s - phase.expected_s
                phase.expected_s = 2 * running_s


def note_bandwidth(state: State, measured: Any) -> None:
    """A worker has told how many bytes per second it fetches. What is no such number is ignored."""
    if isinstance(measured, int | float) and 0 < measured < float("inf"):
        state.bandwidth_bytes_per_s += SMOOTHING * (measured - state.bandwidth_bytes_per_s)


def expected_s(task: Task) -> float:
    """How long a call of a task takes."""
    known_s = None if task.function is None else task.function.expected_s
    return UNKNOWN_S if known_s is None else max(known_s, LEAST_S)


def waiting_s(worker: Worker) -> float:
    """How long a worker takes for all that it has, and for the tasks that wait for it here."""
    if not worker.slots:
        return float("inf")
    first = worker.backlog.first()
    waiting = 0.0 if first is None else len(worker.backlog) * expected_s(first)
    return (worker.occupancy_s + waiting) / worker.slots


def moving_s(state: State, task: Task, worker: Worker) -> float:
    """How long it takes until a worker has the inputs of a task that it lacks."""
    dependencies = sampled_inputs(task)
    nbytes = 0
    for dependency in dependencies:
        phase = dependency.phase
        if type(phase) is InMemory and worker not in phase.holders:
            nbytes += phase.nbytes + INPUT_BYTES
    latency_s = state.settings.latency_s
    if not nbytes:
        return latency_s
    nbytes = nbytes * len(task.dependencies) // len(dependencies)
    return latency_s + FETCH_S + nbytes / state.bandwidth_bytes_per_s


def sampled_inputs(task: Task) -> tuple[Task, ...]:
    """The inputs of a task; of very many, some."""
    dependencies = task.dependencies
    if len(dependencies) > SAMPLED_INPUTS:
        return dependencies[:: len(dependencies) // SAMPLED_INPUTS]
    return dependencies
