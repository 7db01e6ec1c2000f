"""A queue: values come out in the order in which they went in, to requests in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Drop, Effects, Keep, Request, is_row, unknown
from trio_dask.scheduler.core.coordination.values import Deliveries, Item, item_of

LARGEST_BATCH_BYTES: Final = 32 * 2**20
"""A batch is complete when its values are larger than this: an answer is one message."""


@dataclass(slots=True)
class Batch:
    """What a request has got so far, and how many values it wants."""

    count: int
    items: list[Item] = field(default_factory=list[Item])
    nbytes: int = 0

    def add(self, item: Item) -> None:
        """Take one more value."""
        self.items.append(item)
        self.nbytes += item.nbytes

    @property
    def is_complete(self) -> bool:
        """Whether it takes no more."""
        return len(self.items) >= self.count or self.nbytes > LARGEST_BATCH_BYTES


class Queue:
    """With a maximal size, which the first request that names one sets, it lasts until it is closed.

    Without one it is forgotten while it is empty, and nothing waits for it.
    """

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._max_size = 0
        self._items: deque[Item] = deque()
        self._putting: dict[Request, Item] = {}
        self._getting: dict[Request, Batch] = {}
        self._deliveries = Deliveries(effects)

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "put", (given, int(max_size), bool(waits)) if max_size >= 0:
                self._put(request, item_of(given), max_size, waits=waits)
            case "get", (int(count), bool(waits)) if count >= 0:
                self._get(request, count, waits=waits)
            case "get_all", ():
                count = 0 if self._getting else len(self._items) + len(self._putting)
                self._get(request, count, waits=False)
            case "unget", (given,) if is_row(given, tuple):
                items = [item_of(item) for item in given]
                self._effects.append(Keep(tuple(key for item in items for key in item.keys)))
                self._items.extendleft(reversed(items))
                self._move()
                self._effects.append(Answer(request, "done"))
            case "qsize", ():
                self._effects.append(Answer(request, "done", len(self._items)))
            case "close", ():
                self._close()
                self._effects.append(Answer(request, "done"))
            case _:
                raise unknown(operation, arguments)

    def _put(self, request: Request, item: Item, max_size: int, *, waits: bool) -> None:
        self._max_size = self._max_size or max_size
        if not waits and not self._has_room():
            self._effects.append(Answer(request, "done", False))
            return
        if item.keys:
            self._effects.append(Keep(item.keys))
        self._putting[request] = item
        self._move()

    def _get(self, request: Request, count: int, *, waits: bool) -> None:
        if not waits and (self._getting or len(self._items) + len(self._putting) < count):
            self._deliveries.deliver(request, ())
            return
        self._getting[request] = Batch(count)
        self._move()

    def _has_room(self) -> bool:
        return bool(self._getting) or not self._max_size or len(self._items) < self._max_size

    def _move(self) -> None:
        """Move values from requests into the queue, and from there to requests, as far as they go."""
        while True:
            if self._getting:
                request, batch = next(iter(self._getting.items()))
                if batch.is_complete:
                    del self._getting[request]
                    self._deliveries.deliver(request, batch.items)
                    continue
                if self._items:
                    batch.add(self._items.popleft())
                    continue
            if not self._putting or not self._has_room():
                return
            request = next(iter(self._putting))
            self._items.append(self._putting.pop(request))
            self._effects.append(Answer(request, "done", True))

    def _close(self) -> None:
        for request in (*self._getting, *self._putting):
            self._effects.append(Answer(request, "closed", "this queue was closed"))
        batches = [item for batch in self._getting.values() for item in batch.items]
        for item in (*batches, *self._items, *self._putting.values()):
            if item.keys:
                self._effects.append(Drop(item.keys))
        self._getting.clear()
        self._items.clear()
        self._putting.clear()
        self._max_size = 0

    def _forget(self, requests: list[Request]) -> None:
        """These requests wait no longer; what they had got is the next that comes out."""
        for request in reversed(requests):
            if request in self._getting:
                self._items.extendleft(reversed(self._getting.pop(request).items))
            elif (item := self._putting.pop(request, None)) is not None and item.keys:
                self._effects.append(Drop(item.keys))

    def end(self, request: Request) -> None:
        if request in self._getting or request in self._putting:
            self._forget([request])
            self._effects.append(Answer(request, "ended"))
            self._move()

    def taken(self, request: Request) -> None:
        self._deliveries.taken(request)

    def session_ended(self, peer: PeerId) -> None:
        self._deliveries.session_ended(peer)
        self._forget([request for request in (*self._getting, *self._putting) if request.peer == peer])
        self._move()

    @property
    def is_unused(self) -> bool:
        return not (self._max_size or self._items or self._putting or self._getting or self._deliveries)

    def requests(self) -> Iterator[Request]:
        yield from self._getting
        yield from self._putting
        yield from self._deliveries.requests()

    def check(self) -> None:
        assert not self._getting or not self._items, "requests wait for values that are there"
        assert not self._putting or not self._has_room(), "values wait for room that is there"
