"""What drives a client's core: one task of a Trio loop talks to the scheduler, any thread may ask.

The core stands under one lock that is never held across anything that waits. A caller changes the core and leaves;
what it put into the outbox goes out when the loop has been woken, once for everything that gathered meanwhile. What
arrives is handled a batch at a time, and whoever waits for it is woken directly.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, TypeVar, TypeVarTuple

import trio

from trio_dask.client.calls import CLOSED, Answer, LoopCall, guarded
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetches import FetchKeys
from trio_dask.client.core.outbox import Content, Row
from trio_dask.client.core.states import Ended, Frames, KeyState
from trio_dask.client.fetching import fetch
from trio_dask.client.peers import Channel, Peers
from trio_dask.client.waiting import Reading, Settling, Signal, ThreadSignal, TrioSignal
from trio_dask.errors import FutureCancelledError, KeyConflict, ProtocolError, SchedulerLost
from trio_dask.identity import Incarnation, Key
from trio_dask.protocol.messages import Goodbye, Message
from trio_dask.protocol.pickling import FunctionBlob, load_value

__all__ = ["Engine", "Link", "loading"]

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

loading: ContextVar[Engine | None] = ContextVar("trio_dask client that unpickles", default=None)
"""While a value is unpickled: the client that futures inside it belong to."""


class Link(Protocol):
    """The connection with the scheduler; `comm.connection.Connection` is it."""

    def send_many_nowait(self, messages: Iterable[Message]) -> None:
        """Append to what will be sent."""
        ...

    def flush_nowait(self) -> None:
        """Send what can be sent without waiting, leave the rest to the connection's writer."""
        ...

    def batches(self) -> AsyncIterator[Sequence[Message]]:
        """What arrives, as it arrives. Ends at a proper end of the stream, raises at a loss."""
        ...

    @property
    def goodbye(self) -> Goodbye | None:
        """What the scheduler said when it left, if it did."""
        ...

    async def aclose(self, reason: str = "") -> None:
        """Say goodbye, send what is left, close."""
        ...

    async def __aenter__(self) -> Link:
        """Start what serves the connection."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stop it."""
        ...


Dial = Callable[[], Awaitable[Link]]
"""Connects to the scheduler; raises `NoScheduler` or `RefusedError`."""


def _no_future(engine: Engine, state: KeyState) -> Any:
    raise RuntimeError("this client makes no futures")


class Engine:
    """One client core, and the session it lives in."""

    def __init__(
        self,
        incarnation: Incarnation,
        dial: Dial,
        open_channel: Callable[[str], Awaitable[Channel]],
        *,
        grace_s: float = 2.0,
    ) -> None:
        self.incarnation = incarnation
        self.address = ""
        """Of the scheduler, once connected."""
        self.core = ClientCore()
        # Reentrant: the garbage collector may run anybody's finalizer in the middle of our own code.
        self.lock = threading.RLock()
        self.peers = Peers(open_channel)
        self.facade: Any = None
        """The client that futures name as theirs."""
        self.future_type: Callable[[Engine, KeyState], Any] = _no_future
        self.run_callback: Callable[[Callable[[], object]], None] = self.run_soon
        self._dial = dial
        self._grace_s = grace_s
        self._dropped: deque[KeyState] = deque()
        self._woken = False
        self._thread = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._link: Link | None = None
        self._nursery: trio.Nursery | None = None
        self._stopping: trio.Event | None = None
        self._stopped: trio.Event | None = None

    # ------------------------------------------------------------------------------------------------ the session

    async def serve(
        self,
        on_connected: Callable[[], object] = lambda: None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect, and stay until `stop`. A lost scheduler does not end it: whoever asks hears of the loss.

        Raises `NoScheduler` or `RefusedError`, before it is connected only.
        """
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._stopping, self._stopped = trio.Event(), trio.Event()
        async with await self._dial() as link:
            self._link = link
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._listen, link)
                    self.flush()
                    on_connected()
                    task_status.started()
                    await self._stopping.wait()
                    nursery.cancel_scope.cancel()
            finally:
                self._nursery = None
                self.flush()
                self._end(Ended(lost=False, text=CLOSED))
                with trio.move_on_after(self._grace_s, shield=True):
                    await self.peers.aclose()
                    await link.aclose("the client closed")
                self._stopped.set()

    def stop(self) -> None:
        """Have `serve` say goodbye and return. For the engine's own thread."""
        if self._stopping is not None:
            self._stopping.set()

    async def wait_stopped(self) -> None:
        """Return once `serve` has said goodbye. For the engine's own loop."""
        if self._stopped is not None:
            await self._stopped.wait()

    @property
    def is_serving(self) -> bool:
        """Whether `serve` has connected and has not stopped."""
        return self._nursery is not None

    @property
    def is_connected(self) -> bool:
        """Whether the session is alive."""
        return self._link is not None

    async def _listen(self, link: Link) -> None:
        reason = "the scheduler closed the connection"
        try:
            async for batch in link.batches():
                with self.lock:
                    handle = self.core.handle
                    for message in batch:
                        handle(message)
                self.flush()
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
        with self.lock:
            core = self.core
            self._collect_dropped()
            messages = core.drain()
            fetches = core.next_fetches()
        link = self._link
        if messages and link is not None:
            link.send_many_nowait(messages)
            link.flush_nowait()
        for request in fetches:
            if self._nursery is not None:
                self._nursery.start_soon(self._fetch, request)

    def _collect_dropped(self) -> None:
        dropped = self._dropped
        if dropped:
            self.core.dereference([dropped.popleft() for _ in range(len(dropped))])

    def drop(self, state: KeyState) -> None:
        """One future less. Takes no lock, so that finalizers can call it."""
        self._dropped.append(state)
        self.wake()

    # ------------------------------------------------------------------------------------------------ wishes

    def submit(
        self, function: FunctionBlob, rows: Iterable[Row], contents: Iterable[Content], extra: Mapping[str, Any]
    ) -> list[KeyState]:
        """Ask for tasks; each state has one reference more, which its future gives back.

        Raises `KeyConflict`, and what `check_open` raises.
        """
        with self.lock:
            self.check_open()
            try:
                states = self.core.submit(function[:2], rows, contents, extra)
            except KeyConflict:
                # Futures that were dropped a moment ago still count until the loop hears of it.
                self._collect_dropped()
                states = self.core.submit(function[:2], rows, contents, extra)
        if not self._woken:
            self.wake()
        return states

    def adopt(self, keys: Iterable[Key], *, submitted: bool = True) -> list[KeyState]:
        """Futures for keys that this client did not submit: others did, or it is about to put the values on workers."""
        with self.lock:
            self.check_open()
            states = self.core.want(keys) if submitted else self.core.expect(keys)
        self.wake()
        return states

    def cancel(self, states: Iterable[KeyState], *, force: bool, text: str) -> None:
        """Give these up."""
        with self.lock:
            self.core.cancel(states, force, text)
        self.wake()

    def release(self, states: Iterable[KeyState]) -> None:
        """Give back one reference of each."""
        with self.lock:
            self.core.dereference(states)
        self.wake()

    def retry(self, states: Iterable[KeyState]) -> None:
        """Run those of these that have erred again."""
        with self.lock:
            self.core.retry(states)
        self.wake()

    def detach(self, states: Iterable[KeyState]) -> None:
        """Let these finish, wanted or not."""
        with self.lock:
            self.core.detach([state.key for state in states])
        self.wake()

    def shutdown(self) -> None:
        """End the cluster."""
        with self.lock:
            self.check_open()
            self.core.shutdown()
        self.push()

    def call_when_done(self, state: KeyState, callback: Callable[[], object]) -> None:
        """Have the client's callback runner call this once `state` is not pending."""
        with self.lock:
            self.core.wait(state, lambda _: self.run_callback(callback))

    # ------------------------------------------------------------------------------------------------ waiting

    def check_open(self) -> None:
        """Raise `SchedulerLost` if the scheduler is lost, `RuntimeError` if the client is closed or not open yet."""
        ended = self.core.ended
        if ended is not None:
            raise SchedulerLost(ended.text) if ended.lost else RuntimeError(ended.text)
        if self._token is None:
            raise RuntimeError("the client is not connected yet: enter it with `async with`")

    def settle(self, states: Sequence[KeyState], count: int, timeout_s: float | None) -> bool:
        """Block until `count` of these have settled; False if the time was up before."""
        signal = ThreadSignal()
        waiter = self._start_settling(states, count, signal)
        settled = False
        try:
            settled = signal.wait(timeout_s)
        finally:
            if not settled:
                self._abandon(states, waiter)
        return settled

    async def settle_async(self, states: Sequence[KeyState], count: int) -> None:
        """Wait until `count` of these have settled."""
        signal = TrioSignal()
        waiter = self._start_settling(states, count, signal)
        try:
            await signal.wait()
        except BaseException:
            self._abandon(states, waiter)
            raise

    def read(self, states: Sequence[KeyState], timeout_s: float | None, *, on_failure: bool) -> Reading | None:
        """Block until the values of these are here; None if the time was up before.

        With `on_failure` the first key that has none ends it.
        """
        signal = ThreadSignal()
        reading = self._start_reading(states, Reading(signal, states, on_failure=on_failure))
        done = False
        try:
            done = signal.wait(timeout_s)
        finally:
            if not done:
                self._abandon(states, reading)
        return reading if done else None

    async def read_async(self, states: Sequence[KeyState], *, on_failure: bool) -> Reading:
        """Wait until the values of these are here; with `on_failure` the first key that has none ends it."""
        signal = TrioSignal()
        reading = self._start_reading(states, Reading(signal, states, on_failure=on_failure))
        try:
            await signal.wait()
        except BaseException:
            self._abandon(states, reading)
            raise
        return reading

    def load(self, frames: Frames) -> Any:
        """Unpickle a value; futures inside it become futures of this client."""
        before = loading.set(self)
        try:
            return load_value(frames)
        finally:
            loading.reset(before)

    def _start_settling(self, states: Sequence[KeyState], count: int, signal: Signal) -> Settling:
        waiter = Settling(signal, count)
        with self.lock:
            wait = self.core.wait
            for state in states:
                wait(state, waiter)
        self.push()
        return waiter

    def _start_reading(self, states: Sequence[KeyState], reading: Reading) -> Reading:
        with self.lock:
            read = self.core.read
            for state in states:
                read(state, reading)
        self.push()
        return reading

    def _abandon(self, states: Sequence[KeyState], waiter: Settling | Reading) -> None:
        with self.lock:
            for state in states:
                self.core.abandon(state, waiter)

    # ------------------------------------------------------------------------------------------------ asking

    async def ask(self, what: str, arguments: Iterable[str] = ()) -> Any:
        """Put a question to the scheduler and return its answer. From any Trio loop."""
        signal = TrioSignal()
        answer = Answer(signal)
        with self.lock:
            self.core.ask(what, tuple(arguments), answer)
        self.push()
        await signal.wait()
        return answer.unwrap()

    async def restart(self) -> Any:
        """Have the cluster begin afresh; returns when it has."""
        signal = TrioSignal()
        answer = Answer(signal)
        with self.lock:
            self.core.restart(answer)
        self.push()
        await signal.wait()
        return answer.unwrap()

    def call(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts, timeout_s: float | None = None) -> _T:
        """Run an async function in the engine's loop and block for its outcome; interrupted, it is cancelled there.

        Raises `TimeoutError` when the time is up, and what the function raises.
        """
        self.check_open()
        call = LoopCall(function, args)
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._start_call, call)
            done = call.signal.wait(timeout_s)
        except trio.RunFinishedError:
            raise FutureCancelledError(CLOSED) from None
        except BaseException:
            self._token.run_sync_soon(call.scope.cancel)
            raise
        if not done:
            self._token.run_sync_soon(call.scope.cancel)
            raise TimeoutError(f"not done within {timeout_s} s")
        return call.unwrap()

    def start(self, function: Callable[[*_Ts], Awaitable[object]], *args: *_Ts) -> None:
        """Run an async function in the engine's nursery; what it raises is logged."""
        self.check_open()
        assert self._token is not None
        self._token.run_sync_soon(self._start_call, LoopCall(function, args, log_errors=True))

    def _start_call(self, call: LoopCall[Any]) -> None:
        if self._nursery is None:
            call.fail(FutureCancelledError(CLOSED))
        else:
            self._nursery.start_soon(call.run)

    def run_soon(self, callback: Callable[[], object]) -> None:
        """Call this in the engine's loop; what it raises is logged."""
        if self._token is not None:
            try:
                self._token.run_sync_soon(guarded, callback)
            except trio.RunFinishedError:
                pass  # the client is closed; its futures were told

    async def _fetch(self, request: FetchKeys) -> None:
        await fetch(request, self.peers, self.core, self.lock)
        self.flush()
