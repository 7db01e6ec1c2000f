"""Values on disk: one file each, with the frames of the pickle one after the other.

Writing and removing happen in one thread at a time, reading in any. A value is written while it is pickled: it goes to
disk because memory is short, so there must be no second copy of it. A file is read by mapping it: the value's arrays
then are pages of the file, private to this process once written to, and take memory only where they are used. Before it
is mapped the file is read through once, so that a thread which touches the pages later, perhaps while it holds the GIL,
need not wait for the disk.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase, BufferedWriter, FileIO
from typing import TYPE_CHECKING, Any

from trio_dask.errors import SpillError
from trio_dask.parsing import format_bytes
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import stream_value
from trio_dask.worker.spill_directory import SpillDirectory

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ALIGNMENT = 64
"""Of the start of each frame: arrays keep the alignment that they have in memory."""

PIECE_BYTES = 8 * 2**20
"""The most that one call writes, so that a worker that ends need not wait for long."""

GATHERED_BYTES = 256 * 2**10
"""Smaller output is gathered up to this size."""

MAP_BYTES = 256 * 2**10
"""Smaller files are read into memory: a mapping costs a descriptor and an entry in the kernel's table."""

MAX_MAPPINGS = 1000
_READ_BYTES = 2**20


class SpilledFile:
    """The file of a spilled value."""

    __slots__ = ("mappings", "nbytes", "path", "removed", "sizes")

    def __init__(self, path: str, sizes: tuple[int, ...]) -> None:
        self.path = path
        self.mappings = 0
        self.removed = False
        self.set_sizes(sizes)

    def set_sizes(self, sizes: tuple[int, ...]) -> None:
        """Set the sizes of its frames."""
        self.sizes = sizes
        self.nbytes = sum(map(_padded, sizes))


class SpillDisk:
    """The files of one worker process, at most `max_bytes` together (None: as much as the disk takes)."""

    def __init__(self, directory: SpillDirectory, max_bytes: int | None = None) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._mapped = 0
        self._written = 0
        self._garbage: deque[SpilledFile] = deque()
        self._unmapped: deque[SpilledFile] = deque()  # a mapping can end anywhere, even while the lock is held
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """The size of all files, with those that are removed and still mapped."""
        with self._lock:
            self._count_unmapped()
            return self._used

    @property
    def bounded(self) -> bool:
        """Whether the files have a limit of their own."""
        return self._max_bytes is not None

    @property
    def has_garbage(self) -> bool:
        """Whether `remove_garbage` has something to do."""
        return bool(self._garbage)

    def write(self, frames: Sequence[Buffer]) -> SpilledFile:
        """Put the frames into a new file.

        Raises:
          SpillError: there is no room for them, or the disk does not take them.
        """
        sizes = tuple(memoryview(frame).nbytes for frame in frames)
        return self._write_file(sizes, partial(_write_frames, frames))

    def write_value(self, value: Any, nbytes: int) -> SpilledFile:
        """Put the frames of a value, whose size is about this, into a new file; it is pickled on the way.

        Raises:
          SpillError: there is no room for it, or the disk does not take it.
          SerializationError: it cannot be pickled.
        """
        return self._write_file((nbytes,), partial(_write_value, value))

    def _write_file(self, sizes: tuple[int, ...], write: Callable[[BufferedIOBase], tuple[int, ...]]) -> SpilledFile:
        """A new file, for frames of about these sizes; `write` fills it and returns their true sizes."""
        self.remove_garbage()
        try:
            file, output = self._create(sizes)
            try:
                with output:  # network file systems report only at the end that there was no room
                    written = write(output)
            except BaseException:  # raised again: no half file stays
                self._unlink(file)
                raise
        except SpillError:
            raise
        except OSError as error:
            raise SpillError(f"cannot write to {self.directory.base}: {error.strerror or error}") from error
        with self._lock:
            self._used -= file.nbytes
            file.set_sizes(written)
            self._used += file.nbytes
        return file

    def read(self, file: SpilledFile) -> list[memoryview]:
        """The frames, in writeable memory that is private to this process. Changes do not reach the file.

        Raises:
          FileNotFoundError: the file does not exist any more, or is not what was written.
          OSError: it cannot be read.
        """
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < file.nbytes:
                raise FileNotFoundError(errno.ENOENT, "another program has truncated it", file.path)
            if file.nbytes < MAP_BYTES or not self._may_map(file):
                content = memoryview(bytearray(file.nbytes))
                _read_all(descriptor, content)
            else:
                content = memoryview(self._map(file, descriptor))
        finally:
            os.close(descriptor)
        starts = _starts(file.sizes)
        return [content[start : start + size] for start, size in zip(starts, file.sizes, strict=True)]

    def remove(self, file: SpilledFile) -> None:
        """Have the file removed by the next `remove_garbage`."""
        self._garbage.append(file)

    def remove_garbage(self) -> None:
        """Remove the files that are not needed."""
        while self._garbage:
            self._unlink(self._garbage.popleft())

    def close(self) -> None:
        """Remove everything, and write no more. Mapped files stay readable. Idempotent."""
        with self._lock:  # a file that is being created is in the directory by now, or never will be
            self._closed = True
        self.directory.remove()
        self._garbage.clear()

    def _create(self, sizes: tuple[int, ...]) -> tuple[SpilledFile, BufferedIOBase]:
        with self._lock:
            if self._closed:
                raise SpillError("the worker is leaving")
            self._count_unmapped()
            file = SpilledFile(f"{self.directory.make()}/{self._written:x}", sizes)
            if self._max_bytes is not None and self._used + file.nbytes > self._max_bytes:
                raise SpillError(
                    f"the limit of {format_bytes(self._max_bytes)} for spilled values is reached "
                    f"({format_bytes(self._used)} are used, {format_bytes(file.nbytes)} are needed)"
                )
            output = BufferedWriter(Output(file.path, lambda: self._closed), GATHERED_BYTES)
            self._written += 1
            self._used += file.nbytes
            return file, output

    def _unlink(self, file: SpilledFile) -> None:
        try:
            os.unlink(file.path)
        except OSError:
            pass  # gone already, or with its directory at the end
        with self._lock:
            self._count_unmapped()
            file.removed = True
            if not file.mappings:
                self._used -= file.nbytes

    def _may_map(self, file: SpilledFile) -> bool:
        with self._lock:
            self._count_unmapped()
            if self._mapped >= MAX_MAPPINGS:
                return False
            self._mapped += 1
            file.mappings += 1
            return True

    def _map(self, file: SpilledFile, descriptor: int) -> mmap.mmap:
        try:
            _read_through(descriptor, file.nbytes)
            mapping = mmap.mmap(descriptor, file.nbytes, access=mmap.ACCESS_COPY)
        except BaseException:  # raised again: the file counts as not mapped
            self._unmapped.append(file)
            raise
        weakref.finalize(mapping, self._unmapped.append, file).atexit = False
        return mapping

    def _count_unmapped(self) -> None:
        while self._unmapped:
            file = self._unmapped.popleft()
            self._mapped -= 1
            file.mappings -= 1
            if file.removed and not file.mappings:
                self._used -= file.nbytes


class Output(FileIO):
    """A new file of this user's. It takes a piece at a time, and nothing any more once `is_closed()`."""

    def __init__(self, path: str, is_closed: Callable[[], bool]) -> None:
        super().__init__(path, "xb", opener=partial(os.open, mode=0o600))
        self._is_closed = is_closed

    def write(self, data: ReadableBuffer, /) -> int:
        if self._is_closed():
            raise SpillError("the worker is leaving")
        return super().write(memoryview(data)[:PIECE_BYTES])


class _Refused(BaseException):
    """The disk does not take what a pickler writes. Not an `Exception`: that would count as a failure of the value."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Pickled:
    """The first frame of a file, written by a pickler."""

    def __init__(self, output: BufferedIOBase) -> None:
        self._output = output

    def restart(self) -> None:
        """Drop what was written."""
        try:
            self._output.seek(0)
            self._output.truncate()
        except OSError as error:
            raise _Refused(error) from None

    def write(self, data: Buffer, /) -> None:
        try:
            self._output.write(data)
        except OSError as error:
            raise _Refused(error) from None


def _write_value(value: Any, output: BufferedIOBase) -> tuple[int, ...]:
    try:
        buffers = stream_value(value, _Pickled(output))
    except _Refused as refused:
        raise refused.error from None
    size = output.tell()
    _pad(size, output)
    return (size, *_write_frames(buffers, output))


def _write_frames(frames: Sequence[Buffer], output: BufferedIOBase) -> tuple[int, ...]:
    sizes = tuple(memoryview(frame).nbytes for frame in frames)
    for frame, size in zip(frames, sizes, strict=True):
        if size:
            output.write(frame)
            _pad(size, output)
    return sizes


def _pad(size: int, output: BufferedIOBase) -> None:
    output.write(bytes(_padded(size) - size))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _starts(sizes: tuple[int, ...]) -> Iterator[int]:
    start = 0
    for size in sizes:
        yield start
        start += _padded(size)


def _read_all(descriptor: int, target: memoryview) -> None:
    done = 0
    while done < target.nbytes:
        done += _read_some(descriptor, target[done:], done)


def _read_through(descriptor: int, size: int) -> None:
    """Bring the file into the system's cache."""
    buffer = bytearray(min(size, _READ_BYTES))
    done = 0
    while done < size:
        done += _read_some(descriptor, buffer, done)


def _read_some(descriptor: int, target: bytearray | memoryview, offset: int) -> int:
    count = os.preadv(descriptor, [target], offset)
    if not count:
        raise FileNotFoundError(errno.ENOENT, "another program has truncated it")
    return count
