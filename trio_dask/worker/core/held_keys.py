"""What this worker holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from trio_dask.ids import Key, RunId


class Held(NamedTuple):
    """A value held here: its pickled size, the run that made it, if one did, and its type, if known."""

    nbytes: int
    run: RunId | None
    type_name: str = ""


class HeldKeys(Mapping[Key, Held]):
    """The keys that are here; `nbytes` is the size of all of them."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._held: dict[Key, Held] = {}
        self.results: dict[RunId, Key] = {}
        """The keys that are results of runs here, by run: the inverse of `Held.run`."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def __getitem__(self, key: Key) -> Held:
        return self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def add(self, key: Key, nbytes: int, run: RunId | None = None, type_name: str = "") -> None:
        """A value is here, and replaces an earlier one of this key."""
        if key in self._held:
            self.drop(key)
        self._held[key] = Held(nbytes, run, type_name)
        self.nbytes += nbytes
        if run is not None:
            self.results[run] = key

    def drop(self, key: Key) -> bool:
        """Drop a value; False if it is not here."""
        held = self._held.pop(key, None)
        if held is None:
            return False
        self.nbytes -= held.nbytes
        if held.run is not None:
            del self.results[held.run]
        return True

    def clear(self) -> tuple[Key, ...]:
        """Drop everything, and return the keys."""
        keys = tuple(self._held)
        self._held.clear()
        self.results.clear()
        self.nbytes = 0
        return keys
