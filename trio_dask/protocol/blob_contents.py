"""Large content of calls: named by its digest, copied at the submit, and hashed once as long as it stays the same.

An array can change in place at any time, so the client sends a copy. It keeps the copy while the array lives, and
compares the two at the next submit, which takes a fraction of the time of copying and hashing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from blake3 import blake3

from trio_dask.ids import Digest
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.raw_memory import copy_bytes, same_bytes, shared_memory
from trio_dask.protocol.wire_constants import DIGEST_BYTES

LARGE_BYTES: Final = 1 << 16
"""Content from this size on travels as a blob, and counts by its digest."""

KEPT_BYTES: Final = 512 << 20
WORTH_KEEPING_BYTES: Final = 1 << 20
LEAF_BYTES: Final = 2 << 20
FAST_HASH_BYTES: Final = 1 << 12
"""From this size on BLAKE3 takes less time than BLAKE2; for large content a sixth of it."""
MAX_THREADS: Final = 4


def content_digest(data: Buffer) -> Digest:
    """The name of a blob with this content; for a large one the hash of hashes that several threads compute."""
    view = memoryview(data).cast("B")
    if view.nbytes > LEAF_BYTES:
        return _digest_by_leaves(view, None)
    return _digest(view)


def _digest(view: memoryview) -> Digest:
    if view.nbytes < FAST_HASH_BYTES:
        return blake2b(view, digest_size=DIGEST_BYTES).digest()
    return blake3(view).digest(DIGEST_BYTES)


def _digest_by_leaves(view: memoryview, target: memoryview | None) -> Digest:
    """Hash leaf by leaf; with a target each leaf is copied there first, and hashed while it is near the processor."""
    starts = range(0, view.nbytes, LEAF_BYTES)
    digests = [b""] * len(starts)
    numbers = iter(range(len(starts)))  # `next` of it is atomic, so each leaf is taken by one thread
    failures: list[Exception] = []

    def work() -> None:
        try:
            for number in numbers:
                leaf = view[starts[number] : starts[number] + LEAF_BYTES]
                if target is not None:
                    own = target[starts[number] : starts[number] + LEAF_BYTES]
                    copy_bytes(leaf, own)
                    leaf = own
                digests[number] = _digest(leaf)
        except Exception as error:  # mostly a lack of memory; the caller raises it again
            failures.append(error)

    helpers: list[threading.Thread] = []
    for _ in range(min(MAX_THREADS, os.cpu_count() or 1, len(starts)) - 1):
        helper = threading.Thread(target=work, name="hash", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # the system gives no more threads: this one does the rest
            break
        helpers.append(helper)
    work()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
    whole = blake2b(view.nbytes.to_bytes(8, "big"), digest_size=DIGEST_BYTES, person=b"leaves")
    whole.update(b"".join(digests))
    return whole.digest()


def sole_owner(data: Buffer) -> Any:
    """The object whose whole content this is; None if the object has more content than this."""
    view = memoryview(data)
    owner = view.obj
    try:
        return owner if memoryview(owner).nbytes == view.nbytes else None
    except TypeError:
        return None


class _Kept(NamedTuple):
    owner: Callable[[], Any]
    """A weak reference; a strong one to an object of bytes, which allows no weak ones."""
    digest: Digest
    content: bytes | memoryview


class _KeptContents:
    """Copies of large content by the `id` of its owner; those not used for the longest time go first."""

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

    def keep(self, owner: Any, digest: Digest, content: bytes | memoryview) -> None:
        if not WORTH_KEEPING_BYTES <= len(content) <= self._limit_bytes:
            return
        number = id(owner)
        reference: Callable[[], Any]
        try:
            reference = (lambda: owner) if type(owner) is bytes else weakref.ref(owner, lambda _: self._drop(number))
        except TypeError:
            return
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


def fixed_content(data: Buffer) -> tuple[Digest, bytes | memoryview]:
    """The digest of `data`, and its content as it is now."""
    owner = sole_owner(data)
    kept = None if owner is None else _contents.find(owner, data)
    if kept is not None:
        return kept.digest, kept.content
    view = memoryview(data).cast("B")
    content: bytes | memoryview
    if type(data) is bytes or view.nbytes <= LEAF_BYTES:
        content = data if type(data) is bytes else bytes(view)
        digest = content_digest(content)
    else:
        copied = shared_memory(view.nbytes)
        digest, content = _digest_by_leaves(view, copied), copied.toreadonly()
    if owner is not None:
        _contents.keep(owner, digest, content)
    return digest, content
