"""What keeps a client's core in touch with its scheduler: one task of a Trio loop, which any thread may wake.

The core stands under one lock that is never held across anything that waits. A caller changes the core and leaves;
what it put into the outbox goes out when the loop has been woken, once for everything that gathered meanwhile. A lone
request, by callers who wait for what they ask for, is sent by the caller's own thread: nobody has to be woken for it.
What arrives is handled a batch at a time, and whoever waits for it is woken directly.

    connecting --> running --> connecting --> running ...      a lost link: it dials again, everybody waits meanwhile
                      |            |
                      `--> lost <--'                           the scheduler said goodbye, or cannot be reached again

When the scheduler is lost, all who wait hear it at once, and nobody is called any more. What is asked after that makes
the client dial again, for as long as it did when it began.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, TypeVarTuple

import trio

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetch_queue import FetchKeys
from trio_dask.client.core.key_state import Ended, KeyState
from trio_dask.client.fetch_results import fetch
from trio_dask.client.link import Dial, Link
from trio_dask.client.loop_calls import CLOSED, LoopCall, guarded
from trio_dask.client.wait_signals import ThreadSignal, TrioSignal
from trio_dask.client.worker_channels import Channel, Peers
from trio_dask.comm.captured_error import CapturedError
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, SchedulerLost, UnavailableError, UsageError

__all__ = ["Driver"]

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

AT_ONCE: Final = 1000
"""So many messages or releases are handled before a thread that waits for the lock gets it."""

SWEEP_S: Final = 0.02
"""How long futures that died may wait, when results have just come in, for company on the way to the scheduler."""


Status: TypeAlias = Literal["connecting", "running", "lost", "closed", "forked"]


class _Loss(NamedTuple):
    """Why there is no link any more; `is_final`: nor any use in looking for the same scheduler again."""

    text: str
    is_final: bool


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
        # Held by whoever takes messages out of the core, until they are sent: they must leave in their order.
        self._sending = threading.Lock()
        self._waited = False
        """Whether a caller has waited since one last sent something by himself: else it is a burst, better gathered."""
        self._dropped: deque[KeyState] = deque()
        self._failure_dropped = False
        """Whether a failed task is among them: whoever calls it again wants another attempt, not the old error."""
        self._when_unused: Callable[[], object] | None = None
        self._woken = False
        self._sweeping = False
        self._thread = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._link: Link | None = None
        self._nursery: trio.Nursery | None = None
        self.transports: trio.Nursery
        """For the tasks of transports, while this serves."""
        self._early: list[LoopCall[Any]] = []
        """Calls that wait for the first connection."""
        self._phase = trio.CancelScope()
        """Around whatever ends when the client is to stop."""
        self._hosting = trio.CancelScope()
        self._failure: _Loss | None = None
        """Why the link that is there must be given up."""
        self._is_lost = False
        self._needed = trio.Event()
        """While it is lost: somebody asks for something."""
        self._calls_ended = trio.Event()
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
        block = CapturedError()
        async with trio.open_nursery() as self.transports:
            with block:
                try:
                    link = await self._until_stop(self._dial, "", 0)
                    if link is not None:
                        with trio.CancelScope(shield=outlive_cancellation):
                            async with trio.open_nursery() as nursery:
                                await nursery.start(self._host_calls)
                                await self._go_from_link_to_link(link, task_status.started)
                except (NoScheduler, RefusedError) as error:
                    self._end(Ended(lost=True, text=str(error)))
                    raise
                finally:
                    self._end(Ended(lost=False, text=CLOSED))
                    self._stopped.set()
        block.raise_it()

    async def _host_calls(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Calls and fetches: a lost link is nothing to them."""
        try:
            with self._hosting:
                async with trio.open_nursery() as self._nursery:
                    early, self._early = self._early, []
                    for call in early:
                        self._nursery.start_soon(call.run)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._nursery = None
            self._calls_ended.set()

    async def _go_from_link_to_link(self, first: Link, started: Callable[[], None]) -> None:
        link: Link | None = first
        try:
            while link is not None:
                loss: _Loss | None = None
                async with link:
                    try:
                        loss = self._join(link)
                        if loss is None:
                            started()
                            loss = await self._until_stop(self._listen, link) or self._take_failure()
                    finally:
                        if loss is None:
                            await self._take_leave(link)  # noqa: ASYNC102 - it shields itself, with a limit
                        self._link = None
                started = _say_nothing
                link = None if loss is None else await self._next_link(loss)
        finally:
            await self._take_leave(None)  # noqa: ASYNC102 - it shields itself, with a limit

    async def _take_leave(self, link: Link | None) -> None:
        """The client stops: end its calls, say what is left to say, and goodbye."""
        with trio.move_on_after(self._grace_s, shield=True):
            self._hosting.cancel()
            await self._calls_ended.wait()
            if link is not None:
                self.flush()
            self._end(Ended(lost=False, text=CLOSED))
            await self.peers.aclose()
            if link is not None:
                await link.aclose("the client was closed")

    async def _next_link(self, loss: _Loss) -> Link | None:
        """The next link, to the same scheduler or another one; None if the client stops before."""
        if loss.is_final:
            self._forsake(loss.text)
        while True:
            if self._is_lost:
                await self._until_stop(self._needed.wait)
                self._is_lost = False
            lost = self.core.scheduler
            try:
                return await self._until_stop(self._dial, lost, self.core.received)
            except (NoScheduler, RefusedError, UnavailableError, UsageError) as error:
                self._forsake(f"{loss.text}; reconnecting failed: {error}" if lost else str(error))

    def _forsake(self, text: str) -> None:
        """Nobody knows of this client any more."""
        with self.lock:
            self.core.forsake(Ended(lost=True, text=text))
        self._is_lost = True
        self._needed = trio.Event()

    async def _until_stop(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T | None:
        """What this returns, or None if the client is to stop before."""
        if not self._stop_asked.is_set():
            with trio.CancelScope() as self._phase:
                return await function(*args)
        return None

    def stop(self) -> None:
        """Have `serve` say goodbye and return. For the engine's own thread."""
        self._stop_asked.set()
        self._phase.cancel()

    async def wait_stopped(self) -> None:
        """Return once `serve` has ended. For the engine's own loop."""
        await self._stopped.wait()

    @property
    def status(self) -> Status:
        """What the client is about: see above."""
        if self.core.ended is not None:
            return "closed"
        if self._link is not None:
            return "running"
        return "lost" if self._is_lost else "connecting"

    def _join(self, link: Link) -> _Loss | None:
        """Go on with this link."""
        welcome = link.hello
        try:
            with self.lock:
                self.core.join(welcome.incarnation, _handled(welcome.details))
        except ProtocolError as error:
            return _Loss(f"the scheduler is lost: {error}", True)
        self._link = link
        self.flush()
        return self._take_failure()

    async def _listen(self, link: Link) -> _Loss:
        """Take what the scheduler says until the link ends."""
        try:
            async for batch in link.batches():
                for start in range(0, len(batch), AT_ONCE):
                    with self.lock:
                        handle = self.core.handle
                        for message in batch[start : start + AT_ONCE]:
                            handle(message)
                    if self.core.stuck.aloud:
                        _logger.warning("%s", self.core.stuck.take_aloud())
                self.flush()
                if not self._sweeping and self._nursery is not None:
                    self._sweeping = True
                    self._nursery.start_soon(self._sweep)
        except (OSError, trio.BrokenResourceError) as error:
            return _Loss(f"the scheduler is lost: {str(error) or type(error).__name__}", False)
        except ProtocolError as error:  # it would say the same again
            return _Loss(f"the scheduler is lost: {error}", True)
        except Exception as error:  # a bug of ours must end in errors for those who wait, not in silence
            _logger.exception("the client failed")
            return _Loss(f"the scheduler is lost: the client failed: {error!r}", True)
        said = link.goodbye
        if said is not None:
            return _Loss(f"the scheduler closed the connection ({said.reason})", True)
        return _Loss("the scheduler is lost: it closed the connection unexpectedly", False)

    def _fail(self, error: Exception) -> None:
        """What was asked for cannot be said: whoever waits for it would wait for ever."""
        _logger.error("the client failed", exc_info=error)
        self._failure = _Loss(f"the scheduler is lost: the client failed: {error!r}", True)
        self._phase.cancel()

    def _take_failure(self) -> _Loss | None:
        failure, self._failure = self._failure, None
        return failure

    def _end(self, ended: Ended) -> None:
        self._link = None
        with self.lock:
            self.core.end(ended)
        early, self._early = self._early, []
        for call in early:
            call.fail(_over(ended))

    # ------------------------------------------------------------------------------------------------ going out

    def push(self) -> None:
        """Have what was put into the core, if anything, sent soon: from the engine's own thread at once."""
        if threading.get_ident() == self._thread:
            self.flush()
        elif self.core.has_something:
            self.wake()

    def send_or_wake(self) -> None:
        """Send what was put into the core, if that is a lone request, else have the loop do it."""
        link = self._link
        may_send = self._waited and link is not None and link.thread_safe_send
        if not may_send or threading.get_ident() == self._thread or not self._sending.acquire(blocking=False):
            self.wake()
            return
        try:
            self._waited = False
            with self.lock:
                self._collect_dropped()
                messages = self.core.drain() if self._link is link else ()
            if messages and link is not None:
                link.send_many_nowait(messages)
                link.flush_nowait()
        except Exception as error:  # as in `flush`: whoever waits hears it from the loop
            self.run_soon(self._fail, error)
        except BaseException:
            # By Ctrl-C perhaps, in the middle of a message: on the next link both sides go on where they were.
            if link is not None:
                self.run_soon(link.abort, "a caller was interrupted while it sent something")
            raise
        finally:
            self._sending.release()

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
        if not self._dropped and link is not None and not self.core.has_something:
            return
        while len(self._dropped) > AT_ONCE:
            with self.lock:
                self._collect_dropped()
        with self._sending:
            with self.lock:
                self._collect_dropped()
                messages = self.core.drain() if link is not None else ()
                fetches = self.core.next_fetches() if nursery is not None else ()
                if link is None and self._is_lost and self.core.has_messages:
                    self._needed.set()
            if messages and link is not None:
                link.send_many_nowait(messages)
                try:
                    link.flush_nowait()
                except Exception as error:  # a bug of ours must end in errors for those who wait, not in silence
                    self._fail(error)
        if nursery is not None:
            for request in fetches:
                nursery.start_soon(self._fetch, request)

    def _collect_all_dropped(self) -> None:
        """Futures that died a moment ago still count until the loop hears of it, unless their keys are used again."""
        self._failure_dropped = False
        while self._dropped:
            self._collect_dropped()

    def _collect_dropped(self) -> None:
        dropped = self._dropped
        if dropped:
            self.core.dereference([dropped.popleft() for _ in range(min(len(dropped), AT_ONCE))])
        if self._when_unused is not None and not self.core.states:
            callback, self._when_unused = self._when_unused, None
            callback()

    def when_unused(self, callback: Callable[[], object]) -> None:
        """Call this once there is no future of this client. For the engine's own thread."""
        self._when_unused = callback
        with self.lock:
            self._collect_dropped()

    def drop(self, state: KeyState) -> None:
        """One future less. Takes no lock, so that finalizers can call it.

        It is not worth waking anybody where results are coming in: it leaves with the next message, or soon.
        """
        self._dropped.append(state)
        if state.status == "error":
            self._failure_dropped = True
        if not self._sweeping:
            self.wake()

    async def _sweep(self) -> None:
        await trio.sleep(SWEEP_S)
        self._sweeping = False
        self.flush()

    # ------------------------------------------------------------------------------------------------ in the loop

    def check_open(self) -> None:
        """Raise `SchedulerLost` if there never was a scheduler, `RuntimeError` if it is closed or not open yet."""
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


def _say_nothing() -> None:
    """Only the first link is announced."""


def _handled(details: Mapping[str, Any]) -> int | None:
    """How many of our messages the scheduler has handled, if it goes on with us where the last link was cut.

    Raises `ProtocolError` for what is no number.
    """
    if details.get("returned") is not True:
        return None
    number = details.get("received")
    if type(number) is not int:
        raise ProtocolError(f"a scheduler that goes on with this client has handled {number!r} messages of it")
    return number
