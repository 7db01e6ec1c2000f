"""Large pieces of memory: where they lie, copies of them, and maps that copy nothing until somebody writes."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

__all__ = ["address_of", "copy_bytes", "fresh_memory", "has_private_maps", "new_buffer", "own_copy", "same_bytes"]

MAPPED_BYTES = 8 << 20
"""Buffers from this size on have a map of their own."""
MOST_MAPS = 128
"""Up to Python 3.12 each private map holds a descriptor, and a task may return views of its argument."""


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


def fresh_memory(nbytes: int) -> memoryview:
    """Memory of its own for a large copy, in huge pages where the system has them: to fill these takes less time."""
    mapping = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)


_private_maps: WeakSet[mmap.mmap] = WeakSet()
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class _SharedMap(mmap.mmap):
    """Memory of which others may have private maps."""

    fd: int

    def __new__(cls, nbytes: int) -> _SharedMap:
        fd = os.memfd_create("trio_dask blob")
        try:
            os.ftruncate(fd, nbytes)
            made = super().__new__(cls, fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        made.fd = fd
        weakref.finalize(made, os.close, fd)
        return made


def new_buffer(nbytes: int) -> bytearray | memoryview:
    """Memory to be filled, of which `own_copy` makes copies."""
    if nbytes < MAPPED_BYTES or not hasattr(os, "memfd_create"):
        return bytearray(nbytes)
    try:
        return memoryview(_SharedMap(nbytes))
    except OSError:  # no descriptors left, or a sandbox that does not permit it
        return bytearray(nbytes)


def own_copy(content: bytes | bytearray | memoryview) -> bytearray | memoryview:
    """A copy that can be written to; of memory that `new_buffer` gave, only those pages are copied that are written."""
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
