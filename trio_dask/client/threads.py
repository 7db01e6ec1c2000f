"""The threads of a blocking client: one that runs its Trio loop, one that runs the callbacks of its futures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import trio

from trio_dask.client.calls import guarded
from trio_dask.client.engine import Engine
from trio_dask.client.waiting import ThreadSignal

__all__ = ["CallbackThread", "EngineThread"]


class EngineThread:
    """Runs an engine. A daemon, so that a program that forgets to close its client still ends.

    `home` is the Trio run in which the engine must live, for a scheduler inside this program; without one it gets a run
    of its own.
    """

    def __init__(self, engine: Engine, home: trio.lowlevel.TrioToken | None = None) -> None:
        self._engine = engine
        self._home = home
        self._started = ThreadSignal()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._run, name="trio_dask-client", daemon=True)

    def start(self) -> None:
        """Return once the engine is connected. Raises what kept it from that."""
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:  # Ctrl-C: give the connecting up as well
            self.stop(None)
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self, timeout_s: float | None) -> None:
        """Have the engine say goodbye, and return when its thread has ended, or after that many seconds."""
        token = self._token
        if token is not None:
            try:
                token.run_sync_soon(self._stop)
            except trio.RunFinishedError:
                pass  # it has ended by itself
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _stop(self) -> None:
        if self._engine.is_serving:
            self._engine.stop()
        else:
            self._scope.cancel()

    def _run(self) -> None:
        try:
            if self._home is None:
                trio.run(self._main)
            else:
                trio.from_thread.run(self._main, trio_token=self._home)
        except BaseException as error:  # it is raised in the thread that waits for the start
            self._error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            await self._engine.serve(on_connected=self._started.set)


class CallbackThread:
    """Calls the callbacks of futures, one after the other; the thread starts with the first one."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, callback: Callable[[], object]) -> None:
        """Have this called soon. From any thread; a client calls it under its lock, so never by two at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trio_dask-callbacks", daemon=True)
            self._thread.start()
        self._queue.put(callback)

    def stop(self) -> None:
        """End the thread once it has made the calls that are due."""
        if self._thread is not None:
            self._queue.put(None)

    def _run(self) -> None:
        while (callback := self._queue.get()) is not None:
            guarded(callback)
