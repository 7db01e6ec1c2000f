"""The exceptions that a failed key raises when its result is asked for."""

from __future__ import annotations

from trio_dask.client.core.key_state import TERMINAL, Ended, KeyState, NotSent
from trio_dask.client.forked_clients import engines_here
from trio_dask.errors import (
    ActorLost,
    ClusterError,
    DataLost,
    FutureCancelledError,
    FutureLost,
    KeyConflict,
    KilledWorker,
    RemoteError,
    TaskTimeout,
)
from trio_dask.ids import Key
from trio_dask.protocol.messages import Dropped, KeyFailed
from trio_dask.protocol.pickling import rebuild_exception


def exception_of(state: KeyState) -> BaseException | None:
    """A fresh exception for a key that failed, or None for one that did not.

    Fresh each time: an exception that is raised twice keeps the traceback of the first time.
    """
    failure = state.failure
    if failure is None:
        return None
    if isinstance(failure, KeyFailed):
        error = _of_task(failure)
        if failure.blamed != failure.key:
            error.add_note(f"needed for task {failure.key!r}")
        return error
    if isinstance(failure, NotSent):
        return failure.error.with_traceback(None)
    if isinstance(failure, Ended):
        if failure.lost:
            return FutureLost(f"{state.key!r} is lost with the connection to the scheduler: {failure.text}")
        return FutureCancelledError(f"{state.key!r} is lost: {failure.text}")
    return _of_dropped(failure)


def no_value(state: KeyState, reason: str) -> BaseException:
    """The exception for a missing value: the task's failure, or else why the value could not be fetched."""
    error = exception_of(state)
    return ClusterError(f"the result of {state.key!r} could not be fetched: {reason}") if error is None else error


def _of_task(failure: KeyFailed) -> BaseException:
    details = failure.details
    match failure.kind:
        case "exception":
            name, address = details.get("worker"), details.get("address")
            return rebuild_exception(
                failure.error,
                failure.text,
                key=failure.blamed,
                worker=f"{name} ({address})" if name and address and name != address else str(name or address or "?"),
                attempt=int(details.get("attempt", 1)),
            )
        case "killed":
            return KilledWorker(failure.blamed, tuple(str(line) for line in details.get("deaths", ())))
        case "conflict":
            return KeyConflict(failure.text)
        case "timeout":
            return TaskTimeout(failure.text)
        case "lost":
            return DataLost(failure.text)
        case "actor":
            return ActorLost(failure.text)
        case "refused":  # an input is not there: its future was cancelled or released, or never was one
            return FutureCancelledError(_of_another_cluster(failure.details.get("input")) or failure.text)
        case other:
            return RemoteError(other, failure.text)


def _of_another_cluster(key: Key | None) -> str:
    """What is wrong with an input that this scheduler does not know, if a client of another one has a future of it."""
    for engine in engines_here():
        state = engine.core.states.get(key or "")
        if state is not None and state.refs and state.status not in TERMINAL:
            name = getattr(engine.client, "name", "a client")
            return (
                f"it depends on {key!r}, a future of {name}, which belongs to the scheduler at {engine.address}: "
                "submit the call there, or give the result instead of the future"
            )
    return ""


def _of_dropped(dropped: Dropped) -> Exception:
    if dropped.reason == "lost":
        return DataLost(dropped.text or f"{dropped.key!r} is lost")
    return FutureCancelledError(dropped.text or f"{dropped.key!r} was cancelled")
