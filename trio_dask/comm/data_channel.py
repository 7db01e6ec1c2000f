"""Values between two processes: one request at a time, and the bytes of a value straight into their final place.

This moves bytes; what may come, and what goes out in which order, is decided by `protocol.data_link`. Between processes
of one machine large buffers need not cross the connection: the sender offers its memory, see `cross_memory_attach`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import trio

from trio_dask.comm.transport import Bytes, ConnectionLost, PeerSilent, Transport, first_error
from trio_dask.errors import ProtocolError
from trio_dask.protocol.data_link import SMALL_BYTES, Announced, DataLink, check_announced, frame_of, pieces
from trio_dask.protocol.frames import PING_FRAME
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.protocol.messages import Goodbye, MemoryOffered, MemoryRead, Message, OnDataPlane

if TYPE_CHECKING:
    from trio_dask.comm.cross_memory_attach import MemoryOffer

_T = TypeVar("_T")

Room = Callable[[int], AbstractAsyncContextManager[None]]
"""Waits until there is room for this many bytes, and reserves it."""

_OFFERED_BYTES = 2**20
"""Smaller values cross a socket in the time that it takes to ask for them and to have a thread read them."""

_POOLED_BYTES = 4 * 2**20
"""Smaller buffers come from the allocator of C, which keeps memory itself."""


class DataChannel:
    """A connection for values. Its creator closes it, with `aclose` or `async with`.

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
        self._limits = limits
        self._link = DataLink(max_bytes, received)
        self._offers_memory = transport.is_local
        self._announced: Announced | None = None
        """A message that has come, without its buffers."""
        self._unsent: list[Bytes] = []
        """Small pieces that wait for what is sent after them."""
        self._unsent_bytes = 0

    def __repr__(self) -> str:
        return f"<DataChannel with {self.remote}>"

    @property
    def remote(self) -> str:
        """The other end, for people."""
        return self._transport.remote

    def go_both_ways(self) -> None:
        """From now on one task sends while another receives: memory is not offered, since its reader would answer."""
        self._offers_memory = False

    async def send(self, message: OnDataPlane, buffers: Iterable[Bytes] = (), *, more: bool = False) -> None:
        """Send a message and the bytes that its `sizes` announce, without copying large buffers.

        With `more`, another call comes soon: small messages may wait for it, and leave together.
        A checkpoint only if the network does not take everything at once, or the peer reads large buffers by itself.
        Raises `ConnectionLost` when the peer is gone or takes nothing for `silence_s`, and `ValueError` if the sizes
        are not those of the buffers.
        """
        views = [_flat(buffer) for buffer in buffers]
        check_announced(message, views)
        frame = frame_of(message)
        size = len(frame) + sum(map(len, views))
        if more and self._unsent_bytes + size <= SMALL_BYTES:
            self._unsent += (frame, *views)
            self._unsent_bytes += size
            return
        if self._unsent:
            frame = b"".join((*self._unsent, frame))
            self._unsent, self._unsent_bytes = [], 0
        with self._whole_or_closed():
            offer = self._offer(views)
            if offer is not None:
                if await self._offer_memory(offer, frame):
                    return
                frame = b""  # the peer has it already
            for piece in pieces(frame, views):
                await self._send_piece(piece)

    async def flush(self) -> None:
        """Send what waits for another `send`."""
        if self._unsent:
            piece = b"".join(self._unsent)
            self._unsent, self._unsent_bytes = [], 0
            with self._whole_or_closed():
                await self._send_piece(piece)

    async def receive(self, room: Room | None = None) -> tuple[Message, list[memoryview]]:
        """The next message and its buffers, each in writeable memory of its own.

        Waits for the first byte without limit; then the peer may not pause longer than `silence_s`. Large buffers are
        received within a block of `room(size)`, which may wait until there is memory for them. Raises
        `trio.EndOfChannel` when the peer has left between two messages, `ConnectionLost` if it is gone otherwise, and
        `ProtocolError` when it sent what it may not, or announced more than `max_bytes`.
        """
        with self._whole_or_closed():
            if self._announced is None and not self._link.has_received:
                data = await self._transport.receive_some()
                if not data:
                    raise trio.EndOfChannel
                self._link.receive(data)
            announced, self._announced = self._announced, None
            if announced is None:
                announced = await self._receive_until(self._link.next_announced)
            message, sizes, offer = announced
            if isinstance(message, Goodbye):
                raise trio.EndOfChannel
            if offer is not None:
                return message, await self._read_offered(sizes, offer, room)
            async with room(sum(sizes)) if room and sum(sizes) > SMALL_BYTES else nullcontext():
                buffers = [_allocate(size) for size in sizes]
                await self._fill(buffers)
                return message, buffers

    def receive_nowait(self) -> tuple[Message, list[memoryview]] | None:
        """The next message and its buffers, as `receive` gives it, if all of it has come; else None.

        Raises `ProtocolError` when the peer sent what it may not.
        """
        link = self._link
        if self._announced is None:
            if not link.has_received:
                return None
            with self._whole_or_closed():
                self._announced = link.next_announced()
        found = self._announced
        if found is None or found.offer is not None or isinstance(found.message, Goodbye):
            return None
        if sum(found.sizes) > link.received_bytes:
            return None
        self._announced = None
        buffers = [_allocate(size) for size in found.sizes]
        for buffer in buffers:
            link.fill(buffer)
        return found.message, buffers

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

    # ----------------------------------------------------------------------------------------------- offered memory

    def _offer(self, views: list[memoryview]) -> MemoryOffer | None:
        """An offer of these buffers; None if they are to be sent."""
        if not self._offers_memory or sum(map(len, views)) < _OFFERED_BYTES:
            return None
        # Imported here, because most processes never move that much.
        from trio_dask.comm.cross_memory_attach import MemoryOffer, can_offer

        return MemoryOffer(views) if can_offer(views) else None

    async def _offer_memory(self, offer: MemoryOffer, frame: bytes) -> bool:
        """Have the peer read the buffers. If it cannot, returns False, and memory is not offered again."""
        with offer:
            await self._send_piece(frame_of(offer.terms) + frame)
            answer = await self._receive_until(self._link.next_message)
        if not isinstance(answer, MemoryRead):
            raise ProtocolError(f"a {type(answer).__name__} came in answer to an offer of memory")
        self._offers_memory = answer.ok
        return answer.ok

    async def _read_offered(self, sizes: tuple[int, ...], offer: MemoryOffered, room: Room | None) -> list[memoryview]:
        """Read the offered buffers; where that fails, have them sent.

        Waiting for room, or reading from a disk, may take longer than the sender waits for a silent peer. So pings tell
        it meanwhile that we are alive.
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
                    ok = await trio.to_thread.run_sync(read_remote, offer, buffers, abandon_on_cancel=True)
                    async with sending:
                        answered.set()
                        await self._send_piece(frame_of(MemoryRead(ok)))
                    if not ok:
                        await self._fill(buffers)
        except BaseExceptionGroup as group:  # the nursery is ours; callers expect the error in it
            raise first_error(group) from None
        return buffers

    async def _ping_until(self, answered: trio.Event, sending: trio.Lock) -> None:
        while True:
            with trio.move_on_after(self._limits.keepalive_s):
                await answered.wait()
                return
            async with sending:
                if not answered.is_set():
                    await self._send_piece(PING_FRAME)

    # ---------------------------------------------------------------------------------------------------- receiving

    async def _receive_until(self, found: Callable[[], _T | None]) -> _T:
        """Receive more until `found` gives something."""
        while (result := found()) is None:
            await self._receive_more()
        return result

    async def _fill(self, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            while missing := self._link.fill(buffer):
                buffer = missing
                if len(buffer) < SMALL_BYTES:
                    await self._receive_more()
                    continue
                with self._in_time():
                    count = await self._transport.receive_into(buffer)
                buffer = buffer[self._more_than_none(count) :]

    async def _receive_more(self) -> None:
        with self._in_time():
            data = await self._transport.receive_some()
        self._more_than_none(len(data))
        self._link.receive(data)

    def _more_than_none(self, count: int) -> int:
        if not count:
            raise ConnectionLost(f"{self.remote} closed the connection in the middle of a message")
        return count

    @contextmanager
    def _in_time(self, otherwise: str = "paused in the middle of a message") -> Generator[None]:
        with trio.move_on_after(self._limits.silence_s) as scope:
            yield
        if scope.cancelled_caught:
            raise PeerSilent(f"{self.remote} {otherwise} for {self._limits.silence_s:g} s")

    @contextmanager
    def _whole_or_closed(self) -> Generator[None]:
        try:
            yield
        except BaseException:  # whatever it is, the position on the stream is unknown now
            self.abort()
            raise


def _flat(buffer: Bytes) -> memoryview:
    view = memoryview(buffer)
    # A view with a zero in its shape cannot be cast, and need not be.
    return view.cast("B") if view.nbytes else memoryview(b"")


def _allocate(size: int) -> memoryview:
    """Writeable memory for one buffer; nobody may see what it holds before it was filled.

    The first touch of fresh memory costs more than receiving into it. So large buffers reuse memory that was released
    shortly before, or else are huge pages where there are such.
    """
    if size < _POOLED_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    # Imported here, because most processes never receive that much.
    from trio_dask.comm.buffer_pool import pool

    return pool.allocate(size)
