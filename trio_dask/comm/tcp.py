"""`tcp://`: non-blocking sockets of the standard library, with Trio's `wait_readable` and `wait_writable`.

One wake-up takes everything that has arrived, and a send is a system call, not a task: both keep messages cheap. The
kernel chooses the sizes of the socket buffers; its tuning was as fast as any fixed size.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trio_dask.comm.addresses import Address, resolvable
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Bytes, ConnectionLost, Transport, TransportKind, register
from trio_dask.errors import UnavailableError

if TYPE_CHECKING:
    from trio_dask.comm.doorstep import Doorstep

SCHEME = "tcp"

_CHUNK = 64 * 2**10
_PASS = 256 * 2**10
_BACKLOG = 4096  # as many as the kernel grants; what finds no place there tries again after a second

# Notices a peer that vanishes while the connection is idle, as a data channel is between two uses.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class TcpTransport:
    """`Transport` over a connected TCP socket, which it owns.

    `peer` is what is known of the other end besides; its scheme is that of the transport on top of this one.
    """

    channel_binding = b""
    peer_units: frozenset[str] = frozenset()
    thread_safe_send = True

    def __init__(self, sock: socket.socket, peer: Address | None = None) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # on macOS a socket that was reset takes no options; its first use says what it is
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = sock
        self._closed = False
        self.remote, self.is_local = _peer_of(sock, peer)

    def __repr__(self) -> str:
        return f"<TcpTransport to {self.remote}>"

    @property
    def fd(self) -> int | None:
        return None if self._closed else self._socket.fileno()

    def try_send(self, data: Bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._failure(error) from error

    async def send_all(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                count = self.try_send(view[sent:])
                sent += count
                if not count:
                    await self.wait_writable()

    async def wait_writable(self) -> None:
        """Wait until `try_send` may take something again."""
        await self._wait(trio.lowlevel.wait_writable)

    async def receive_some(self) -> bytes:
        while True:
            await self._wait(trio.lowlevel.wait_readable)
            try:
                data = self._socket.recv(_CHUNK)
                if len(data) < _CHUNK:
                    return data
                return self._receive_more(data)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._failure(error) from error

    def _receive_more(self, data: bytes) -> bytes:
        """Go on as long as chunks are full: there may be more."""
        chunks = [data]
        while len(data) == _CHUNK and len(chunks) < _PASS // _CHUNK:
            try:
                data = self._socket.recv(_CHUNK)
            except OSError:
                # Nothing more for now; a lasting error shows again at the next receive.
                break
            chunks.append(data)
        return b"".join(chunks)

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            await self._wait(trio.lowlevel.wait_readable)
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._failure(error) from error

    def has_input(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def abort(self) -> None:
        if not self._closed:
            # Lingering for zero seconds makes the kernel reset the connection instead of finishing what is queued.
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close()

    async def aclose(self) -> None:
        if not self._closed:
            self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        self._closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        await wait(self._socket)

    def _failure(self, error: OSError) -> Exception:
        if self._closed:
            return trio.ClosedResourceError()
        return ConnectionLost(f"the connection to {self.remote} broke: {error.strerror or error}")


Build = Callable[[TcpTransport, trio.Nursery], Transport]
"""Makes the transport on top of a TCP connection; what it does in the background runs in the nursery."""


class TcpListener:
    """`Listener` on a bound socket, which it owns; `build` makes the transport on top of each connection."""

    def __init__(self, sock: socket.socket, scheme: str, build: Build) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._build = build
        host, port = sock.getsockname()[:2]
        self.address = Address(scheme, host, port)

    def attach(self, doorstep: Doorstep) -> None:
        doorstep.open(self._socket, self.address, self._open)

    def _open(self, sock: socket.socket, peer: Address, nursery: trio.Nursery) -> Transport:
        return self._build(TcpTransport(sock, peer), nursery)

    def close(self) -> None:
        self._socket.close()


def _nothing(tcp: TcpTransport, nursery: trio.Nursery) -> Transport:
    return tcp


def bind_tcp(endpoint: Endpoint, sock: socket.socket | None = None, build: Build = _nothing) -> list[TcpListener]:
    """Listen at every IP address of the host; for port 0 only at the first, IPv4 before IPv6.

    A socket that listens already is used instead. Raises `OSError`, naming the address and the reason in one line.
    """
    address = endpoint.address
    if sock is not None:
        return [TcpListener(sock, address.scheme, build)]
    try:
        found = socket.getaddrinfo(
            resolvable(address.host), address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OSError(error.errno, f"cannot listen at {address}: {_reason(error)}") from error
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    listeners: list[TcpListener] = []
    for family, _, _, _, sockaddr in found if address.port else found[:1]:
        try:
            sock = socket.create_server(sockaddr, family=family, backlog=_BACKLOG)
            listeners.append(TcpListener(sock, address.scheme, build))
        except OSError as error:
            # A kernel without IPv6 resolves such addresses all the same.
            if listeners and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            for listener in listeners:
                listener.close()
            raise OSError(error.errno, f"cannot listen at {address}: {_reason(error)}") from error
    return listeners


def check_host_is_here(host: str) -> None:
    """Raise `UnavailableError` if no listener can be bound to this host."""
    try:
        family, kind, protocol, _, sockaddr = socket.getaddrinfo(
            resolvable(host), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(sockaddr)
    except OSError as error:
        raise UnavailableError(f"cannot listen at {host!a}: {_reason(error)}") from error


async def connect_tcp(endpoint: Endpoint, nursery: trio.Nursery | None = None) -> TcpTransport:
    """Connect to whichever of the host's addresses answers first; this runs no tasks.

    Raises `OSError`, caused by the errors of the single addresses.
    """
    address = endpoint.address
    stream = await trio.open_tcp_stream(resolvable(address.host) or "", address.port)
    return TcpTransport(socket.socket(fileno=stream.socket.detach()), address)


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; give another one, or 0 for any free one"
        case errno.EADDRNOTAVAIL:
            return "no network interface of this machine has that address"
        case errno.EACCES:
            return "not permitted; ports below 1024 usually need root"
        case _ if isinstance(error, socket.gaierror):
            return "unknown host name"
        case code:
            return os.strerror(code) if code else str(error)


def _peer_of(sock: socket.socket, known: Address | None) -> tuple[str, bool]:
    """The name of the other end, and whether it has our own address."""
    scheme = known.scheme if known else SCHEME
    try:
        host, port = sock.getpeername()[:2]
        return str(Address(scheme, host, port)), host == sock.getsockname()[0]
    except OSError:
        # Gone already; the first use of the transport will say so.
        return str(known) if known else f"{scheme}://(gone)", False


register(TransportKind(SCHEME, connect_tcp, bind_tcp))
