"""An event: set or not; requests wait until it is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Effects, Request, unknown


class Event:
    """It is forgotten while it is not set and nothing waits for it."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._is_set = False
        self._waiting: dict[Request, None] = {}

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        value: bool | None = None
        match operation, arguments:
            case "wait", ():
                if not self._is_set:
                    self._waiting[request] = None
                    return
                value = True
            case "set", ():
                self._is_set = True
                waiting, self._waiting = self._waiting, {}
                self._effects += [Answer(waiter, "done", True) for waiter in waiting]
            case "clear", ():
                self._is_set = False
            case "is_set", ():
                value = self._is_set
            case _:
                raise unknown(operation, arguments)
        self._effects.append(Answer(request, "done", value))

    def end(self, request: Request) -> None:
        if request in self._waiting:
            del self._waiting[request]
            self._effects.append(Answer(request, "ended"))

    def taken(self, request: Request) -> None: ...

    def session_ended(self, peer: PeerId) -> None:
        for request in [request for request in self._waiting if request.peer == peer]:
            del self._waiting[request]

    @property
    def is_unused(self) -> bool:
        return not self._is_set and not self._waiting

    def requests(self) -> Iterator[Request]:
        yield from self._waiting

    def check(self) -> None:
        assert not self._is_set or not self._waiting, "requests wait for an event that is set"
