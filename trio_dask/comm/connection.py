"""A connection: messages to and from one peer, in order, in batches.

    send_nowait -> outbox -> flush_nowait -> link -> one system call -> the peer       while the socket takes everything
                                              `-> the writer task -> the peer          once it does not

A handler of a batch appends its answers and flushes once; nothing else lies between a message and its system call.
What the socket does not take waits for the writer; what is flushed meanwhile gathers and leaves as large frames. Only
the writer continues a frame that was begun, and its scope ends only with the connection, whatever is cancelled around
it: half a frame would wedge the stream silently.

Where the transport allows it, other threads may send as well, which wakes no thread. A lock keeps frames whole; only
the connection's own loop touches waiting tasks.

This moves bytes. What they mean, what may be sent, what is due when, and how the connection ends is decided by
`protocol.link.Link`.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from trio_dask.comm.captured_error import CapturedError
from trio_dask.comm.shared_blobs import SharedBlobs, can_map_memory_of
from trio_dask.comm.transport import ConnectionLost, Transport
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import Allowed
from trio_dask.protocol.frames import Kind
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, Link, LinkLimits
from trio_dask.protocol.messages import Goodbye, Message


class Batches:
    """What a peer sends, batch by batch. Unlike a generator, it need not be closed."""

    __slots__ = ("_next",)

    def __init__(self, next_batch: Callable[[], Awaitable[list[Message]]]) -> None:
        self._next = next_batch

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> list[Message]:
        batch = await self._next()
        if not batch:
            raise StopAsyncIteration
        return batch


class Connection:
    """Messages to and from one peer. Enter it (`async with`) before use: the block hosts its two tasks.

    Leaving the block without `aclose` is a loss for the peer, unless the peer has said goodbye itself.

    `hello` is what the peer said of itself: a `Hello` on the accepting side, a `Welcome` on the calling side.
    """

    def __init__(
        self,
        transport: Transport,
        hello: Hello | Welcome,
        *,
        allowed: Allowed,
        limits: LinkLimits = DEFAULT_LIMITS,
        received: bytes = b"",
    ) -> None:
        self.hello = hello
        self.limits = limits
        self._transport = transport
        self._allowed = allowed
        self.link = Link(transport.remote, allowed, limits, trio.current_time(), self._take_shared)
        """What is known of the connection; only its times are for others."""
        self._received = received  # what came together with the hello
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        # Held while the outbox or what waits in the link changes, or a frame is begun. Reentrant, since beginning a
        # frame may show that nothing can be sent any more.
        self._sending = threading.RLock()
        self._outbox: list[Message] = []
        self._shared = SharedBlobs(allowed.who)
        self._can_map = can_map_memory_of(hello.memory)
        self._stuck = trio.lowlevel.ParkingLot()  # where the writer waits for a frame that was not sent whole
        self._progress = trio.lowlevel.ParkingLot()  # where others wait for the backlog to shrink

        self._left: trio.Event | None = None
        """Set once this side has closed; there is one as soon as it begins to."""
        self._receiving = False  # a task waits in `batches`
        self._discarding = False  # nobody will
        self._ended = trio.Event()  # `batches` has read the last byte
        self._block = self._host_tasks()
        self._tasks_scope = trio.CancelScope(shield=True)

    def __repr__(self) -> str:
        return f"<Connection with {self.remote}>"

    @property
    def goodbye(self) -> Goodbye | None:
        """What the peer said when it left, if it did."""
        return self.link.goodbye

    @property
    def remote(self) -> str:
        """The other end, for people."""
        return self._transport.remote

    @property
    def fd(self) -> int | None:
        """A descriptor that is readable whenever something has come, if there is one."""
        return self._transport.fd

    # ------------------------------------------------------------------------------------------------------ sending

    @property
    def thread_safe_send(self) -> bool:
        """Whether the `_nowait` methods may be called from any thread; else from that of the Trio loop only.

        A thread that is interrupted in one of them, as by Ctrl-C, must `abort` the connection.
        """
        return self._transport.thread_safe_send

    def send_nowait(self, message: Message, *, flush: bool = False) -> None:
        """Put a message into the outbox; without `flush`, nothing leaves before `flush_nowait`. Never blocks."""
        with self._sending:
            self._outbox.append(message)
        if flush:
            self.flush_nowait()

    def send_many_nowait(self, messages: Iterable[Message]) -> None:
        """Put messages into the outbox; nothing leaves before `flush_nowait`. Never blocks."""
        with self._sending:
            self._outbox += messages

    def flush_nowait(self) -> None:
        """Send everything in the outbox, as far as the socket takes it; the writer sends the rest. Never blocks.

        A peer that is gone is no error here: messages to it are dropped, and `batches` raises. Raises
        `SerializationError` for messages that cannot be sent at all, after sending the others; only a bug on this side
        can cause that.
        """
        if not self._outbox:
            return
        with self._sending:
            outbox, self._outbox = self._outbox, []
            now = self._clock.current_time()
            try:
                self.link.send(outbox, now)
            finally:
                self._send_frames(now)

    @property
    def backlog_bytes(self) -> int:
        """How much was flushed but not yet taken by the socket."""
        return self.link.backlog_bytes

    async def wait_backlog(self, at_most: int = 0) -> None:
        """Wait until no more than `at_most` bytes of what was flushed wait here, or the peer is gone.

        For bulk senders, which would otherwise hold in memory what the network has not taken yet.
        """
        await trio.lowlevel.checkpoint()
        while self.link.backlog_bytes > at_most:
            await self._progress.park()

    def _send_frames(self, now: float) -> None:
        """Send the frames that wait, under the lock; what the socket does not take is left to the writer."""
        link = self.link
        while frame := link.next_frame(now):
            try:
                sent = self._transport.try_send(frame)
            except (ConnectionLost, trio.ClosedResourceError):
                self._stop_sending()
                return
            if sent < len(frame):
                link.unsent = memoryview(frame)[sent:]
                self._in_loop(self._stuck.unpark)

    async def _write(self) -> None:
        link = self.link
        while True:
            if not link.unsent:
                await self._stuck.park()
            while rest := link.unsent:
                try:
                    await self._transport.send_all(rest)
                except (ConnectionLost, trio.ClosedResourceError):
                    self._stop_sending()
                    break
                with self._sending:
                    link.sent_at = trio.current_time()
                    link.unsent = None
                    link.unsent = memoryview(frame) if (frame := link.next_frame(link.sent_at)) else None
                self._progress.unpark_all()

    def _stop_sending(self) -> None:
        # What the peer sent before it went, perhaps a goodbye, can still be read: the loss is for `batches` to find.
        with self._sending:
            self._outbox.clear()
            self.link.stop_sending()
        self._in_loop(self._progress.unpark_all)

    def _in_loop(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._thread:
            function()
        else:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)

    # ---------------------------------------------------------------------------------------------------- receiving

    def batches(self) -> Batches:
        """Everything the peer sends: each time all messages that have arrived so far, at least one.

        Ends when the peer has said goodbye, and after `aclose` of this side. Raises `ConnectionLost` when the peer is
        gone without a goodbye, and `ProtocolError` when it sent what it may not. For one task at a time.
        """
        return Batches(self._next_batch)

    async def _next_batch(self) -> list[Message]:
        """The next batch; empty at the end."""
        return [] if self._discarding else await self._read_batch()

    async def _read_batch(self) -> list[Message]:
        link = self.link
        while link.goodbye is None:
            if self._received:
                data, self._received = self._received, b""
                await trio.lowlevel.checkpoint()
                batch = link.receive(data, self._clock.current_time())
            else:
                room = link.decoder.room
                self._receiving = True
                try:
                    data = b""
                    filled = 0
                    if room is None:
                        data = await self._transport.receive_some()
                    else:
                        filled = await self._transport.receive_into(room)
                except (ConnectionLost, trio.ClosedResourceError) as error:
                    if link.stream_ends(how := str(error)):
                        break
                    raise (error if link.loss == how else ConnectionLost(link.loss)) from None
                finally:
                    self._receiving = False
                if data or filled:
                    batch = link.receive(data, self._clock.current_time(), filled=filled)
                elif link.stream_ends(f"{self.remote} closed the connection unexpectedly"):
                    break
                else:
                    raise ConnectionLost(link.loss)
            if batch:
                return batch
        self._ended.set()
        return []

    def _take_shared(self, kind: int, payload: memoryview) -> list[Message]:
        """A frame about shared blobs: a piece of one of the peer's, or that the peer has mapped all of one of ours."""
        if kind == Kind.MAPPED:
            with self._sending:
                if payload:
                    self._shared.release(payload)
                else:
                    self.link.share_blobs(self._shared.offer)
            return []
        if not self._can_map:
            raise ProtocolError(f"{self._allowed.who} shares memory, which was not agreed on")
        blob, answers = self._shared.take(payload, self._allowed)
        for token in answers:
            self._send_mapped(token)
        return [blob]

    def _send_mapped(self, token: bytes) -> None:
        now = self._clock.current_time()
        with self._sending:
            self.link.send_own(Kind.MAPPED, token, now)
            self._send_frames(now)

    # ------------------------------------------------------------------------------------------------ life and death

    async def aclose(self, reason: str = "") -> None:
        """Say goodbye, deliver everything that was sent before, and close. Idempotent.

        Takes at most `cleanup_s`, also when cancelled. A task in `batches` receives what still arrives, and ends.
        """
        if self._left is not None:  # another task is closing it, perhaps in the middle of a frame
            await self._left.wait()
            return
        self._left = trio.Event()
        try:
            with trio.move_on_after(self.limits.cleanup_s, shield=True) as scope:
                self.flush_nowait()
                with self._sending:
                    self.link.say_goodbye(reason, now := self._clock.current_time())
                    self._send_frames(now)
                await self.wait_backlog()
                self._stop_sending()
                with suppress(ConnectionLost, trio.ClosedResourceError):
                    await self._wait_end()
            if scope.cancelled_caught:
                self._stop_sending()
                self._transport.abort()
            await self._transport.aclose()
        finally:
            self._left.set()

    async def _wait_end(self) -> None:
        """Wait for the peer to close, as it does once it has read the goodbye, or to say goodbye as well.

        Closing earlier could make the kernel reset the connection, because nobody reads what is still under way, and so
        drop the goodbye.
        """
        if self._receiving:
            await self._ended.wait()
            return
        self._discarding = True
        try:
            while await self._read_batch():
                pass
        except ProtocolError:
            while await self._transport.receive_some():
                pass

    def abort(self, reason: str = "given up by this side") -> None:
        """Close at once: a loss for the peer, and for `batches` a `ConnectionLost` with this reason."""
        with self._sending:
            self.link.give_up(reason)
        self._stop_sending()
        self._transport.abort()

    def __aenter__(self) -> Coroutine[Any, Any, Connection]:
        return self._block.__aenter__()

    def __aexit__(self, *error: Any) -> Coroutine[Any, Any, bool | None]:
        return self._block.__aexit__(*error)

    @asynccontextmanager
    async def _host_tasks(self) -> AsyncGenerator[Connection]:
        body = CapturedError()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_tasks)
            with body:
                if self._can_map:
                    self._send_mapped(b"")
                yield self
                if self.goodbye:
                    with trio.move_on_after(self.limits.cleanup_s):
                        await self.wait_backlog()
                    self._stop_sending()
                    await self._transport.aclose()
            self._stop_sending()
            self._transport.abort()
            self._tasks_scope.cancel()
            with self._sending:
                self._shared.clear()
        body.raise_it()

    async def _run_tasks(self) -> None:
        # The shield keeps cancellation around the block from the writer: `aclose` in the block may still need it.
        with self._tasks_scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        """Do what is due: say that we are alive, or give the peer up."""
        while True:
            await trio.sleep_until(self.link.next_deadline())
            now = trio.current_time()
            with self._sending:
                reason = self.link.tick(now, has_input=self._transport.has_input)
                if reason:
                    self.abort(reason)
                    return
                self._send_frames(now)
