"""Locks of several names at once. One table has all of them, so that no two requests can wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Effects, Request, is_row, unknown


class Wish(NamedTuple):
    """So many of these names."""

    number: int
    names: tuple[str, ...]


class MultiLocks:
    """The locks of all names. A request gets all that it wants at once, or waits.

    A request takes no name that an earlier one waits for, so each is served in its turn.
    """

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._holders: dict[str, Request] = {}
        """Of the names that are held."""
        self._held: dict[Request, tuple[str, ...]] = {}
        self._waiting: dict[Request, Wish] = {}

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "acquire", (names, int(number), bool(waits)) if is_row(names, str) and 0 < number <= len(set(names)):
                self._waiting[request] = Wish(number, tuple(dict.fromkeys(names)))
                self._give_free_names()
                if not waits and request in self._waiting:
                    del self._waiting[request]
                    self._effects.append(Answer(request, "done", ()))
            case _:
                raise unknown(operation, arguments)

    def _give_free_names(self) -> None:
        awaited: dict[str, None] = {}
        for request, (number, names) in list(self._waiting.items()):
            free = [name for name in names if name not in self._holders and name not in awaited]
            if len(free) < number:
                awaited.update(dict.fromkeys(names))
                continue
            del self._waiting[request]
            self._held[request] = got = tuple(free[:number])
            self._holders.update(dict.fromkeys(got, request))
            self._effects.append(Answer(request, "done", got))

    def end(self, request: Request) -> None:
        if request in self._waiting:
            self._effects.append(Answer(request, "ended"))
        self._forget(request)
        self._give_free_names()

    def taken(self, request: Request) -> None: ...

    def session_ended(self, peer: PeerId) -> None:
        for request in [request for request in (*self._waiting, *self._held) if request.peer == peer]:
            self._forget(request)
        self._give_free_names()

    def _forget(self, request: Request) -> None:
        self._waiting.pop(request, None)
        for name in self._held.pop(request, ()):
            del self._holders[name]

    @property
    def is_unused(self) -> bool:
        return not self._held and not self._waiting

    def requests(self) -> Iterator[Request]:
        yield from self._held
        yield from self._waiting

    def check(self) -> None:
        held = [name for names in self._held.values() for name in names]
        assert len(held) == len(self._holders), "a name is held twice"
        first = next(iter(self._waiting.values()), None)
        if first is not None:
            free = [name for name in first.names if name not in self._holders]
            assert len(free) < first.number, "the first request waits for names that are free"
