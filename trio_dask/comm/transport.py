"""What every transport can do, and the one way in which it fails."""

from __future__ import annotations

from typing import Protocol, cast

from trio_dask.comm.addresses import Address
from trio_dask.errors import TrioDaskError

__all__ = ["Bytes", "ConnectionLost", "Listener", "PeerSilent", "Transport", "first_error"]

Bytes = bytes | bytearray | memoryview


class ConnectionLost(TrioDaskError, ConnectionError):
    """The other side is gone without a goodbye, or has been given up; the message says how that showed."""


class PeerSilent(ConnectionLost):
    """It has not answered in time. It may be busy: whether it is lost is for those to say who watch it."""


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
    def any_thread_sends(self) -> bool:
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


class Listener(Protocol):
    """Where peers connect."""

    @property
    def address(self) -> Address:
        """Where this listens, with the port that was chosen."""
        ...

    async def accept(self) -> Transport:
        """The next peer. Raises `OSError` if there is one but it cannot be taken now."""
        ...

    def close(self) -> None:
        """Stop listening. Idempotent."""
        ...


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in a group, or in the groups in it, of a nursery that ends with the first one anyway."""
    error = group.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        return first_error(cast("BaseExceptionGroup[BaseException]", error))
    return error
