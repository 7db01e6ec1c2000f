"""asyncio's loop in one thread, for a library that needs it; Trio tasks await what runs there.

Trio task ── run(function) ─► asyncio task          awaited with `wait_task_rescheduled`
          ── cancelled ─────► task.cancel()         and its end is awaited, for `CANCEL_S` at most
          ◄─ result or error ─
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, cast

import outcome
import trio

P = ParamSpec("P")
R = TypeVar("R")

CANCEL_S = 2.0
"""A cancelled call has this long to clean up; then its Trio task goes on without it."""
CLOSE_S = 2.0

log = logging.getLogger("trio_dask.ssh")


class Bridge:
    """A running loop of asyncio, inside the block of `open_bridge`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def run(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await this function in asyncio's loop. Cancelled, cancel it there, and wait until it has ended."""
        call = _Call(self._loop, partial(function, *args, **kwargs))
        self.post(call.start)
        return cast("R", await trio.lowlevel.wait_task_rescheduled(call.cancel))

    def post(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function in asyncio's loop, soon; once the loop has ended, do nothing."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(partial(function, *args, **kwargs))


class _Call(Generic[R]):
    """One call, from the Trio task that waits for it. Methods with `_there` run in asyncio's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], Coroutine[Any, Any, R]]) -> None:
        self._loop = loop
        self._begin = begin
        self._waiter: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._cancelled: Callable[[], Any] | None = None
        self._task: asyncio.Task[R] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._begin())
        self._task.add_done_callback(self._report_there)

    def cancel(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """Trio wants the waiting task back: it gets it when the call has ended, or after `CANCEL_S`."""
        self._cancelled = raise_cancel
        try:
            self._loop.call_soon_threadsafe(self._cancel_there)
        except RuntimeError:  # the loop has ended
            return trio.lowlevel.Abort.SUCCEEDED
        return trio.lowlevel.Abort.FAILED

    def _cancel_there(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._loop.call_later(CANCEL_S, self._abandon_there)

    def _abandon_there(self) -> None:
        if self._task is not None and not self._task.done():
            log.debug("a cancelled call goes on: %r", self._task)
            self._wake_there(None)

    def _report_there(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            self._wake_there(None)
        elif (error := task.exception()) is not None:
            self._wake_there(outcome.Error(error))
        else:
            self._wake_there(outcome.Value(task.result()))

    def _wake_there(self, result: outcome.Outcome[R] | None) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, result)

    def _wake(self, result: outcome.Outcome[R] | None) -> None:
        if self._waiter is None:
            return  # it has gone on without the result
        waiter, self._waiter = self._waiter, None
        if result is None:
            if self._cancelled is None:
                result = outcome.Error(asyncio.CancelledError("the loop of asyncio has ended"))
            else:
                result = outcome.capture(self._cancelled)
        trio.lowlevel.reschedule(waiter, result)


@asynccontextmanager
async def open_bridge() -> AsyncGenerator[Bridge]:
    """A loop of asyncio in a thread of its own, for as long as the block lasts. What still runs then is cancelled."""
    token = trio.lowlevel.current_trio_token()
    ended = trio.Event()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        try:
            asyncio.set_event_loop(loop)
            loop.run_forever()
            loop.run_until_complete(_end_tasks(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

    thread = threading.Thread(target=serve, name="asyncio", daemon=True)
    thread.start()
    try:
        yield Bridge(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        with trio.move_on_after(2 * CLOSE_S, shield=True):
            await ended.wait()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    # A task that is cancelled before it has begun closes nothing: such as the one for an accepted connection.
    await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_S)
