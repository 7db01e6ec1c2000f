"""One answer for one caller: replies of the scheduler, and async functions run for threads that block on them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import trio

from trio_dask.client.core.key_state import Ended
from trio_dask.client.wait_signals import Signal
from trio_dask.errors import FutureCancelledError, SchedulerLost

__all__ = ["CLOSED", "Answer", "LoopCall", "guarded"]

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")

CLOSED: Final = "the client is closed"


def guarded(callback: Callable[[], object]) -> None:
    """Call a user's callback; what it raises is logged and goes no further."""
    try:
        callback()
    except Exception:  # it must not take down whoever calls it
        _logger.exception("a callback of a future failed")


class Answer:
    """A reply that somebody waits for."""

    __slots__ = ("_ended", "_payload", "_signal")

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._payload: Any = None
        self._ended: Ended | None = None

    def __call__(self, payload: Any, ended: Ended | None) -> None:
        self._payload, self._ended = payload, ended
        self._signal.set()

    def unwrap(self) -> Any:
        if self._ended is not None:
            text = self._ended.text
            raise SchedulerLost(text) if self._ended.lost else FutureCancelledError(text)
        return self._payload


class LoopCall(Generic[_T]):
    """An async function on its way through the engine's loop, for somebody elsewhere who waits, or for nobody."""

    def __init__(self, function: Callable[..., Awaitable[_T]], args: tuple[Any, ...], signal: Signal | None) -> None:
        self.scope = trio.CancelScope()
        self._function = function
        self._args = args
        self._signal = signal
        self._result: list[_T] = []
        self._error: Exception | None = None

    async def run(self) -> None:
        """Run it; whatever becomes of it, whoever waits hears, and where nobody does, the log."""
        try:
            with self.scope:
                self._result.append(await self._function(*self._args))
        except Exception as error:  # it belongs to whoever waits
            self._error = error
            if self._signal is None:
                _logger.error("a background call of the client failed", exc_info=error)
        finally:
            if self._signal is not None:
                self._signal.set()

    def fail(self, error: Exception) -> None:
        """It will not run."""
        self._error = error
        if self._signal is not None:
            self._signal.set()

    def unwrap(self) -> _T:
        """What it returned; raises what it raised. To be asked once."""
        if self._result:
            return self._result[0]
        error, self._error = self._error, None
        try:
            raise RuntimeError(CLOSED) if error is None else error
        finally:
            del error  # as in `CapturedError`
