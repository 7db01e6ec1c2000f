"""The threads of a blocking client: one that runs its Trio loop, one that runs the callbacks of its futures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import trio

from trio_dask.client.engine import Engine
from trio_dask.client.loop_calls import call_logging_errors
from trio_dask.client.wait_signals import ThreadSignal

_logger = logging.getLogger("trio_dask.client")


class EngineThread:
    """Runs an engine. A daemon, so that a program that forgets to close its client still ends.

    `home` is the Trio run in which the engine must live, for a scheduler inside this program; without one it gets a run
    of its own.
    """

    def __init__(self, engine: Engine, home: trio.lowlevel.TrioToken | None = None) -> None:
        self._engine = engine
        self._home = home
        self._attached = ThreadSignal()
        self._connected = ThreadSignal()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="trio_dask-client", daemon=True)

    def start(self, *, wait: bool = True) -> None:
        """Return once the engine is connected, or (without `wait`) tries to. Raises why it could not connect."""
        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._home:
            self._engine.attach()  # its loop stands still during this call, and could not do it
            self._attached.set()
        self._thread.start()
        try:
            self._attached.wait()
            if wait:
                self._connected.wait()
        except BaseException:  # Ctrl-C: give up connecting as well
            self.stop(None)
            raise
        if wait and self._error is not None:
            self._thread.join()
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: the two would keep each other, and the caller's variables

    def stop(self, timeout_s: float | None) -> None:
        """Have the engine say goodbye, and return when its thread has ended, or after this many seconds."""
        self._engine.run_soon(self._engine.stop)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def started(self, value: None = None) -> None:
        """The engine is connected. Takes the place of `started` of a Trio task's status."""
        self._connected.set()

    def _run(self) -> None:
        try:
            if self._home is None:
                trio.run(self._main)
            else:
                trio.from_thread.run(self._main, trio_token=self._home)
        except* trio.Cancelled:  # noqa: ASYNC103 - the loop which is our home has ended, and the engine with it
            pass
        except* Exception as group:  # `start` raises it; otherwise it would only end this thread
            self._fail(group.exceptions[0] if len(group.exceptions) == 1 else group)
        finally:
            self._attached.set()
            self._connected.set()

    async def _main(self) -> None:
        self._engine.attach()
        self._attached.set()
        try:
            await self._engine.serve(task_status=self)
        except Exception as error:  # Trio's runner would keep it alive, and with it the caller of `start`
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Have the error raised in the thread that waits for the connection."""
        self._error = error
        if self._connected.is_set:  # no thread waits any more
            _logger.error("the client failed", exc_info=error)


class CallbackThread:
    """Calls the callbacks of futures, one after the other; the thread starts with the first one."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, callback: Callable[[], object]) -> None:
        """Call this soon. From any thread, but from one at a time: an engine calls it under its lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trio_dask-callbacks", daemon=True)
            self._thread.start()
        self._queue.put(callback)

    def stop(self) -> None:
        """End the thread after the calls that are queued."""
        if self._thread is not None:
            self._queue.put(None)

    def _run(self) -> None:
        while (callback := self._queue.get()) is not None:
            try:
                call_logging_errors(callback)
            except BaseException:  # noqa: ASYNC103 - `sys.exit()` in one callback must not end the thread of all others
                _logger.exception("a callback of a future failed")
            del callback  # it has the future, whose task lasts as long as it does
