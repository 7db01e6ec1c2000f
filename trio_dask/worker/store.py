"""The results that this worker holds.

A value is there as an object, or *frozen*: as the frames in which it came from a peer or a client, until a task needs
it. The core decides what is held and knows the sizes; the store only has the values. Slot threads read while the
worker's own thread writes. Values that were spilled to disk would be another kind of frozen ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trio_dask.identity import Key
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import dump_value, load_value

__all__ = ["Frames", "Store"]

Frames = Sequence[Buffer]
"""A pickle and its out-of-band buffers."""


class _Frozen:
    """A value that nobody here has needed yet. Its lock is held while the first who does makes the object."""

    __slots__ = ("frames", "thawing")

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.thawing = threading.Lock()


class Store(Mapping[Key, Any]):
    """Values by key; reading one by subscript thaws it."""

    def __init__(self) -> None:
        self._entries: dict[Key, Any] = {}
        self._replacing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._entries))

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: Key) -> Any:
        """The value as an object. Unpickling runs in the calling thread.

        Raises:
          KeyError: it is not here.
          BaseException: whatever unpickling raises.
        """
        entry = self._entries[key]
        return self._thaw(key, entry) if type(entry) is _Frozen else entry

    def put(self, key: Key, value: Any) -> None:
        """Keep an object."""
        self._entries[key] = value

    def put_frames(self, key: Key, frames: Frames) -> None:
        """Keep a value that came in pickled form."""
        self._entries[key] = _Frozen(frames)

    def drop(self, keys: Iterable[Key]) -> None:
        """Let go of these values. Whoever reads one at this moment still gets it."""
        with self._replacing:
            gone = [self._entries.pop(key, None) for key in keys]
        del gone  # outside of the lock: the end of a value may run any code

    def dump(self, key: Key) -> Frames:
        """The value in pickled form, without a copy where that is possible.

        Raises:
          KeyError: it is not here.
          SerializationError: it cannot be pickled.
        """
        entry = self._entries[key]
        return entry.frames if type(entry) is _Frozen else dump_value(entry)

    def _thaw(self, key: Key, entry: _Frozen) -> Any:
        with entry.thawing:
            current = self._entries.get(key)
            if type(current) is not _Frozen and current is not None:
                return current  # another slot was faster
            value = load_value(entry.frames)
            with self._replacing:
                if self._entries.get(key) is entry:
                    self._entries[key] = value
            return value
