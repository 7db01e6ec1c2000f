"""A scheduler with nothing to do for long enough ends, if it was told to."""

from __future__ import annotations

from typing import Final

from trio_dask.scheduler.core.state import State, Stop
from trio_dask.scheduler.core.worker_transitions import absence_of

CHECKS: Final = 20
"""Number of checks within `idle_timeout_s`."""


def check_idle(state: State) -> None:
    """Ask for the end if nothing was computed, queued or asked for within `idle_timeout_s`; else schedule a check.

    Results that clients merely keep are no work, and neither are workers or clients that are merely connected.
    """
    limit_s = state.settings.idle_timeout_s
    run, submission, since = state.idle_mark
    if run != state.last_run or submission != state.last_submission or _is_busy(state):
        since = state.now
    state.idle_mark = (state.last_run, state.last_submission, since)
    if state.now - since >= limit_s:
        state.idle_at = float("inf")
        state.requests.append(Stop(f"no work for {limit_s:g} s (--idle-timeout)"))
    else:
        state.idle_at = min(since + limit_s, state.now + limit_s / CHECKS)


def _is_busy(state: State) -> bool:
    """Whether any task is on its way: each waiting task waits for one that is queued or processed."""
    workers = [*state.workers.values(), *state.away]
    queues = [queue.tasks for queue in (state.queue, *state.queues.values())] + [worker.backlog for worker in workers]
    waiting = bool(state.ready) or any(queue.first() is not None for queue in queues)
    return waiting or any(worker.processing or absence_of(worker).blocked_tasks for worker in workers)
