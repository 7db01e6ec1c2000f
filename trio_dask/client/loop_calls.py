"""Calls from other threads into the Trio loop of an engine, and their outcomes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

from trio_dask.client.shared_state import CLOSED, Closed, SharedState
from trio_dask.client.wait_signals import Signal, ThreadSignal, TrioSignal

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


def call_logging_errors(callback: Callable[[], object]) -> None:
    """Call a user's callback; what it raises is logged and goes no further."""
    try:
        callback()
    except Exception:  # an error of the user's callback must not end our thread or loop
        _logger.exception("a callback of a future failed")


class _Call(Generic[_T]):
    """An async function that runs in the loop, for a caller in another thread or in the background."""

    def __init__(self, function: Callable[..., Awaitable[_T]], args: tuple[Any, ...], signal: Signal | None) -> None:
        self.scope = trio.CancelScope()
        self._function = function
        self._args = args
        self._signal = signal
        self._result: list[_T] = []
        self._error: Exception | None = None

    async def run(self) -> None:
        """Run it, and wake the caller; an error that has no caller is logged."""
        try:
            with self.scope:
                self._result.append(await self._function(*self._args))
        except Exception as error:  # it belongs to the caller
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
        """What it returned; raises what it raised. To be called once."""
        if self._result:
            return self._result[0]
        error, self._error = self._error, None
        try:
            raise RuntimeError(CLOSED) if error is None else error
        finally:
            del error  # its traceback holds this frame: the two would keep each other, and the caller's variables


class LoopCalls:
    """Calls into one loop. They outlive lost connections; early ones wait for the first connection."""

    def __init__(self, shared: SharedState) -> None:
        self.token: trio.lowlevel.TrioToken | None = None
        self.thread = 0
        """The thread that runs the loop."""
        self._shared = shared
        self.nursery: trio.Nursery | None = None
        """For the loop's own thread, from the first connection until `end`."""
        self._early: list[_Call[Any]] = []
        """Calls that wait for the first connection."""
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def attach(self) -> None:
        """Belong to the loop that runs here: from now on calls can be made."""
        self.thread = threading.get_ident()
        self.token = trio.lowlevel.current_trio_token()

    def detach(self) -> None:
        """Belong to no loop: this is a forked child, and the loop is its parent's."""
        self.thread, self.token = 0, None

    async def host(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the calls, until `end`."""
        try:
            with self._scope:
                async with trio.open_nursery() as self.nursery:
                    early, self._early = self._early, []
                    for call in early:
                        self.nursery.start_soon(call.run)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self.nursery = None
            self._ended.set()

    async def end(self) -> None:
        """Cancel the calls that run, and return once they have ended."""
        self._scope.cancel()
        await self._ended.wait()

    def fail_early(self, error: Exception) -> None:
        """There will be no connection for the calls that wait for the first one."""
        early, self._early = self._early, []
        for call in early:
            call.fail(error)

    def call(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts, timeout_s: float | None = None) -> _T:
        """Run an async function in the loop and block for its outcome; an interrupt cancels it there.

        Raises `TimeoutError` when the time is up, and what the function raises.
        """
        self._shared.check_open()
        signal = ThreadSignal()
        call = _Call(function, args, signal)
        done = False
        try:
            self._start_soon(call)
            done = signal.wait(timeout_s)
        finally:
            if not done:
                self.run_soon(call.scope.cancel)
        if not done:
            raise TimeoutError(f"not done within {timeout_s:g} s")
        return call.unwrap()

    async def call_async(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """Run an async function in the loop, perhaps in another thread; cancelling this cancels it there."""
        if threading.get_ident() == self.thread:
            return await function(*args)
        self._shared.check_open()
        signal = TrioSignal()
        call = _Call(function, args, signal)
        try:
            self._start_soon(call)
            await signal.wait()
        except BaseException:  # cancelled here, so it is cancelled in the loop too
            self.run_soon(call.scope.cancel)
            raise
        return call.unwrap()

    def start(self, function: Callable[[*_Ts], Awaitable[object]], *args: *_Ts) -> None:
        """Run an async function in the loop; what it raises is logged."""
        self._shared.check_open()
        self._start_soon(_Call(function, args, None))

    def run_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> bool:
        """Call this in the loop; what it raises is logged. False if the loop has ended."""
        if self.token is None:
            return False
        try:
            self.token.run_sync_soon(call_logging_errors, partial(callback, *args))
        except trio.RunFinishedError:
            return False
        return True

    def _start_soon(self, call: _Call[Any]) -> None:
        if not self.run_soon(self._start_call, call):
            raise RuntimeError(CLOSED)

    def _start_call(self, call: _Call[Any]) -> None:
        phase = self._shared.phase
        if self.nursery is not None:
            self.nursery.start_soon(call.run)
        elif isinstance(phase, Closed):
            call.fail(phase.error())
        else:
            self._early.append(call)
