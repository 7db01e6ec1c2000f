"""What every transport can do, the one way in which it fails, and the registry of the kinds there are.

A kind of transport is one file of this folder, which registers itself when it is imported, and a line in `__init__.py`
that imports it. Only that file spells its scheme.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, cast

import trio

from trio_dask.errors import ProtocolError, TrioDaskError

if TYPE_CHECKING:
    from trio_dask.comm.addresses import Address
    from trio_dask.comm.doorstep import Doorstep
    from trio_dask.comm.endpoint import Endpoint


Bytes = bytes | bytearray | memoryview


class ConnectionLost(TrioDaskError, ConnectionError):
    """The other side is gone without a goodbye, or has been given up; the message says how that showed."""


class NoTlsError(ProtocolError):
    """A caller could not agree on TLS with what listens there."""


class PeerSilent(ConnectionLost):
    """The peer has not answered in time. It may only be busy: whether it is lost is decided where it is watched."""


class Transport(Protocol):
    """A stream of bytes to one peer, in order, each way.

    At most one task receives and one sends at a time. Every method raises `ConnectionLost` when the peer is gone, and
    `trio.ClosedResourceError` once this side has closed or aborted, also in a task that was waiting.
    A cancelled receive has taken nothing; a cancelled `send_all` has sent an unknown part.
    """

    @property
    def remote(self) -> str:
        """The other end, for people."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether the other end seems to be another process of this machine; a tunnel may make it seem so."""
        ...

    @property
    def channel_binding(self) -> bytes:
        """Under TLS the SHA-256 of the listener's certificate, as this end has seen it; empty otherwise."""
        ...

    @property
    def peer_units(self) -> frozenset[str]:
        """The organizational units in a verified certificate of the peer."""
        ...

    @property
    def thread_safe_send(self) -> bool:
        """Whether `try_send` may be called from any thread, by one at a time, and not while this is being closed."""
        ...

    @property
    def fd(self) -> int | None:
        """A descriptor that is readable whenever something has come, if there is one."""
        ...

    def try_send(self, data: Bytes) -> int:
        """Send what can be sent without waiting; returns how many bytes that was, perhaps 0.

        Of what was not taken a part may be under way, so the next bytes to be sent must be the rest.
        """
        ...

    async def send_all(self, data: Bytes) -> None:
        """Send everything, waiting as long as it takes."""
        ...

    async def receive_some(self) -> bytes:
        """All bytes that are there, up to a bound that keeps the event loop fair; waits for the first.

        Empty at the end of the stream.
        """
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Like `receive_some`, into a buffer that is not empty; returns how much of it was filled, 0 at the end."""
        ...

    def has_input(self) -> bool:
        """Whether a receive would return at once."""
        ...

    def abort(self) -> None:
        """Close at once. What was not yet sent is lost, and the peer sees a loss. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Close; what was sent still arrives. Idempotent."""
        ...


class Stranger(Protocol):
    """A peer that has connected, before anybody has spoken with it."""

    @property
    def host(self) -> str:
        """What it has in common with other peers of the same origin."""
        ...

    @property
    def remote(self) -> str:
        """The other end, for people."""
        ...

    def open(self, nursery: trio.Nursery) -> Transport:
        """Make a transport of it; what that does in the background runs in `nursery`."""
        ...

    def has_input(self) -> bool:
        """Whether it has sent what nobody has received yet."""
        ...

    def abort(self) -> None:
        """Close at once, also the transport."""
        ...


class Listener(Protocol):
    """Where peers connect."""

    @property
    def address(self) -> Address:
        """Where this listens, with the port that was chosen."""
        ...

    def attach(self, doorstep: Doorstep) -> None:
        """From now on, bring all that connect to that doorstep."""
        ...

    def close(self) -> None:
        """Stop listening. Idempotent."""
        ...


Connect: TypeAlias = "Callable[[Endpoint, trio.Nursery], Awaitable[Transport]]"
Listen: TypeAlias = "Callable[[Endpoint, socket.socket | None], Sequence[Listener]]"


class TransportKind(NamedTuple):
    """How to connect and to listen at the addresses of one scheme.

    `connect` raises `OSError` if nothing can be reached there, and `ProtocolError` if something else listens there.
    Until it is closed, a transport may run tasks in the nursery that it was given; they raise nothing.

    `listen` raises `OSError`, naming the address and the reason. Where there is a socket that listens already, it uses
    that one.
    """

    scheme: str
    connect: Connect
    listen: Listen
    is_encrypted: bool = False
    is_in_process: bool = False
    """Whether both ends are in one Trio run; an address then is a name and has no port."""


TRANSPORTS: dict[str, TransportKind] = {}
"""Every kind of transport, by scheme."""


def register(kind: TransportKind) -> None:
    """Make a kind of transport known under its scheme."""
    TRANSPORTS[kind.scheme] = kind


def register_late(scheme: str, load: Callable[[], tuple[Connect, Listen]], *, is_encrypted: bool = False) -> None:
    """Make a kind of transport known whose code `load` imports, at the first use."""

    async def connect(endpoint: Endpoint, nursery: trio.Nursery) -> Transport:
        return await load()[0](endpoint, nursery)

    def listen(endpoint: Endpoint, sock: socket.socket | None) -> Sequence[Listener]:
        return load()[1](endpoint, sock)

    register(TransportKind(scheme, connect, listen, is_encrypted))


def first_error(error: BaseException) -> BaseException:
    """The first exception in a group, or in the groups in it, of a nursery that ends with the first one anyway."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def let_go(error: BaseException | None) -> None:
    """Drop the traceback of an error that its transport keeps, once nobody raises it any more.

    The frames in it hold the transport. Thousands of peers that fail would be garbage for a collection that comes late.
    """
    if error is not None:
        error.__traceback__ = None
