"""Published datasets: values that clients keep here by name, with the results of the futures in them.

One table has all of them, so that several are published together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Drop, Effects, Keep, Request, is_row, unknown
from trio_dask.scheduler.core.coordination.values import Deliveries, Item, item_of

_PLAIN: Final = (str, bytes, int, float)


class Datasets:
    """They outlive the clients that published them. No request waits here."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._items: dict[Any, Item] = {}
        self._deliveries = Deliveries(effects)

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "publish", (given, bool(override)):
                self._publish(request, _entries(given), override=override)
            case "get", (name,):
                item = self._items.get(_name(name))
                if item is not None:
                    self._effects.append(Keep(item.keys))
                self._deliveries.deliver(request, () if item is None else (item,))
            case "delete", _:
                for name in [_name(name) for name in arguments]:
                    if (item := self._items.pop(name, None)) is not None:
                        self._effects.append(Drop(item.keys))
                self._effects.append(Answer(request, "done"))
            case "names", ():
                self._effects.append(Answer(request, "done", tuple(self._items)))
            case _:
                raise unknown(operation, arguments)

    def _publish(self, request: Request, entries: dict[Any, Item], *, override: bool) -> None:
        """Answer with the names that were in use; unless there were none, or `override`, nothing is published."""
        taken = tuple(name for name in entries if name in self._items)
        if override or not taken:
            replaced = [self._items[name] for name in taken]
            # First: what is in both would be released in between.
            self._effects += [Keep(item.keys) for item in entries.values()]
            self._effects += [Drop(item.keys) for item in replaced]
            self._items |= entries
        self._effects.append(Answer(request, "done", () if override else taken))

    def end(self, request: Request) -> None: ...

    def taken(self, request: Request) -> None:
        self._deliveries.taken(request)

    def session_ended(self, peer: PeerId) -> None:
        self._deliveries.session_ended(peer)

    @property
    def is_unused(self) -> bool:
        return not self._items and not self._deliveries

    def requests(self) -> Iterator[Request]:
        yield from self._deliveries.requests()

    def check(self) -> None: ...


def _entries(given: Any) -> dict[Any, Item]:
    if not is_row(given, tuple) or not all(len(entry) == 2 for entry in given):
        raise ProtocolError("datasets are pairs of a name and a value")
    return {_name(name): item_of(item) for name, item in given}


def _name(given: Any) -> Any:
    """The name of a dataset: text, bytes, a number, or a tuple of these. Raises `ProtocolError` for anything else."""
    if isinstance(given, tuple):
        return tuple(map(_name, cast("tuple[object, ...]", given)))
    if not isinstance(given, _PLAIN) or given != given:
        raise ProtocolError(f"a dataset has no such name: {given!r:.40}")
    return given
