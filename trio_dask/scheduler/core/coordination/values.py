"""Values in queues, variables and datasets, opaque, and on their way from there to clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key, PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Drop, Effects, Request, is_row

ITEM_BYTES: Final = 64
"""What a value takes of a message at least; so none has more of them than a list may have."""


class Item(NamedTuple):
    """A pickled value, and the keys of the futures in it, whose results are kept as long as it is here."""

    frames: tuple[bytes, ...]
    keys: tuple[Key, ...]

    @property
    def nbytes(self) -> int:
        """How much of a message it takes at most."""
        return ITEM_BYTES + sum(map(len, self.frames)) + sum([4 * len(key) for key in self.keys])


def item_of(given: Any) -> Item:
    """The item that a client has sent. Raises `ProtocolError` if it is none."""
    if is_row(given, tuple) and len(given) == 2 and is_row(given[0], bytes) and is_row(given[1], str):
        return Item(*given)
    raise ProtocolError("a value that is kept consists of frames and keys")


class Deliveries:
    """Answers that bring values. The results of futures in them are kept until the client has taken over."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._keys: dict[Request, tuple[Key, ...]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def deliver(self, request: Request, items: Iterable[Item]) -> None:
        """Answer with these values; their keys are kept already, once for this answer."""
        items = tuple(items)
        self._effects.append(Answer(request, "done", items))
        keys = tuple(key for item in items for key in item.keys)
        if keys:
            self._keys[request] = keys

    def taken(self, request: Request) -> None:
        """The client has futures of its own now. The request may be unknown."""
        keys = self._keys.pop(request, None)
        if keys is not None:
            self._effects.append(Drop(keys))

    def session_ended(self, peer: PeerId) -> None:
        """Nobody takes these over any more."""
        for request in [request for request in self._keys if request.peer == peer]:
            self.taken(request)

    def requests(self) -> Iterator[Request]:
        """Those whose answers have not been taken."""
        yield from self._keys
