"""A variable: one value, or none; requests wait until it has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Drop, Effects, Keep, Request, unknown
from trio_dask.scheduler.core.coordination.values import Deliveries, Item, item_of


class Variable:
    """It is forgotten while it has no value and nothing waits for one."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._item: Item | None = None
        self._waiting: dict[Request, None] = {}
        self._deliveries = Deliveries(effects)

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "set", (given,):
                item = item_of(given)
                self._effects.append(Keep(item.keys))
                self._delete()
                self._item = item
                waiting, self._waiting = self._waiting, {}
                for waiter in waiting:
                    self._deliver(waiter, item)
                self._effects.append(Answer(request, "done"))
            case "get", (bool(waits),):
                if self._item is not None:
                    self._deliver(request, self._item)
                elif waits:
                    self._waiting[request] = None
                else:
                    self._deliveries.deliver(request, ())
            case "delete", ():
                self._delete()
                self._effects.append(Answer(request, "done"))
            case _:
                raise unknown(operation, arguments)

    def _deliver(self, request: Request, item: Item) -> None:
        self._effects.append(Keep(item.keys))
        self._deliveries.deliver(request, (item,))

    def _delete(self) -> None:
        if self._item is not None:
            self._effects.append(Drop(self._item.keys))
            self._item = None

    def end(self, request: Request) -> None:
        if request in self._waiting:
            del self._waiting[request]
            self._effects.append(Answer(request, "ended"))

    def taken(self, request: Request) -> None:
        self._deliveries.taken(request)

    def session_ended(self, peer: PeerId) -> None:
        self._deliveries.session_ended(peer)
        for request in [request for request in self._waiting if request.peer == peer]:
            del self._waiting[request]

    @property
    def is_unused(self) -> bool:
        return self._item is None and not self._waiting and not self._deliveries

    def requests(self) -> Iterator[Request]:
        yield from self._waiting
        yield from self._deliveries.requests()

    def check(self) -> None:
        assert self._item is None or not self._waiting, "requests wait for a value that is there"
