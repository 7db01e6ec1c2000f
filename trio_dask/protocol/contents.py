"""Large content: named by its digest, fixed at the moment of a submit, and hashed once as long as it stays the same.

An array may change in place at any time, so what leaves is a copy. The copy is kept while the array lives, and compared
with it at the next submit: comparing takes a fraction of the time that copying and hashing take.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from trio_dask.identity import Digest
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.raw_memory import same_bytes

__all__ = ["LARGE_BYTES", "content_digest", "fixed_content", "sole_owner"]

LARGE_BYTES: Final = 1 << 16
"""Content from this size on travels as a blob, and is told by its digest."""

KEPT_BYTES: Final = 512 << 20
WORTH_KEEPING_BYTES: Final = 1 << 20


def content_digest(data: Buffer) -> Digest:
    """The name of a blob with this content."""
    return blake2b(data, digest_size=16).digest()


def sole_owner(data: Buffer) -> Any:
    """The object whose whole content this is. None where there is none: an exporter may redirect to a larger buffer."""
    view = memoryview(data)
    owner = view.obj
    try:
        return owner if memoryview(owner).nbytes == view.nbytes else None
    except TypeError:
        return None


class _Kept(NamedTuple):
    owner: Callable[[], Any]
    """A weak reference; to an object of bytes, which has none, a strong one."""
    digest: Digest
    content: bytes


class _KeptContents:
    """Copies of large content by the `id` of its owner, the least recently used ones given up first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.RLock()  # a finalizer may run in the middle of anything

    def find(self, owner: Any, data: Buffer) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(id(owner))
            if kept is None or kept.owner() is not owner:
                return None
            self._kept.move_to_end(id(owner))
        view, content = memoryview(data), kept.content
        if content is data or (len(content) == view.nbytes and same_bytes(view, content)):
            return kept
        return None

    def keep(self, owner: Any, digest: Digest, content: bytes) -> None:
        if not WORTH_KEEPING_BYTES <= len(content) <= self._limit_bytes:
            return
        number = id(owner)
        try:
            reference: Callable[[], Any] = weakref.ref(owner, lambda _: self._drop(number))
        except TypeError:
            if type(owner) is not bytes:
                return
            reference = lambda: owner  # noqa: E731 (it stands for a weak reference)
        with self._lock:
            self._drop(number)
            self._kept[number] = _Kept(reference, digest, content)
            self._nbytes += len(content)
            while self._nbytes > self._limit_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, number: int) -> None:
        with self._lock:
            kept = self._kept.pop(number, None)
            if kept is not None:
                self._nbytes -= len(kept.content)


_contents = _KeptContents(KEPT_BYTES)


def fixed_content(data: Buffer) -> tuple[Digest, bytes]:
    """The digest of `data`, and its content as it is now."""
    owner = sole_owner(data)
    kept = None if owner is None else _contents.find(owner, data)
    if kept is not None:
        return kept.digest, kept.content
    content = data if type(data) is bytes else bytes(data)
    digest = content_digest(content)
    if owner is not None:
        _contents.keep(owner, digest, content)
    return digest, content
