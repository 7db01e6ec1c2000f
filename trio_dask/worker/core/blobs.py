"""Functions and large arguments that the scheduler has sent, by digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trio_dask.errors import ProtocolError
from trio_dask.ids import Digest, RunId
from trio_dask.protocol.messages import Blob

__all__ = ["BlobTable"]


class _Partial:
    """A blob of which the first bytes are there."""

    __slots__ = ("content", "filled")

    def __init__(self, content: bytearray | memoryview) -> None:
        self.content = content
        self.filled = 0


class BlobTable:
    """Complete blobs, those still arriving, and those to forget once the runs that may need them are over.

    `new_buffer` makes memory of a size for a blob that comes in pieces.
    """

    def __init__(self, new_buffer: Callable[[int], bytearray | memoryview] = bytearray) -> None:
        self.complete: dict[Digest, bytes | bytearray | memoryview] = {}
        self._new_buffer = new_buffer
        self._partial: dict[Digest, _Partial] = {}
        self._expiring: dict[Digest, RunId] = {}

    @property
    def expiring(self) -> Mapping[Digest, RunId]:
        """The blobs that the scheduler has forgotten, with the newest run that may need them."""
        return self._expiring

    def add(self, blob: Blob) -> None:
        """Take one piece.

        Raises:
          ProtocolError: the pieces are longer than the blob.
        """
        self._expiring.pop(blob.digest, None)
        size = len(blob.data)
        if size == blob.total:
            self.complete[blob.digest] = blob.data
            return
        partial = self._partial.get(blob.digest)
        if partial is None:
            if size > blob.total:
                raise ProtocolError(f"a blob of {blob.total} bytes came as {size} bytes")
            partial = self._partial[blob.digest] = _Partial(self._new_buffer(blob.total))
        end = partial.filled + size
        if end > blob.total:
            raise ProtocolError(f"a blob of {blob.total} bytes came as {end} bytes")
        partial.content[partial.filled : end] = blob.data
        partial.filled = end
        if end == blob.total:
            self.complete[blob.digest] = self._partial.pop(blob.digest).content

    def expire_after(self, digests: tuple[Digest, ...], newest: RunId) -> None:
        """Forget these as soon as `newest` and all runs before it are over."""
        for digest in digests:
            self._partial.pop(digest, None)
            if digest in self.complete:
                self._expiring[digest] = newest

    def expire_all_after(self, newest: RunId) -> None:
        """Forget all of them likewise, and drop what was arriving: the sender counts none of it as sent."""
        self.expire_after(tuple(self.complete), newest)
        self._partial.clear()

    def forget_before(self, oldest: RunId | None) -> tuple[Digest, ...]:
        """Drop the blobs that only runs before `oldest` can need (None: there is no run), and return them."""
        gone = tuple(digest for digest, newest in self._expiring.items() if oldest is None or newest < oldest)
        for digest in gone:
            del self._expiring[digest]
            del self.complete[digest]
        return gone

    def clear(self) -> tuple[Digest, ...]:
        """Drop everything, and return the digests."""
        gone = tuple(self.complete)
        self.complete.clear()
        self._partial.clear()
        self._expiring.clear()
        return gone
