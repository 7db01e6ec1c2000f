"""Large pieces of memory: where they lie, copies of them, and maps that copy nothing until somebody writes.

Memory of `shared_memory` is a file without a name, which other processes of the same user can map through `/proc` as
long as its owner has it open. Its size is sealed, so that a map cannot lose its ground; its inode tells it from others.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast
from weakref import WeakSet

__all__ = [
    "SharedPart",
    "address_of",
    "copy_bytes",
    "has_private_maps",
    "map_shared",
    "own_copy",
    "same_bytes",
    "shared_memory",
    "shared_part",
    "whole_of",
]

MAPPED_BYTES = 8 << 20
"""Buffers from this size on have a map of their own."""
MOST_MAPS = 128
"""Up to Python 3.12 each private map holds a descriptor, and a task may return views of its argument."""
MOST_SHARED = 128
"""So does shared memory, also later: programs have other uses for their descriptors."""


class _Buffer(ctypes.Structure):
    """The interpreter's `Py_buffer`, whose layout is part of the stable ABI since Python 3.11."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("length_and_item_size", ctypes.c_ssize_t * 2),
        ("readonly_and_dimensions", ctypes.c_int * 2),
        ("format_shape_strides_suboffsets_internal", ctypes.c_void_p * 5),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None
_memmove = cast("Callable[[int, int, int], object]", ctypes.memmove)
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def address_of(view: memoryview | bytes) -> int:
    """The address of contiguous memory, for as long as it exists; `ctypes` itself refuses what is read-only."""
    found = _Buffer()
    _get_buffer(view, ctypes.byref(found), 0)
    address = found.address or 0
    _release_buffer(ctypes.byref(found))
    return address


def same_bytes(one: memoryview | bytes, other: memoryview | bytes) -> bool:
    """Whether two contiguous pieces of memory of one length hold the same. Other threads run meanwhile."""
    return bool(_memcmp(address_of(one), address_of(other), memoryview(one).nbytes) == 0)


def copy_bytes(source: memoryview | bytes, target: memoryview) -> None:
    """Copy contiguous memory into as much of it. Other threads run meanwhile."""
    _memmove(address_of(target), address_of(source), target.nbytes)


_private_maps: WeakSet[mmap.mmap] = WeakSet()
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


_NAME = "trio_dask blob"
_FILE = f"/memfd:{_NAME} (deleted)"
_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)


class _SharedMap(mmap.mmap):
    """Memory of which others may have maps."""

    fd: int
    inode: int

    @classmethod
    def over(cls, fd: int, nbytes: int, access: int) -> _SharedMap:
        """A map of this file, which it closes with itself."""
        try:
            made = cls(fd, nbytes, access=access)
        except BaseException:
            os.close(fd)
            raise
        made.fd, made.inode = fd, os.fstat(fd).st_ino
        weakref.finalize(made, os.close, fd)
        _shared_maps.add(made)
        return made


_shared_maps: WeakSet[_SharedMap] = WeakSet()


def shared_memory(nbytes: int) -> memoryview:
    """Memory to be filled, of which `own_copy` makes copies, and which other processes can map if it is large."""
    if nbytes >= MAPPED_BYTES and _SEALS and len(_shared_maps) < MOST_SHARED:
        with suppress(OSError):  # no descriptors left, or a sandbox that does not permit it
            fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(fd, nbytes)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            except BaseException:
                os.close(fd)
                raise
            return memoryview(_SharedMap.over(fd, nbytes, mmap.ACCESS_WRITE))
    return memoryview(bytearray(nbytes))


class SharedPart(NamedTuple):
    """Where a piece of shared memory is found: a descriptor of a process, and which bytes of the file behind it."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    """Of the whole file."""
    start: int
    length: int


def shared_part(view: memoryview) -> SharedPart | None:
    """Where other processes find this; None unless it lies in shared memory."""
    shared = view.obj
    if not isinstance(shared, _SharedMap):
        return None
    start = address_of(view) - address_of(memoryview(shared))
    return SharedPart(os.getpid(), shared.fd, shared.inode, len(shared), start, view.nbytes)


def map_shared(part: SharedPart) -> memoryview:
    """All of the memory of which another process shares this part; it cannot be written to.

    Raises `OSError` if that is not possible, or something else is found there.
    """
    fd = os.open(f"/proc/{part.pid}/fd/{part.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        found = os.fstat(fd)
        is_it = os.readlink(f"/proc/self/fd/{fd}") == _FILE and (found.st_ino, found.st_size) == part[2:4]
        if not is_it or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(f"descriptor {part.fd} of process {part.pid} is not the memory that it was said to be")
    except BaseException:
        os.close(fd)
        raise
    return memoryview(_SharedMap.over(fd, part.nbytes, mmap.ACCESS_READ))


def whole_of(view: bytes | memoryview, nbytes: int) -> memoryview | None:
    """The whole shared memory of which this is the beginning, if that has this many bytes."""
    shared = view.obj if isinstance(view, memoryview) else None
    return memoryview(shared) if isinstance(shared, _SharedMap) and len(shared) == nbytes else None


def own_copy(content: bytes | bytearray | memoryview) -> bytearray | memoryview:
    """A copy that can be written to; of shared memory, only those pages are copied that are written."""
    shared = content.obj if isinstance(content, memoryview) else None
    if isinstance(shared, _SharedMap) and (_NO_DESCRIPTOR or len(_private_maps) < MOST_MAPS):
        try:
            private = mmap.mmap(shared.fd, len(content), access=mmap.ACCESS_COPY, **_NO_DESCRIPTOR)
        except OSError:  # no descriptors left
            return bytearray(content)
        _private_maps.add(private)
        return memoryview(private)
    return bytearray(content)


def has_private_maps() -> bool:
    """Whether there are copies that `own_copy` made without copying."""
    return bool(_private_maps)
