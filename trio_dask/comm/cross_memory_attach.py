"""Values between two processes of one machine: read straight from the memory of the one into that of the other.

The sender *offers* its buffers: it says which process it is and where they lie. The receiver reads them with one system
call, `process_vm_readv`, so that every byte is copied once and by one side, where a socket copies it twice and makes
two processes take turns. MPI libraries send large messages this way and call it cross-memory attach.

Whether the kernel permits it shows only at the first try: processes may be in different containers, belong to different
users, or be forbidden to look at one another (`kernel.yama.ptrace_scope`). Then the bytes take the socket.

An offer carries a *liveness token*, random bytes in the sender's memory that are wiped before the buffers are released.
The receiver reads it before the buffers, which tells whether this is the right process, and again after them, which
tells whether they were still valid until then.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import cast

from trio_dask.config import cross_memory_allowed
from trio_dask.protocol.messages import MemoryOffered
from trio_dask.protocol.raw_memory import address_of

MIN_MEAN_BYTES = 64 * 2**10
"""Each buffer is a system call."""

PIECE_BYTES = 256 * 2**20
"""What one system call reads; the kernel's own limit is 2 GiB."""

TOKEN_BYTES = 16


class MemoryOffer:
    """Buffers that another process may read for the length of the block, which must keep them alive."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        liveness_token = secrets.token_bytes(TOKEN_BYTES)
        self._mark = memoryview(bytearray(liveness_token))
        self.terms = MemoryOffered(os.getpid(), address_of(self._mark), liveness_token, tuple(map(address_of, buffers)))
        """What the reader has to know."""

    def __enter__(self) -> MemoryOffer:
        return self

    def __exit__(self, *error: object) -> None:
        self._mark[:] = bytes(TOKEN_BYTES)


def can_offer(buffers: Sequence[memoryview]) -> bool:
    """Whether this process can offer its memory, and whether that pays for these buffers."""
    return (
        _process_vm_readv is not None
        and cross_memory_allowed()
        and sum(map(len, buffers)) >= MIN_MEAN_BYTES * len(buffers)
    )


def read_remote(terms: MemoryOffered, buffers: Sequence[memoryview]) -> bool:
    """Fill the writeable buffers with what another process offers. Call it in a thread: it takes a while.

    False if that was not possible; what the buffers hold then means nothing.
    """
    if not cross_memory_allowed() or not _is_alive(terms):
        return False
    filled = all(_read(terms.pid, place, buffer) for place, buffer in zip(terms.places, buffers, strict=True))
    return filled and _is_alive(terms)


def _is_alive(terms: MemoryOffered) -> bool:
    liveness_token = bytearray(TOKEN_BYTES)
    return (
        _read(terms.pid, terms.token_address, memoryview(liveness_token))
        and bytes(liveness_token) == terms.liveness_token
    )


def _read(pid: int, place: int, buffer: memoryview) -> bool:
    if _process_vm_readv is None:
        return False
    here = address_of(buffer)
    done = 0
    while done < len(buffer):
        nbytes = min(len(buffer) - done, PIECE_BYTES)
        to, from_ = _Span(here + done, nbytes), _Span(place + done, nbytes)
        count = _process_vm_readv(pid, ctypes.byref(to), 1, ctypes.byref(from_), 1, 0)
        if count <= 0:
            return False
        done += count
    return True


class _Span(ctypes.Structure):
    """The C library's `struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _find_process_vm_readv() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "process_vm_readv", None)
    if function is None:
        return None
    span = ctypes.POINTER(_Span)
    function.argtypes = (ctypes.c_int, span, ctypes.c_ulong, span, ctypes.c_ulong, ctypes.c_ulong)
    function.restype = ctypes.c_ssize_t
    return cast("Callable[..., int]", function)


_process_vm_readv = _find_process_vm_readv()
