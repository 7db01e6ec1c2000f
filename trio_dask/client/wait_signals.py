"""Waiting for keys and replies, in a plain thread or a Trio task of any loop; what arrives wakes it directly."""

from __future__ import annotations

import datetime
import sys
import threading
from typing import Any, Protocol

import trio

from trio_dask.client.core.key_state import Ended, Frames, KeyState
from trio_dask.errors import FutureCancelledError, SchedulerLost, UsageError
from trio_dask.parsing import parse_timedelta
from trio_dask.protocol.wire_constants import TOO_LONG


def as_seconds(timeout: float | str | datetime.timedelta | None) -> float | None:
    """A timeout as users write it (`5`, `"5s"`, `timedelta(seconds=5)`) in seconds; None means none.

    Raises `UsageError` for what is no length of time.
    """
    if timeout is None or isinstance(timeout, float):
        return timeout
    if isinstance(timeout, str):
        return parse_timedelta(timeout)
    if isinstance(timeout, datetime.timedelta):
        return timeout.total_seconds()
    try:
        return float(timeout)
    except (TypeError, ValueError, OverflowError):
        text = f'a length of time is a number of seconds or a text such as "5s", not {timeout!r:.60}'
        raise UsageError(text) from None


def within(timeout: float | str | datetime.timedelta | None) -> str:
    """What a message says of a timeout that has passed."""
    return f"within {as_seconds(timeout) or 0.0:g} s"


def limit(timeout: float | str | datetime.timedelta | None) -> trio.CancelScope:
    """A scope that is cancelled after this long. Raises `UsageError` for a text that is no length of time."""
    seconds = as_seconds(timeout)
    return trio.CancelScope(deadline=float("inf") if seconds is None else trio.current_time() + max(seconds, 0.0))


def refuse_in_event_loop(what: str, instead: str = "`async with AsyncClient(...)`") -> None:
    """Raise `RuntimeError` if this thread runs an event loop, which a blocking call would stall.

    `instead` is what to use under Trio.

    The loop of a notebook's kernel is allowed: cells run inside it, one after the other, and may block.
    """
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(f"{what} blocks, which would stall the Trio loop of this thread; use {instead}")
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None and not in_notebook():
        raise RuntimeError(
            f"{what} blocks, which would stall the asyncio loop of this thread; "
            "call it in a thread: `await asyncio.to_thread(...)`"
        )


def require_trio(what: str, instead: str = "Client") -> None:
    """Raise `RuntimeError` unless this thread runs Trio."""
    if trio.lowlevel.in_trio_run():
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        where = "a notebook" if in_notebook() else "a thread (`await asyncio.to_thread(...)`)"
        raise RuntimeError(f"{what} needs Trio, but this thread runs asyncio; use {instead} in {where}")
    raise RuntimeError(f"{what} needs Trio; start the program with `trio.run(main)`, or use {instead}")


def in_notebook() -> bool:
    """Whether this program is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Signal(Protocol):
    """What wakes one waiter."""

    is_set: bool

    def set(self) -> None:
        """Wake it. Cheap, from any thread, any number of times."""
        ...


class ThreadSignal:
    """Stops a thread until it is set."""

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            self._lock.release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return True once it is set, or False after this many seconds. Ctrl-C interrupts it."""
        if self.is_set:
            return True
        if timeout_s is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))


class TrioSignal:
    """Parks a Trio task until it is set: directly from the same thread, through its loop from another."""

    __slots__ = ("_task", "_thread", "_token", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._task: trio.lowlevel.Task | None = None
        try:
            self._token = trio.lowlevel.current_trio_token()
        except RuntimeError:
            require_trio("awaiting this", "the blocking calls of Client")
            raise
        self._thread = threading.get_ident()

    def set(self) -> None:
        if self.is_set:
            return
        self.is_set = True
        if threading.get_ident() == self._thread:
            self._resume()
        else:
            try:
                self._token.run_sync_soon(self._resume)
            except trio.RunFinishedError:
                pass  # the task has ended with its loop

    async def wait(self) -> None:
        """Return once it is set."""
        if self.is_set:
            await trio.lowlevel.checkpoint()
            return
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _resume(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class SettleWaiter:
    """A waiter for several keys: sets its signal when `enough` of them have settled. `left` have not."""

    __slots__ = ("_left_enough", "left", "signal")

    def __init__(self, count: int, enough: int) -> None:
        self.signal: Signal
        self.left = count
        self._left_enough = count - enough

    def __call__(self, state: KeyState) -> None:
        self.left -= 1
        if self.left == self._left_enough:
            self.signal.set()


class ValueReader:
    """A reader of several keys: sets its signal when each has given its value or failed. `left` have done neither.

    With `stops_early` the first key that failed sets it.
    """

    __slots__ = ("_stops_early", "failed", "frames", "left", "reasons", "signal")

    def __init__(self, count: int, *, stops_early: bool) -> None:
        self.signal: Signal
        self.left = count
        self._stops_early = stops_early
        self.frames: dict[KeyState, Frames] = {}
        self.reasons: dict[KeyState, str] = {}
        self.failed: KeyState | None = None
        """The first key that failed."""

    def __call__(self, state: KeyState, frames: Frames | None, reason: str) -> None:
        self.left -= 1
        if frames is not None:
            self.frames[state] = frames
        else:
            self.reasons[state] = reason
            if self.failed is None:
                self.failed = state
                if self._stops_early:
                    self.signal.set()
        if not self.left:
            self.signal.set()


class PendingReply:
    """A reply of the scheduler that a caller waits for."""

    __slots__ = ("_ended", "_payload", "_signal")

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._payload: Any = None
        self._ended: Ended | None = None

    def __call__(self, payload: Any, ended: Ended | None) -> None:
        self._payload, self._ended = payload, ended
        self._signal.set()

    def unwrap(self) -> Any:
        """What the scheduler said.

        Raises an error if the session ended before, and `UsageError` if the answer is longer than a message can be.
        """
        if self._ended is not None:
            text = self._ended.text
            raise SchedulerLost(text) if self._ended.lost else FutureCancelledError(text)
        match self._payload:
            case (str(kind), str(text)) if kind == TOO_LONG:
                raise UsageError(text)
            case answer:
                return answer
