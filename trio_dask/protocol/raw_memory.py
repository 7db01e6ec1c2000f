"""Where the bytes of an object lie, and whether two places hold the same."""

from __future__ import annotations

import ctypes

__all__ = ["address_of", "same_bytes"]


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
