"""What keeps a client's core in touch with its scheduler: one task of a Trio loop, which any thread may wake.

The core stands under one lock that is never held across anything that waits. A caller changes the core and leaves;
what it put into the outbox goes out when the loop has been woken, once for everything that gathered meanwhile. What
arrives is handled a batch at a time, and whoever waits for it is woken directly.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

from trio_dask.client.calls import CLOSED, LoopCall, guarded
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetches import FetchKeys
from trio_dask.client.core.states import Ended, KeyState
from trio_dask.client.fetching import fetch
from trio_dask.client.link import Dial, Link
from trio_dask.client.peers import Channel, Peers
from trio_dask.client.waiting import ThreadSignal, TrioSignal
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, SchedulerLost

__all__ = ["Driver"]

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

AT_ONCE: Final = 1000
"""So many messages or releases are handled before a thread that waits for the lock gets it."""

SWEEP_S: Final = 0.02
"""How long futures that died may wait, when results have just come in, for company on the way to the scheduler."""


def _over(ended: Ended) -> Exception:
    return SchedulerLost(ended.text) if ended.lost else RuntimeError(ended.text)


class Driver:
    """A core, its connection, and the loop both live in."""

    def __init__(self, dial: Dial, open_channel: Callable[[str], Awaitable[Channel]], grace_s: float) -> None:
        self.core = ClientCore()
        # Reentrant: the garbage collector may run anybody's finalizer in the middle of our own code.
        self.lock = threading.RLock()
        self.peers = Peers(open_channel)
        self._dial = dial
        self._grace_s = grace_s
        self._dropped: deque[KeyState] = deque()
        self._woken = False
        self._sweeping = False
        self._thread = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._link: Link | None = None
        self._nursery: trio.Nursery | None = None
        self._early: list[LoopCall[Any]] = []
        """Calls that wait for the connection."""
        self._dialling = trio.CancelScope()
        self._stop_asked = trio.Event()
        self._stopped = trio.Event()

    # ------------------------------------------------------------------------------------------------ the session

    def attach(self) -> None:
        """Belong to the Trio loop that runs here: from now on all calls can be made, and wait for the connection."""
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()

    async def serve(
        self, *, outlive_cancellation: bool = False, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect, and stay until `stop`. A lost scheduler does not end it: whoever asks hears of the loss.

        With `outlive_cancellation`, once it is connected, only `stop` ends it.

        Raises `NoScheduler` or `RefusedError`, before it is connected only.
        """
        self.attach()
        try:
            link: Link | None = None
            with self._dialling:
                link = await self._dial()
            if link is not None:
                with trio.CancelScope(shield=outlive_cancellation):
                    async with link, self._session(link):
                        task_status.started()
                        await self._stop_asked.wait()
        except (NoScheduler, RefusedError) as error:
            self._end(Ended(lost=True, text=str(error)))
            raise
        finally:
            self._end(Ended(lost=False, text=CLOSED))
            self._stopped.set()

    @asynccontextmanager
    async def _session(self, link: Link) -> AsyncGenerator[None]:
        self._link = link
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._listen, link)
                self.flush()
                early, self._early = self._early, []
                for call in early:
                    nursery.start_soon(call.run)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.flush()
            self._end(Ended(lost=False, text=CLOSED))
            with trio.move_on_after(self._grace_s, shield=True):
                await self.peers.aclose()
                await link.aclose("the client closed")

    def stop(self) -> None:
        """Have `serve` say goodbye and return. For the engine's own thread."""
        self._stop_asked.set()
        if self._link is None:
            self._dialling.cancel()

    async def wait_stopped(self) -> None:
        """Return once `serve` has ended. For the engine's own loop."""
        await self._stopped.wait()

    @property
    def is_connected(self) -> bool:
        """Whether the session is alive."""
        return self._link is not None

    async def _listen(self, link: Link) -> None:
        reason = "the scheduler closed the connection"
        try:
            async for batch in link.batches():
                for start in range(0, len(batch), AT_ONCE):
                    with self.lock:
                        handle = self.core.handle
                        for message in batch[start : start + AT_ONCE]:
                            handle(message)
                self.flush()
                if not self._sweeping and self._nursery is not None:
                    self._sweeping = True
                    self._nursery.start_soon(self._sweep)
        except (OSError, ProtocolError, trio.BrokenResourceError) as error:
            reason = str(error) or type(error).__name__
        except Exception as error:  # a bug of ours must end in errors for those who wait, not in silence
            _logger.exception("the client failed")
            reason = f"the client failed: {error!r}"
        said = link.goodbye
        self._end(
            Ended(lost=True, text=f"the scheduler left: {said.reason}" if said else f"the scheduler is lost: {reason}")
        )

    def _end(self, ended: Ended) -> None:
        self._link = None
        with self.lock:
            self.core.end(ended)
        early, self._early = self._early, []
        for call in early:
            call.fail(_over(ended))

    # ------------------------------------------------------------------------------------------------ going out

    def push(self) -> None:
        """Have what was put into the core sent soon: at once from the engine's own thread, else by waking it."""
        if threading.get_ident() == self._thread:
            self.flush()
        else:
            self.wake()

    def wake(self) -> None:
        """Have the loop flush. Safe anywhere: any thread, finalizers, signal handlers, the end of the interpreter."""
        if self._woken or self._token is None:
            return
        self._woken = True
        try:
            self._token.run_sync_soon(self._on_wake)
        except trio.RunFinishedError:
            pass  # the flag stays up: there is nobody to be woken any more
        except BaseException:
            self._woken = False
            raise

    def _on_wake(self) -> None:
        self._woken = False
        self.flush()

    def flush(self) -> None:
        """Send everything there is to send. For the engine's own thread."""
        link, nursery = self._link, self._nursery
        while len(self._dropped) > AT_ONCE:
            with self.lock:
                self._collect_dropped()
        with self.lock:
            self._collect_dropped()
            if link is None:
                return  # not connected yet, or not any more
            messages = self.core.drain()
            fetches = self.core.next_fetches() if nursery is not None else ()
        if messages:
            link.send_many_nowait(messages)
            link.flush_nowait()
        if nursery is not None:
            for request in fetches:
                nursery.start_soon(self._fetch, request)

    def _collect_dropped(self) -> None:
        dropped = self._dropped
        if dropped:
            self.core.dereference([dropped.popleft() for _ in range(min(len(dropped), AT_ONCE))])

    def drop(self, state: KeyState) -> None:
        """One future less. Takes no lock, so that finalizers can call it.

        It is not worth waking anybody where results are coming in: it leaves with the next message, or soon.
        """
        self._dropped.append(state)
        if not self._sweeping:
            self.wake()

    async def _sweep(self) -> None:
        await trio.sleep(SWEEP_S)
        self._sweeping = False
        self.flush()

    # ------------------------------------------------------------------------------------------------ in the loop

    def check_open(self) -> None:
        """Raise `SchedulerLost` if the scheduler is lost, `RuntimeError` if the client is closed or not open yet."""
        if self.core.ended is not None:
            raise _over(self.core.ended)
        if self._token is None:
            raise RuntimeError("the client is not connected yet: enter it with `async with`")

    def call(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts, timeout_s: float | None = None) -> _T:
        """Run an async function in the engine's loop and block for its outcome; interrupted, it is cancelled there.

        Raises `TimeoutError` when the time is up, and what the function raises.
        """
        self.check_open()
        signal = ThreadSignal()
        call = LoopCall(function, args, signal)
        done = False
        try:
            self._start_soon(call)
            done = signal.wait(timeout_s)
        finally:
            if not done:
                self.run_soon(call.scope.cancel)
        if not done:
            raise TimeoutError(f"not done within {timeout_s} s")
        return call.unwrap()

    async def call_async(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """Run an async function in the engine's loop, which may be that of another thread; cancelled, it is there."""
        if threading.get_ident() == self._thread:
            return await function(*args)
        self.check_open()
        signal = TrioSignal()
        call = LoopCall(function, args, signal)
        try:
            self._start_soon(call)
            await signal.wait()
        except BaseException:
            self.run_soon(call.scope.cancel)
            raise
        return call.unwrap()

    def start(self, function: Callable[[*_Ts], Awaitable[object]], *args: *_Ts) -> None:
        """Run an async function in the engine's nursery; what it raises is logged."""
        self.check_open()
        self._start_soon(LoopCall(function, args, None))

    def _start_soon(self, call: LoopCall[Any]) -> None:
        if not self.run_soon(self._start_call, call):
            raise RuntimeError(CLOSED)

    def _start_call(self, call: LoopCall[Any]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(call.run)
        elif self.core.ended is not None:
            call.fail(_over(self.core.ended))
        else:
            self._early.append(call)

    def run_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> bool:
        """Call this in the engine's loop; what it raises is logged. False if the loop has ended."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(guarded, partial(callback, *args))
        except trio.RunFinishedError:
            return False
        return True

    async def _fetch(self, request: FetchKeys) -> None:
        await fetch(request, self.peers, self.core, self.lock)
        self.flush()
