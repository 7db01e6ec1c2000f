"""The results that this worker holds.

A value has one of three forms:

    an object       as a task made it, or a reader got it
    pickled         the frames in which it came from a peer or a client, until a task needs it
    spilled         a file on disk, with the same frames

The core decides what is held and knows the sizes; the store only has the values. Slot threads read while the worker's
own thread writes, and one more thread spills. Where the store has a disk, values worth a file have an `_Entry`, and
those in memory are in `_recent`, least recently used first; all others cost only an item of a dict. A value that was
read back keeps its file, so that it can be spilled again at no cost.

`_lock` guards the entries' fields, `_recent` and the counts. Nothing slow happens under it: no pickling, no reading or
writing, and no value dies, as that may run any code.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import trio

from trio_dask.errors import SpillError
from trio_dask.ids import Key
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import copied_bytes, dump_value, load_value
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.serial_loading import load_alone, may_import
from trio_dask.worker.spill_files import SpillDisk, SpilledFile

Frames = Sequence[Buffer]
"""A pickle and its out-of-band buffers."""

WORTH_A_FILE_BYTES = 8 * 2**10
"""Smaller values stay in memory: a file takes a tenth of a millisecond, and at least a page of cache."""


class Spilled(NamedTuple):
    """What a call of `ResultStore.spill` achieved: the bytes that left memory, and the problem that stopped it, if any.

    The problem is text: the traceback of an exception would keep the value alive that was to go.
    """

    nbytes: int
    problem: str


class _Gone(Exception):
    """The file of a value is gone; the value was lost, dropped or replaced."""


_NOTHING: Any = object()
"""Marks the absence of an object."""


class _Entry:
    """A value that is not a mere object in the dict. The thread that unpickles its frames holds `making`."""

    __slots__ = ("alive", "copied_bytes", "file", "frames", "key", "making", "nbytes", "stays", "value")

    def __init__(
        self, key: Key, nbytes: int, value: Any = _NOTHING, frames: Frames | None = None, copied_bytes: int = 0
    ) -> None:
        self.key = key
        self.nbytes = nbytes
        self.copied_bytes = copied_bytes
        self.value = value
        self.frames = frames
        self.file: SpilledFile | None = None
        self.alive: Callable[[], Any] | None = None  # a weak reference: a spilled value may still be in use
        self.making = threading.Lock()
        self.stays = False  # it cannot be written to disk

    @property
    def in_memory(self) -> bool:
        return self.value is not _NOTHING or self.frames is not None


class ResultStore(Mapping[Key, Any]):
    """Values by key; a subscript gives the object, whatever form the value has.

    `disk` is where `spill` puts values; without one they stay in memory. `request_check` is called, in any thread, when
    the values that can be spilled exceed `high_bytes`, and when values were found to be lost. Unpickling that takes
    `reserve_from` bytes or more reserves them first.
    """

    def __init__(
        self,
        disk: SpillDisk | None = None,
        *,
        high_bytes: float = inf,
        request_check: Callable[[], object] = lambda: None,
        reservations: Reservations | None = None,
        reserve_from: int = 0,
    ) -> None:
        self._disk = disk
        self._high_bytes = high_bytes
        self._request_check = request_check
        self._reservations = reservations
        self._reserve_from = reserve_from
        self._entries: dict[Key, Any] = {}
        self._wrapped = 0  # the number of _Entry objects among them
        self._recent: OrderedDict[Key, _Entry] = OrderedDict()
        self.large_bytes = 0
        """Size of the values in memory that are worth a file."""
        self.spilled_bytes = 0
        """Size of the values that are only on disk."""
        self.spilled_count = 0
        """The number of values that are only on disk."""
        self._lost: list[Key] = []
        self._lock = threading.Lock()
        self._from_bytes = sys.maxsize if disk is None else WORTH_A_FILE_BYTES

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._entries))

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: Key) -> Any:
        """The value as an object. The calling thread reads it from disk and unpickles it if needed.

        Raises:
          KeyError: it is not here, or was lost on disk.
          SpillError: it is on disk and cannot be read.
          BaseException: whatever unpickling raises.
        """
        entry = self._entries[key]
        if type(entry) is not _Entry:
            return entry
        value = entry.value
        if value is not _NOTHING:
            with self._lock:
                self._mark_used(entry)
            return value
        try:
            return self._make(entry)
        except _Gone:
            pass
        return self[key]  # there may be another value by now

    def is_spilled(self, key: Key) -> bool:
        """Whether this value is only on disk."""
        entry = self._entries.get(key)
        return type(entry) is _Entry and not entry.in_memory

    def is_pickled(self, key: Key) -> bool:
        """Whether this value is in memory in the pickled form in which it came."""
        entry = self._entries.get(key)
        return type(entry) is _Entry and entry.frames is not None

    def copied_bytes(self, key: Key) -> int:
        """About how much memory `dump` takes for this value."""
        entry = self._entries.get(key)
        return entry.copied_bytes if type(entry) is _Entry and entry.value is not _NOTHING else 0

    # ------------------------------------------------------------------------------------------ in and out

    def put(self, key: Key, value: Any, nbytes: int, copied_bytes: int = 0) -> None:
        """Keep an object of this pickled size; `dump` will take `copied_bytes` of memory."""
        if nbytes < self._from_bytes and not (self._wrapped and type(self._entries.get(key)) is _Entry):
            self._entries[key] = value
        else:
            worth_it = nbytes >= self._from_bytes
            self._replace(key, _Entry(key, nbytes, value, None, copied_bytes) if worth_it else value)

    def put_frames(self, key: Key, frames: Frames, nbytes: int) -> None:
        """Keep a value that came in pickled form."""
        self._replace(key, _Entry(key, nbytes, frames=frames))

    def _replace(self, key: Key, entry: Any) -> None:
        with self._lock:
            old = self._entries.get(key)
            if type(old) is _Entry:
                self._count_out(old)
            self._entries[key] = entry
            if type(entry) is _Entry:
                self._wrapped += 1
                self._add_in_memory(entry)
            full = self.large_bytes > self._high_bytes
        del old  # outside of the lock
        if full:
            self._request_check()

    def drop(self, keys: Iterable[Key]) -> None:
        """Drop these values. A thread that reads one at this moment still gets it."""
        gone: list[Any] = []
        with self._lock:
            for key in keys:
                gone.append(self._entries.pop(key, None))
                if type(gone[-1]) is _Entry:
                    self._count_out(gone[-1])
        del gone  # outside of the lock

    def dump(self, key: Key) -> Frames:
        """The value in pickled form, without a copy where possible; a spilled one as it is in its file.

        Raises:
          KeyError: it is not here, or was lost on disk.
          SerializationError: it cannot be pickled.
          SpillError: it is on disk and cannot be read.
        """
        entry = self._entries[key]
        if type(entry) is not _Entry:
            return dump_value(entry)
        with self._lock:
            value, frames, file = entry.value, entry.frames, entry.file
            self._mark_used(entry)
        if frames is not None:
            return frames
        if value is not _NOTHING:
            return dump_value(value)
        try:
            return self._read(entry, file)
        except _Gone:
            pass
        return self.dump(key)  # there may be another value by now

    def take_lost(self) -> tuple[Key, ...]:
        """The keys found to be lost on disk since the last call; they are not here any more."""
        with self._lock:
            lost, self._lost = tuple(self._lost), []
        return lost

    # ------------------------------------------------------------------------------------------ back to an object

    def _make(self, entry: _Entry) -> Any:
        with entry.making:
            value = entry.value
            if value is not _NOTHING:
                return value  # another slot was faster
            with self._lock:
                frames, file, alive = entry.frames, entry.file, entry.alive
            value = None if alive is None else alive()
            if value is None:
                frames = self._read(entry, file) if frames is None else frames
                entry.copied_bytes = copied_bytes([memoryview(frame).nbytes for frame in frames])
                value = self._load(frames, entry.copied_bytes)
                del frames
            with self._lock:
                was_spilled = not entry.in_memory
                entry.value, entry.frames, entry.alive = value, None, None
                if self._entries.get(entry.key) is not entry:
                    return value
                if entry.nbytes < self._from_bytes:
                    self._entries[entry.key] = value
                    self._wrapped -= 1
                elif was_spilled:
                    self.spilled_bytes -= entry.nbytes
                    self.spilled_count -= 1
                    self._add_in_memory(entry)
                else:
                    self._mark_used(entry)
                full = self.large_bytes > self._high_bytes
        if full:
            self._request_check()
        return value

    def _load(self, frames: Frames, copied_bytes: int) -> Any:
        if self._reservations is None or copied_bytes < self._reserve_from or trio.lowlevel.in_trio_run():
            return load_frames(frames)
        self._reservations.reserve(copied_bytes)
        try:
            return load_frames(frames)
        finally:
            self._reservations.release(copied_bytes)

    def _read(self, entry: _Entry, file: SpilledFile | None) -> Frames:
        assert self._disk is not None, "a value is neither in memory nor on disk"
        assert file is not None, "a value is neither in memory nor on disk"
        try:
            return self._disk.read(file)
        except (FileNotFoundError, NotADirectoryError):
            self._lose(entry, file)
            raise _Gone from None
        except OSError as error:
            raise SpillError(f"cannot read {entry.key!r} back from {file.path}: {error.strerror or error}") from error

    def _lose(self, entry: _Entry, file: SpilledFile) -> None:
        with self._lock:
            if self._entries.get(entry.key) is not entry or entry.file is not file:
                return  # dropped while it was read, or in memory again without this file
            if entry.in_memory:
                entry.file = None
                return
            del self._entries[entry.key]
            self._count_out(entry)
            self._lost.append(entry.key)
        self._request_check()

    # ------------------------------------------------------------------------------------------ to the disk

    def spill(self, nbytes: int, *, also_used: bool = False) -> Spilled:
        """Move this many bytes of values from memory to disk, least recently used first.

        Values with other references, such as those of a running task, would not make room, and are skipped unless
        `also_used`. For the thread that spills; only one calls this at a time.
        """
        disk = self._disk
        if disk is None:
            return Spilled(0, "")
        disk.remove_garbage()
        freed = 0
        with self._lock:
            candidates = list(self._recent.values())
        candidates.reverse()
        while candidates and freed < nbytes:
            entry = candidates.pop()
            if not also_used and _is_used(entry):
                continue
            try:
                freed += self._spill(disk, entry)
            except SpillError as error:
                if not self._drop_reusable_files(disk):
                    return Spilled(freed, str(error))
                candidates.append(entry)
        return Spilled(freed, "")

    def remove_garbage(self) -> None:
        """Remove the files of values that are not needed any more. For the thread that spills."""
        if self._disk is not None:
            self._disk.remove_garbage()

    @property
    def has_garbage(self) -> bool:
        """Whether `remove_garbage` has something to do."""
        return self._disk is not None and self._disk.has_garbage

    def _spill(self, disk: SpillDisk, entry: _Entry) -> int:
        nbytes = entry.nbytes
        with self._lock:
            if self._recent.get(entry.key) is not entry:
                return 0  # dropped meanwhile
            del self._recent[entry.key]  # if it is back there later, it was used meanwhile
            value, frames, file = entry.value, entry.frames, entry.file
        if file is None:
            try:
                file = disk.write_value(value, nbytes) if frames is None else disk.write(frames)
            except SpillError:
                with self._lock:
                    self._mark_used(entry)
                    if self._recent.get(entry.key) is entry:
                        self._recent.move_to_end(entry.key, last=False)
                raise
            except Exception:  # pickling runs the user's code, which may fail this time: the value stays in memory
                entry.stays = True
                return 0
        with self._lock:
            if self._entries.get(entry.key) is not entry:
                disk.remove(file)
                return 0
            entry.file = file
            if entry.key in self._recent:
                return 0
            entry.value, entry.frames = _NOTHING, None
            entry.alive = _weak(value)
            self.large_bytes -= nbytes
            self.spilled_bytes += nbytes
            self.spilled_count += 1
        return nbytes

    def _drop_reusable_files(self, disk: SpillDisk) -> bool:
        """Make room on a bounded disk: remove the files of values that were read back. False if there is none."""
        if not disk.bounded:
            return False
        before = disk.used_bytes
        with self._lock:
            for entry in self._recent.values():
                if entry.file is not None and not entry.file.mappings:
                    disk.remove(entry.file)
                    entry.file = None
        disk.remove_garbage()
        return disk.used_bytes < before

    # ------------------------------------------------------------------------------------------ under the lock

    def _add_in_memory(self, entry: _Entry) -> None:
        """A value is in memory now."""
        if entry.nbytes >= self._from_bytes:
            self.large_bytes += entry.nbytes
            self._mark_used(entry)

    def _mark_used(self, entry: _Entry) -> None:
        """A value was used, unless it was dropped or replaced meanwhile."""
        if entry.nbytes < self._from_bytes or entry.stays or not entry.in_memory:
            return
        if self._entries.get(entry.key) is entry:
            self._recent[entry.key] = entry
            self._recent.move_to_end(entry.key)

    def _count_out(self, entry: _Entry) -> None:
        """An entry is not in the dict any more. Its value lives until the caller drops it."""
        self._wrapped -= 1
        self._recent.pop(entry.key, None)
        if entry.nbytes >= self._from_bytes:
            if entry.in_memory:
                self.large_bytes -= entry.nbytes
            else:
                self.spilled_bytes -= entry.nbytes
                self.spilled_count -= 1
        if entry.file is not None and self._disk is not None:
            self._disk.remove(entry.file)


def load_frames(frames: Frames) -> Any:
    """The value of these frames. Raises whatever unpickling raises."""
    return load_alone(load_value, frames) if may_import(frames[0]) else load_value(frames)


def _weak(value: Any) -> Callable[[], Any] | None:
    """A weak reference to the object, if its type allows one."""
    if value is _NOTHING:
        return None
    try:
        return weakref.ref(value)
    except TypeError:  # this type has none
        return None


def _references(entry: _Entry) -> int:
    return sys.getrefcount(entry.value if entry.frames is None else entry.frames)


_UNUSED = _references(_Entry(Key(""), 0, object()))
"""The count where only the store has a reference, with those that this interpreter adds."""


def _is_used(entry: _Entry) -> bool:
    return _references(entry) > _UNUSED
