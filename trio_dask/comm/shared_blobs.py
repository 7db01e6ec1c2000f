"""Large blobs between processes of one machine: mapped by both, instead of sent.

A large argument is copied once, when the client fixes its content at the submit, into memory that other processes of
the same user can map. From there on only where it lies is sent, piece by piece as the content would be: the scheduler
maps it, and so does each worker, and the task's own copy is a private map of it. Whoever shares memory keeps it until
the other end says that it has mapped it all, or the connection ends.

Two ends share if they live in the same *memory domain*: one boot of one kernel, one namespace of process ids, one user.
A map that fails nevertheless ends the connection, and this process shares no more: on the next one the content itself
is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import msgpack

from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import Allowed
from trio_dask.protocol.messages import Blob
from trio_dask.protocol.raw_memory import SharedPart, map_shared, shared_part

__all__ = ["SharedBlobs", "memory_domain"]

_pack = cast("Callable[[object], bytes]", msgpack.packb)
_TYPES = (bytes, int, int, int, int, int, int, int)
MAX_INODE_BYTES = 8
MOST_MAPPING = 64
"""A peer sends one blob after the other, so it has no reason to begin many at once."""

_broken = False


def memory_domain() -> str:
    """Equal for processes that can map each other's memory; empty for one that shares none."""
    return "" if _broken else _domain()


@cache
def _domain() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}/{os.getuid()}"
    except (OSError, AttributeError):  # not Linux, or no /proc
        return ""


class SharedBlobs:
    """What one connection shares, either way."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._offered: dict[int, object] = {}
        """By inode: memory that the peer has yet to map."""
        self._mapping: dict[int, memoryview] = {}
        """By inode: memory of the peer, of which pieces are still to come."""

    def offer(self, blob: Blob) -> bytes | None:
        """Say where a piece of a blob lies, if that is in shared memory."""
        data: object = blob.data
        if type(data) is not memoryview or (part := shared_part(data)) is None:
            return None
        self._offered[part.inode] = data.obj
        return _pack((blob.digest, blob.total, *part))

    def release(self, payload: memoryview) -> None:
        """The peer has mapped all of a blob."""
        self._offered.pop(int.from_bytes(payload[:MAX_INODE_BYTES], "big"), None)

    def take(self, payload: memoryview, allowed: Allowed) -> tuple[Blob, bytes | None]:
        """The piece of a blob that lies where the payload says; with the last one also the answer to its sender.

        Raises `ProtocolError` for what makes no sense, and `ConnectionLost` if the memory cannot be mapped.
        """
        if Blob not in allowed.kinds.values():
            raise ProtocolError(f"{self._peer} sent a Blob, which it may not")
        digest, total, *numbers = _fields(payload, self._peer)
        part = SharedPart(*numbers)
        whole = self._mapping.get(part.inode)
        if whole is None:
            if len(self._mapping) >= MOST_MAPPING:
                raise ProtocolError(f"{self._peer} shares too many blobs at once")
            whole = self._mapping[part.inode] = self._map(part)
        end = part.start + part.length
        if end > len(whole):
            raise ProtocolError(f"{self._peer} shares a piece that ends behind its memory")
        # The codec takes views for bytes when it sends; here is the one place where a received message has one.
        blob = Blob(digest, total, cast("bytes", whole[part.start : end]))
        if end < len(whole):
            return blob, None
        del self._mapping[part.inode]
        return blob, part.inode.to_bytes(MAX_INODE_BYTES, "big")

    def _map(self, part: SharedPart) -> memoryview:
        global _broken
        try:
            return map_shared(part)
        except (OSError, ValueError) as error:  # no descriptors left, or a sandbox that does not permit it
            _broken = True
            raise ConnectionLost(f"cannot map the memory that {self._peer} shares: {error}") from error


def _fields(payload: memoryview, peer: str) -> tuple[bytes, int, int, int, int, int, int, int]:
    try:
        row: object = msgpack.unpackb(payload, use_list=False, max_array_len=len(_TYPES))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{peer} shares memory in a frame that is not msgpack: {error!r}") from error
    if not isinstance(row, tuple) or tuple(map(type, cast("tuple[object, ...]", row))) != _TYPES:
        raise ProtocolError(f"{peer} shares memory in a frame that cannot be understood")
    fields = cast("tuple[bytes, int, int, int, int, int, int, int]", row)
    if any(number < 0 for number in fields[1:]):
        raise ProtocolError(f"{peer} shares memory at a negative place")
    return fields
