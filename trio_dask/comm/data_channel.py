"""Values between two processes: one request at a time, and the bytes of a value straight into their final place.

A message that has `sizes` is followed by that many raw bytes, unframed: first the pickle, then each out-of-band buffer.
Between processes of one machine large ones need not cross the connection: the sender offers its memory, see
`cross_memory_attach`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import trio

from trio_dask.comm.transport import Bytes, ConnectionLost, PeerSilent, Transport, first_error
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import DATA_PLANE, decode, encode
from trio_dask.protocol.frames import PING_FRAME, Kind, encode_frame, first_frame
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.protocol.messages import (
    Call,
    CallResult,
    Goodbye,
    MemoryOffered,
    MemoryRead,
    Message,
    OnDataPlane,
    Put,
    Value,
)
from trio_dask.protocol.wire_constants import MAX_BUFFERS

if TYPE_CHECKING:
    from trio_dask.comm.cross_memory_attach import MemoryOffer


Room = Callable[[int], AbstractAsyncContextManager[None]]
"""Waits until there is room for this many bytes, and reserves it."""

_PIECE = 4 * 2**20
"""What one call sends at most. Over TLS a larger piece would stall the event loop while it is encrypted."""

_SMALL = 64 * 2**10
_OFFERED_BYTES = 2**20
"""Less crosses a socket in the time that it takes to ask for it and to have a thread read it."""

_MAX_MESSAGE = 2**20

_PAUSED = "paused in the middle of a message"
_LARGE_BYTES = 4 * 2**20
"""What is smaller comes from the allocator of C, which keeps memory itself."""


class DataChannel:
    """A connection for values. Whoever made it closes it, with `aclose` or `async with`.

    A `send` or `receive` that fails, by cancellation or otherwise, closes the channel: its position on the stream is
    unknown then.
    """

    def __init__(
        self,
        transport: Transport,
        hello: Hello | Welcome,
        *,
        max_bytes: int | None = None,
        limits: LinkLimits = DEFAULT_LIMITS,
        received: bytes = b"",
    ) -> None:
        self.hello = hello
        self._transport = transport
        self._max_bytes = max_bytes
        self._silence_s = limits.silence_s
        self._keepalive_s = limits.keepalive_s
        self._received = memoryview(received)  # what has come beyond what was asked for
        self._offers_memory = transport.is_local

    def __repr__(self) -> str:
        return f"<DataChannel with {self.remote}>"

    @property
    def remote(self) -> str:
        """The other end, for people."""
        return self._transport.remote

    async def send(self, message: OnDataPlane, buffers: Iterable[Bytes] = ()) -> None:
        """Send a message and the bytes that its `sizes` announce, without copying what is large.

        A checkpoint only if the network does not take everything at once, or the peer reads what is large by itself.
        Raises `ConnectionLost` when the peer is gone or takes nothing for `silence_s`, and `ValueError` if the sizes
        are not those of the buffers.
        """
        views = [_flat(buffer) for buffer in buffers]
        if tuple(map(len, views)) != _sizes(message):
            raise ValueError(f"a {type(message).__name__} announces {_sizes(message)} bytes, not {[*map(len, views)]}")
        frame = _frame(message)
        with self._whole_or_closed():
            offer = self._offer(views)
            if offer is not None:
                if await self._offer_memory(offer, frame):
                    return
                frame = b""  # the peer has it already
            for piece in _pieces(frame, views):
                await self._send_piece(piece)

    async def receive(self, room: Room | None = None) -> tuple[Message, list[memoryview]]:
        """The next message and its buffers, each in writeable memory of its own.

        Waits for the first byte without limit; then the peer may not pause longer than `silence_s`. Large buffers are
        received within a block of `room(size)`, which may wait until there is memory for them. Raises
        `trio.EndOfChannel` when the peer has left between two messages, `ConnectionLost` if it is gone otherwise, and
        `ProtocolError` when it sent what it may not, or announced more than `max_bytes`.
        """
        with self._whole_or_closed():
            if not self._received:
                self._received = memoryview(await self._transport.receive_some())
                if not self._received:
                    raise trio.EndOfChannel
            message = await self._receive_message()
            if isinstance(message, Goodbye):
                raise trio.EndOfChannel
            terms = None
            if isinstance(message, MemoryOffered):
                terms, message = message, await self._receive_message()
            sizes = self._checked_sizes(message)
            if terms is not None and len(terms.places) != len(sizes):
                raise ProtocolError(f"{len(terms.places)} buffers were offered for the {len(sizes)} of a message")
            if terms is not None:
                return message, await self._read_offered(sizes, terms, room)
            if room is None or sum(sizes) <= _SMALL:
                return message, await self._receive_buffers(sizes)
            async with room(sum(sizes)):
                return message, await self._receive_buffers(sizes)

    def abort(self) -> None:
        """Close at once. Idempotent."""
        self._transport.abort()

    async def aclose(self) -> None:
        """Close; what was sent still arrives. Idempotent."""
        await self._transport.aclose()

    async def __aenter__(self) -> DataChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _send_piece(self, piece: Bytes) -> None:
        sent = self._transport.try_send(piece)
        if sent < len(piece):
            with self._in_time("took nothing"):
                await self._transport.send_all(memoryview(piece)[sent:])

    def _offer(self, views: list[memoryview]) -> MemoryOffer | None:
        """None if they are to be sent."""
        if not self._offers_memory or sum(map(len, views)) < _OFFERED_BYTES:
            return None
        # Imported here, because most processes never move that much.
        from trio_dask.comm.cross_memory_attach import MemoryOffer, can_offer

        return MemoryOffer(views) if can_offer(views) else None

    async def _offer_memory(self, offer: MemoryOffer, frame: bytes) -> bool:
        """Have the peer read the buffers. If it cannot, returns False, and memory is not offered again."""
        with offer:
            await self._send_piece(_frame(offer.terms) + frame)
            answer = await self._receive_message()
        if not isinstance(answer, MemoryRead):
            raise ProtocolError(f"a {type(answer).__name__} came in answer to an offer of memory")
        self._offers_memory = answer.ok
        return answer.ok

    async def _read_offered(self, sizes: tuple[int, ...], terms: MemoryOffered, room: Room | None) -> list[memoryview]:
        """Read the offered buffers; where that fails, have them sent.

        Waiting for room, or reading what lies on a disk, may take longer than the sender waits for a silent peer. So
        pings tell it meanwhile that we are alive.
        """
        from trio_dask.comm.cross_memory_attach import read_remote

        answered = trio.Event()
        sending = trio.Lock()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ping_until, answered, sending)
                async with room(sum(sizes)) if room is not None else nullcontext():
                    buffers = [_allocate(size) for size in sizes]
                    # Given up, the thread goes on for a while, into memory that nobody else knows.
                    ok = await trio.to_thread.run_sync(read_remote, terms, buffers, abandon_on_cancel=True)
                    async with sending:
                        answered.set()
                        await self._send_piece(_frame(MemoryRead(ok)))
                    if not ok:
                        await self._fill_all(buffers)
        except BaseExceptionGroup as group:  # the nursery is ours; callers expect the error in it
            raise first_error(group) from None
        return buffers

    async def _ping_until(self, answered: trio.Event, sending: trio.Lock) -> None:
        while True:
            with trio.move_on_after(self._keepalive_s):
                await answered.wait()
                return
            async with sending:
                if not answered.is_set():
                    await self._send_piece(PING_FRAME)

    async def _receive_buffers(self, sizes: tuple[int, ...]) -> list[memoryview]:
        buffers = [_allocate(size) for size in sizes]
        await self._fill_all(buffers)
        return buffers

    async def _fill_all(self, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            await self._fill(buffer)

    async def _receive_message(self) -> Message:
        while True:
            while (found := first_frame(self._received, _MAX_MESSAGE)) is None:
                await self._receive_more()
            frame, end = found
            self._received = self._received[end:]
            messages = decode(frame.payload, DATA_PLANE) if frame.kind == Kind.RECORDS else []
            if len(messages) > 1:
                raise ProtocolError("several messages came in one frame of the data plane")
            if messages:
                return messages[0]

    def _checked_sizes(self, message: Message) -> tuple[int, ...]:
        sizes = _sizes(message)
        if len(sizes) > MAX_BUFFERS or min(sizes, default=0) < 0:
            raise ProtocolError(f"a {type(message).__name__} announced impossible sizes")
        if self._max_bytes is not None and sum(sizes) > self._max_bytes:
            raise ProtocolError(
                f"a {type(message).__name__} announced {sum(sizes)} bytes; {self._max_bytes} is the limit"
            )
        return sizes

    async def _fill(self, buffer: memoryview) -> None:
        while True:
            count = min(len(buffer), len(self._received))
            buffer[:count] = self._received[:count]
            self._received = self._received[count:]
            buffer = buffer[count:]
            if not buffer:
                return
            if len(buffer) < _SMALL:
                await self._receive_more()
                continue
            with self._in_time(_PAUSED):
                count = await self._transport.receive_into(buffer)
            if not count:
                raise self._cut_off()
            buffer = buffer[count:]

    async def _receive_more(self) -> None:
        with self._in_time(_PAUSED):
            data = await self._transport.receive_some()
        if not data:
            raise self._cut_off()
        self._received = memoryview(bytes(self._received) + data if self._received else data)

    def _cut_off(self) -> ConnectionLost:
        return ConnectionLost(f"{self.remote} closed the connection in the middle of a message")

    @contextmanager
    def _in_time(self, otherwise: str) -> Generator[None]:
        with trio.move_on_after(self._silence_s) as scope:
            yield
        if scope.cancelled_caught:
            raise PeerSilent(f"{self.remote} {otherwise} for {self._silence_s:g} s")

    @contextmanager
    def _whole_or_closed(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise


def _frame(message: Message) -> bytes:
    return encode_frame(Kind.RECORDS, encode((message,)))


def _sizes(message: Message) -> tuple[int, ...]:
    return message.sizes if isinstance(message, Value | Put | Call | CallResult) else ()


def _flat(buffer: Bytes) -> memoryview:
    view = memoryview(buffer)
    # A view with a zero in its shape cannot be cast, and need not be.
    return view.cast("B") if view.nbytes else memoryview(b"")


def _pieces(frame: bytes, views: list[memoryview]) -> Iterator[Bytes]:
    """What to send, in order: small things together, large ones in parts."""
    small: list[Bytes] = [frame]
    size = len(frame)
    for view in views:
        if size + len(view) > _SMALL:
            yield b"".join(small)
            small.clear()
            size = 0
        if len(view) > _SMALL:
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]
        else:
            small.append(view)
            size += len(view)
    if small:
        yield b"".join(small)


def _allocate(size: int) -> memoryview:
    """Writeable memory for one buffer; nobody may see what it holds before it was filled.

    The first touch of fresh memory costs more than receiving into it. So large buffers reuse memory that was released
    shortly before, or else are huge pages where there are such.
    """
    if size < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    # Imported here, because most processes never receive that much.
    from trio_dask.comm.buffer_pool import pool

    return pool.allocate(size)
