"""Large pieces of memory: their addresses, copies of them, and maps that copy a page only when something writes to it.

Memory of `shared_memory` is a file in no directory, which other processes of the same user can map through `/proc` as
long as its owner has it open. Its size is sealed, so a map cannot lose its pages; a random token in its name
distinguishes it from all others.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast
from weakref import WeakSet

MAPPED_BYTES = 8 << 20
"""Buffers from this size on have a map of their own."""
MOST_MAPS = 128
"""Up to Python 3.12 each private map holds a descriptor, and a task may return views of its argument."""
MOST_SHARED = 128
"""Each piece of shared memory holds one descriptor, up to Python 3.12 two; programs have other uses for theirs."""


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
    """The address of contiguous memory, for as long as it exists; `ctypes` itself refuses read-only memory."""
    found = _Buffer()
    _get_buffer(view, ctypes.byref(found), 0)
    address = found.address or 0
    _release_buffer(ctypes.byref(found))
    return address


def same_bytes(one: memoryview | bytes, other: memoryview | bytes) -> bool:
    """Whether two contiguous pieces of memory of one length are equal. Other threads run meanwhile."""
    return bool(_memcmp(address_of(one), address_of(other), memoryview(one).nbytes) == 0)


def copy_bytes(source: memoryview | bytes, target: memoryview) -> None:
    """Copy contiguous memory into memory of the same length. Other threads run meanwhile."""
    _memmove(address_of(target), address_of(source), target.nbytes)


_private_maps: WeakSet[mmap.mmap] = WeakSet()
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


_NEEDED = ((fcntl, "F_ADD_SEALS"), (fcntl, "F_SEAL_GROW"), (os, "memfd_create"), (os, "posix_fallocate"))
CAN_SHARE = all(hasattr(module, name) for module, name in _NEEDED)
"""Some builds of Python lack one of these, also on Linux."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if CAN_SHARE else 0
TOKEN_BYTES = 16
READ_BYTES = 256 << 20


def _name(token: bytes) -> str:
    return f"trio_dask blob {token.hex()}"


class _SharedMap(mmap.mmap):
    """Memory that other processes may map."""

    fd: int
    token: bytes

    @classmethod
    def over(cls, fd: int, token: bytes, nbytes: int, access: int) -> _SharedMap:
        """A map of this file, which it closes with itself."""
        with _closed_on_error(fd):
            made = cls(fd, nbytes, access=access, **_NO_DESCRIPTOR)
        made.fd, made.token = fd, token
        # At exit the kernel closes it, after this process has sent its last messages.
        weakref.finalize(made, _close, fd, os.fstat(fd).st_ino).atexit = False
        _shared_maps.add(made)
        return made


_shared_maps: WeakSet[_SharedMap] = WeakSet()


@contextmanager
def _closed_on_error(fd: int) -> Generator[None]:
    try:
        yield
    except BaseException:  # also Ctrl-C: nobody else knows the descriptor; it goes on
        os.close(fd)
        raise


def _close(fd: int, inode: int) -> None:
    """Close a descriptor, unless other code has closed it and its number now belongs to another file."""
    with suppress(OSError):
        if os.fstat(fd).st_ino == inode:
            os.close(fd)


def _may_hold_more() -> bool:
    """Whether one more map leaves enough of the descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return len(_shared_maps) < (MOST_SHARED if soft == resource.RLIM_INFINITY else min(MOST_SHARED, soft // 8))


def shared_file(nbytes: int) -> memoryview:
    """Memory that other processes can map. Raises `OSError` if the system cannot share, or has too little memory."""
    if not CAN_SHARE:
        raise OSError("this system shares no memory")
    token = os.urandom(TOKEN_BYTES)
    fd = os.memfd_create(_name(token), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with _closed_on_error(fd):
        os.posix_fallocate(fd, 0, nbytes)  # otherwise a lack of memory becomes a SIGBUS
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return memoryview(_SharedMap.over(fd, token, nbytes, mmap.ACCESS_WRITE))


def shared_memory(nbytes: int) -> memoryview:
    """Memory to fill, which `own_copy` copies, and which other processes can map if it is large."""
    if nbytes >= MAPPED_BYTES and _may_hold_more():
        with suppress(OSError):  # if all memory is in use, ordinary memory gives a `MemoryError`
            return shared_file(nbytes)
    return memoryview(bytearray(nbytes))


class SharedPart(NamedTuple):
    """Where a piece of shared memory lies: a descriptor of a process, and which bytes of that file."""

    pid: int
    fd: int
    token: bytes
    nbytes: int
    """The size of the whole file."""
    start: int
    length: int


def shared_part(view: memoryview) -> SharedPart | None:
    """Where other processes find this; None unless it lies in shared memory."""
    shared = view.obj
    if not isinstance(shared, _SharedMap):
        return None
    start = address_of(view) - address_of(memoryview(shared))
    return SharedPart(os.getpid(), shared.fd, shared.token, len(shared), start, view.nbytes)


def _open(part: SharedPart) -> int:
    path, name = f"/proc/{part.pid}/fd/{part.fd}", f"/memfd:{_name(part.token)} (deleted)"
    if os.readlink(path) != name:  # opening another file could have an effect
        raise FileNotFoundError(f"descriptor {part.fd} of process {part.pid} is not the memory that it was said to be")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with _closed_on_error(fd):
        is_it = os.readlink(f"/proc/self/fd/{fd}") == name and os.fstat(fd).st_size == part.nbytes
        if not is_it or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(f"the memory of process {part.pid} is not as it was said to be")
    return fd


def can_map(part: SharedPart) -> bool:
    """Whether this process can map the memory of another."""
    try:
        os.close(_open(part))
    except (OSError, ValueError):
        return False
    return CAN_SHARE


def map_shared(part: SharedPart) -> memoryview:
    """The whole memory of which another process shares this part, read-only.

    A process that holds many descriptors reads it instead. Raises `OSError` if neither is possible.
    """
    fd = _open(part)
    if _may_hold_more():
        return memoryview(_SharedMap.over(fd, part.token, part.nbytes, mmap.ACCESS_READ))
    try:
        content = memoryview(bytearray(part.nbytes))
        done = 0
        while done < part.nbytes:
            done += os.preadv(fd, [content[done : done + READ_BYTES]], done)
    finally:
        os.close(fd)
    return content.toreadonly()


def _shared_under(content: bytes | bytearray | memoryview, nbytes: int) -> _SharedMap | None:
    """The shared memory that this is a view of, if it has this many bytes."""
    shared = content.obj if isinstance(content, memoryview) else None
    return shared if isinstance(shared, _SharedMap) and len(shared) == nbytes else None


def whole_of(view: bytes | memoryview, nbytes: int) -> memoryview | None:
    """The whole shared memory of which this is the beginning, if that has this many bytes."""
    shared = _shared_under(view, nbytes)
    whole = None if shared is None else memoryview(shared)
    return whole if whole is not None and address_of(view) == address_of(whole) else None


def own_copy(content: bytes | bytearray | memoryview) -> bytearray | memoryview:
    """A writeable copy; of shared memory, it copies only the pages that the task writes to."""
    shared = _shared_under(content, len(content))
    if shared is not None and (_NO_DESCRIPTOR or len(_private_maps) < MOST_MAPS):
        try:
            private = mmap.mmap(shared.fd, len(content), access=mmap.ACCESS_COPY, **_NO_DESCRIPTOR)
        except OSError:  # no descriptors left
            return bytearray(content)
        _private_maps.add(private)
        return memoryview(private)
    return bytearray(content)


def has_private_maps() -> bool:
    """Whether `own_copy` has made copies that share pages with other memory."""
    return bool(_private_maps)
