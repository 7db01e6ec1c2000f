"""`inproc://name`: two ends inside one Trio run that behave like those of TCP.

The buffer between them is bounded; the other end can read what is left after a close, but not after an abort. The same
frames cross it as cross a network, so that nothing works here that would fail there.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

import trio

from trio_dask.comm.addresses import Address
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Bytes, ConnectionLost, TransportKind, register

if TYPE_CHECKING:
    from trio_dask.comm.doorstep import Doorstep

SCHEME = "inproc"

_CAPACITY = 2**20
_PASS = 256 * 2**10

_listeners: trio.lowlevel.RunVar[dict[str, MemoryListener]] = trio.lowlevel.RunVar("trio_dask.comm.inproc")
_homes: dict[str, trio.lowlevel.TrioToken] = {}
_numbers = count(1)


class _Pipe:
    """One direction: bytes on their way from a sender to a receiver."""

    def __init__(self, capacity: int) -> None:
        self.room = capacity
        self.pieces: deque[bytes] = deque()
        self.ended = False  # the sender sends no more
        self.broken = False  # one of the two is gone
        self.changed = trio.lowlevel.ParkingLot()

    def put(self, data: Bytes) -> int:
        piece = bytes(memoryview(data)[: self.room])
        if piece:
            self.room -= len(piece)
            self.pieces.append(piece)
            self.changed.unpark_all()
        return len(piece)

    def take(self, limit: int) -> bytes:
        taken: list[bytes] = []
        while limit and self.pieces:
            piece = self.pieces.popleft()
            if len(piece) > limit:
                self.pieces.appendleft(piece[limit:])
                piece = piece[:limit]
            limit -= len(piece)
            self.room += len(piece)
            taken.append(piece)
        self.changed.unpark_all()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def end(self, *, broken: bool) -> None:
        self.ended = True
        self.broken |= broken
        if broken:
            self.pieces.clear()
        self.changed.unpark_all()


class MemoryTransport:
    """`Transport` to another part of the same program."""

    channel_binding = b""
    peer_units: frozenset[str] = frozenset()
    thread_safe_send = False
    fd = None

    def __init__(self, remote: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.remote = remote
        self.is_local = False  # the other end is no other process
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryTransport to {self.remote}>"

    def try_send(self, data: Bytes) -> int:
        self._check()
        if self._outgoing.broken:
            raise ConnectionLost(f"the connection to {self.remote} broke: the other end is closed")
        return self._outgoing.put(data)

    async def send_all(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                taken = self.try_send(view[sent:])
                sent += taken
                if not taken:
                    await self._outgoing.changed.park()

    async def receive_some(self) -> bytes:
        return await self._receive(_PASS)

    async def receive_into(self, buffer: memoryview) -> int:
        data = await self._receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def _receive(self, limit: int) -> bytes:
        incoming = self._incoming
        if self._closed or self.has_input():
            await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if incoming.pieces:
                return incoming.take(limit)
            if incoming.broken:
                raise ConnectionLost(f"the connection to {self.remote} broke: the other end is gone")
            if incoming.ended:
                return b""
            await incoming.changed.park()

    def has_input(self) -> bool:
        return bool(self._incoming.pieces) or self._incoming.ended

    def abort(self) -> None:
        self._close(lose=True)

    async def aclose(self) -> None:
        # What the peer sent and nobody read makes the other end see a loss, as a TCP reset would.
        self._close(lose=bool(self._incoming.pieces))
        await trio.lowlevel.checkpoint()

    def _close(self, *, lose: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._outgoing.end(broken=lose)
        self._incoming.end(broken=True)

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError


class _MemoryStranger:
    """`Stranger` in another part of the same program. It need not speak to be heard: it costs no more than a task."""

    def __init__(self, transport: MemoryTransport, host: str) -> None:
        self.host = host
        self.remote = transport.remote
        self.has_input = transport.has_input
        self.abort = transport.abort
        self._transport = transport

    def open(self, nursery: trio.Nursery) -> MemoryTransport:
        return self._transport


class MemoryListener:
    """`Listener` under a name in this Trio run."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._waiting: deque[MemoryTransport] = deque()
        self._doorstep: Doorstep | None = None
        self._closed = False

    def connect(self) -> MemoryTransport:
        """The caller's end of a new connection."""
        mine, theirs = memory_pair(str(self.address), f"{self.address}#{next(_numbers)}")
        self._waiting.append(theirs)
        self._bring()
        return mine

    def attach(self, doorstep: Doorstep) -> None:
        self._doorstep = doorstep
        self._bring()

    def _bring(self) -> None:
        while self._doorstep is not None and self._waiting:
            stranger = _MemoryStranger(self._waiting.popleft(), self.address.host)
            self._doorstep.arrive(stranger)
            self._doorstep.speak(stranger)
            self._doorstep.attend()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _names().pop(self.address.host, None)
        _homes.pop(self.address.host, None)
        while self._waiting:
            self._waiting.popleft().abort()


def memory_pair(
    near: str = f"{SCHEME}://near", far: str = f"{SCHEME}://far", *, capacity: int = _CAPACITY
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends; the first one's remote is `near`, the second one's `far`."""
    there, back = _Pipe(capacity), _Pipe(capacity)
    return MemoryTransport(near, incoming=back, outgoing=there), MemoryTransport(far, incoming=there, outgoing=back)


def inproc_address(name: str) -> Address:
    """The address of this name in whichever Trio run it is used."""
    return Address(SCHEME, name)


def bind_memory(address: Address) -> MemoryListener:
    """Listen under the name. Raises `OSError` if the name is in use in this Trio run."""
    names = _names()
    if address.host in names:
        raise OSError(f"cannot listen at {address}: the name is in use")
    names[address.host] = MemoryListener(address)
    _homes[address.host] = trio.lowlevel.current_trio_token()
    return names[address.host]


def home_of(address: Address) -> trio.lowlevel.TrioToken | None:
    """The Trio run of this program, in whichever thread, that has a listener at this address, if one has.

    Only tasks of that run can connect there.
    """
    return _homes.get(address.host) if address.scheme == SCHEME else None


def _listen(endpoint: Endpoint, sock: socket.socket | None) -> list[MemoryListener]:
    return [bind_memory(endpoint.address)]


async def connect_memory(endpoint: Endpoint, nursery: trio.Nursery | None = None) -> MemoryTransport:
    """Connect to the listener of that name; this runs no tasks.

    Raises `ConnectionRefusedError` if there is none in this Trio run.
    """
    await trio.lowlevel.checkpoint()
    address = endpoint.address
    listener = _names().get(address.host)
    if listener is None:
        raise ConnectionRefusedError(f"nothing listens at {address} in this program")
    return listener.connect()


def _names() -> dict[str, MemoryListener]:
    try:
        return _listeners.get()
    except LookupError:
        _listeners.set({})
        return _listeners.get()


register(TransportKind(SCHEME, connect_memory, _listen, is_in_process=True))

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_homes.clear)  # a parent's Trio runs do not continue in its child
