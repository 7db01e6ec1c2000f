"""A lock for one file that several processes write: pickled, it is the same lock in every process that sees the file.

Threads of one process exclude each other by a lock of theirs, processes by `flock` on a second file. Several hosts are
covered if they share the file system and it has `flock` between hosts, as NFS and most parallel ones do. The kernel
frees the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import uuid
import weakref
from contextlib import suppress
from typing import Final

_locks: weakref.WeakValueDictionary[str, FileLock] = weakref.WeakValueDictionary()
_guard: Final = threading.Lock()


class FileLock:
    """The methods are those of `threading.Lock`.

    In one process there is one for each path: xarray orders locks by their identity.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        """Of the file that is locked: not the one that is written, which HDF5 locks itself."""
        self._threads = threading.Lock()
        self._descriptor = -1

    def acquire(self, blocking: bool = True) -> bool:
        """Wait for the lock, or with `blocking=False` return whether it was free.

        Raises `OSError` if the lock's file cannot be made, or its file system has no locks.
        """
        if not self._threads.acquire(blocking):
            return False
        descriptor = None
        try:
            descriptor = _locked(self.path, blocking)
        finally:
            if descriptor is None:
                self._threads.release()
            else:
                self._descriptor = descriptor
        return descriptor is not None

    def release(self) -> None:
        """Let others have it."""
        descriptor, self._descriptor = self._descriptor, -1
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked process may have the descriptor, too
        os.close(descriptor)
        self._threads.release()

    def locked(self) -> bool:
        """Whether any thread of any process has it."""
        if not self.acquire(blocking=False):
            return True
        self.release()
        return False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _of_path, (self.path,)

    def __repr__(self) -> str:
        return f"<FileLock {self.path}>"


def lock_beside(path: str) -> FileLock:
    """The lock of those who write this file. Its own file goes when this process has no reference to the lock."""
    folder, name = os.path.split(os.path.abspath(path))
    return _made_here(os.path.join(folder, f".{name}.lock"))


def lock_in(folder: str | None) -> FileLock:
    """A new lock, for processes that see this folder; without one, for those of this host."""
    return _made_here(os.path.join(folder or tempfile.gettempdir(), f"trio_dask-{uuid.uuid4()}.lock"))


def _of_path(path: str) -> FileLock:
    with _guard:
        found = _locks.get(path)
        if found is None:
            found = _locks[path] = FileLock(path)
        return found


def _made_here(path: str) -> FileLock:
    lock = _of_path(path)
    weakref.finalize(lock, _remove, path)
    return lock


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _locked(path: str, blocking: bool) -> int | None:
    """The descriptor of the file, locked; or None if it is not free."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    kept, descriptor = descriptor, -1
                    return kept
        except BlockingIOError:
            return None
        finally:
            if descriptor >= 0:  # also one whose file was removed meanwhile: the next one counts
                os.close(descriptor)
