"""What every kind of primitive has in common: requests, what becomes of them, and the protocol of a primitive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key, PeerId


class Request(NamedTuple):
    """A `Coordinate` request: of which session, and its number there. It names the lease that it got, too."""

    peer: PeerId
    number: int


class Answer(NamedTuple):
    """The answer to a request: its outcome is `done`, `refused`, `closed` or `ended`."""

    request: Request
    outcome: str
    value: Any = None


class Keep(NamedTuple):
    """Keep the results of these keys, once more for each time."""

    keys: tuple[Key, ...]


class Drop(NamedTuple):
    """Keep the results of these keys no longer, once less for each time."""

    keys: tuple[Key, ...]


Effect: TypeAlias = Answer | Keep | Drop
Effects: TypeAlias = list[Effect]


class Primitive(Protocol):
    """One lock, event, queue, ... of one name. It tells what happens by appending to its list of effects."""

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        """Begin a request.

        Raises `ProtocolError`, with the state unchanged, if there is no such operation, or its arguments are wrong.
        """
        ...

    def end(self, request: Request) -> None:
        """End a request that waits here, or release what it got. It may be unknown."""
        ...

    def taken(self, request: Request) -> None:
        """The client has taken over the futures in the values that the answer brought. It may be unknown."""
        ...

    def session_ended(self, peer: PeerId) -> None:
        """End all requests of a session."""
        ...

    @property
    def is_unused(self) -> bool:
        """Whether it is as good as a new one, and can be forgotten."""
        ...

    def requests(self) -> Iterator[Request]:
        """All requests that it remembers."""
        ...

    def check(self) -> None:
        """Raise `AssertionError` if what must hold between any two events does not."""
        ...


def is_row(value: Any, kind: type[Any]) -> bool:
    """Whether this is a tuple of values of one type."""
    return isinstance(value, tuple) and {kind}.issuperset(map(type, cast("tuple[object, ...]", value)))


def unknown(operation: str, arguments: tuple[Any, ...]) -> ProtocolError:
    """The error to raise for an operation that a primitive does not have."""
    return ProtocolError(f"no such operation, or wrong arguments: {operation!r:.40} {arguments!r:.60}")
