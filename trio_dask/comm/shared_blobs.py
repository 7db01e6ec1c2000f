"""Large blobs between processes of one machine: mapped by both, instead of sent.

A large argument is copied once, when the client fixes its content at the submit, into memory that other processes of
the same user can map. From there on only its place is sent, piece by piece as the content would be: the scheduler maps
it, and so does each worker, and the task's own copy is a private map of it.

Each hello names a *probe*, a small piece of shared memory. A peer that can map it says so in its first frame, with an
empty `MAPPED`; from then on blobs are shared with that peer. The sender of a blob keeps its memory until the receiver
answers that it has mapped it all, or the connection ends. The blobs of a connection follow one another, so the answers
come in the order of the blobs.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgpack

from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import Allowed
from trio_dask.protocol.messages import Blob
from trio_dask.protocol.raw_memory import SharedPart, can_map, map_shared, shared_file, shared_part

_pack = cast("Callable[[object], bytes]", msgpack.packb)
_TYPES = (bytes, int, int, int, bytes, int, int, int)
PROBE_BYTES = 4096
PROBE_FORM = re.compile(r"(\d{1,10})/(\d{1,10})/([0-9a-f]{32})")

_probe: memoryview | None = None
_failed = False
"""Mapping has failed although it should have worked. It is not tried again, since each failure costs a connection."""


def probe() -> str:
    """What a hello says of this process's memory; empty if it shares none."""
    global _probe
    if _failed:
        return ""
    try:
        if _probe is None:
            _probe = shared_file(PROBE_BYTES)
    except OSError:
        return ""
    part = shared_part(_probe)
    return "" if part is None else f"{part.pid}/{part.fd}/{part.token.hex()}"


def can_map_memory_of(peer: str) -> bool:
    """Whether this process can map the memory of a peer whose hello said this."""
    form = None if _failed else PROBE_FORM.fullmatch(peer)
    if form is None:
        return False
    pid, fd, token = form.groups()
    return can_map(SharedPart(int(pid), int(fd), bytes.fromhex(token), PROBE_BYTES, 0, PROBE_BYTES))


class SharedBlobs:
    """The blobs that one connection shares, either way."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._offered: deque[tuple[bytes, Any]] = deque()
        """Memory that the peer has yet to map, by token, in the order in which it was offered."""
        self._offering: tuple[bytes, int] | None = None
        """Token and descriptor of the blob whose next piece is still to be offered."""
        self._mapping: tuple[SharedPart, memoryview] | None = None
        """The peer's blob whose next piece is still to come: its first piece, and all of its memory."""

    def offer(self, blob: Blob) -> bytes | None:
        """Say where a piece of a blob lies, if that is in shared memory."""
        data = cast("bytes | memoryview", blob.data)
        part = shared_part(data) if isinstance(data, memoryview) else None
        if part is None:
            return None
        which = part.token, part.fd
        if part.start == 0 or which != self._offering:
            self._offered.append((part.token, data))
        self._offering = which if part.start + part.length < part.nbytes else None
        return _pack((blob.digest, blob.total, *part))

    def release(self, token: memoryview) -> None:
        """The peer has mapped all of the oldest blob that was offered. Raises `ProtocolError` if it is another."""
        if not self._offered or self._offered[0][0] != bytes(token):
            raise ProtocolError(f"{self._peer} has mapped memory that was not offered")
        self._offered.popleft()

    def take(self, payload: memoryview, allowed: Allowed) -> tuple[Blob, list[bytes]]:
        """The piece of a blob that lies where the payload says, and the tokens to answer with.

        Raises `ProtocolError` for what makes no sense, and `ConnectionLost` if the memory cannot be mapped.
        """
        if Blob not in allowed.kinds.values():
            raise ProtocolError(f"{self._peer} sent a Blob, which it may not")
        digest, total, part = _row(payload, self._peer)
        answers: list[bytes] = []
        if self._mapping is not None and (part.start == 0 or self._mapping[0][:3] != part[:3]):
            answers.append(self._mapping[0].token)  # the blob before gets no more pieces
            self._mapping = None
        if self._mapping is None:
            self._mapping = part, self._map(part)
        whole = self._mapping[1]
        end = part.start + part.length
        if end > len(whole):
            raise ProtocolError(f"{self._peer} shares a piece that ends behind its memory")
        if end == len(whole):
            answers.append(part.token)
            self._mapping = None
        # Only here does a received message hold a view in place of bytes; the codec sends views like bytes.
        return Blob(digest, total, cast("bytes", whole[part.start : end])), answers

    def clear(self) -> None:
        """The connection has ended."""
        self._offered.clear()
        self._mapping = None

    def _map(self, part: SharedPart) -> memoryview:
        global _failed
        try:
            return map_shared(part)
        except (OSError, ValueError) as error:
            _failed = _failed or os.path.exists(f"/proc/{part.pid}")  # else the peer has ended, and nothing is wrong
            raise ConnectionLost(f"cannot map the memory that {self._peer} shares: {error}") from error


def _row(payload: memoryview, peer: str) -> tuple[bytes, int, SharedPart]:
    try:
        row: object = msgpack.unpackb(payload, use_list=False, max_array_len=len(_TYPES))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{peer} shares memory in a frame that is not msgpack: {error!r}") from error
    if not isinstance(row, tuple) or tuple(map(type, cast("tuple[object, ...]", row))) != _TYPES:
        raise ProtocolError(f"{peer} shares memory in a frame that cannot be understood")
    fields = cast("tuple[bytes, int, int, int, bytes, int, int, int]", row)
    if any(type(number) is int and number < 0 for number in fields):
        raise ProtocolError(f"{peer} shares memory at a negative place")
    return fields[0], fields[1], SharedPart(*fields[2:])
