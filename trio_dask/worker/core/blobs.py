"""Functions and large arguments that the scheduler has sent, by digest."""

from __future__ import annotations

from collections.abc import Callable

from trio_dask.errors import ProtocolError
from trio_dask.ids import Digest, RunId
from trio_dask.protocol.messages import Blob


class _Partial:
    """A blob of which the first bytes have come; `is_whole` if the rest is there with them."""

    __slots__ = ("content", "filled", "is_whole")

    def __init__(self, content: bytearray | memoryview, *, is_whole: bool) -> None:
        self.content = content
        self.filled = 0
        self.is_whole = is_whole


def _is_never_whole(_view: bytes | memoryview, _nbytes: int) -> None:
    return None


class BlobTable:
    """Complete blobs, those still arriving, and those to forget once the runs that may need them are over.

    `new_buffer` makes memory of a size for a blob that comes in pieces. `whole_of` gives the whole blob, of a size, of
    which a first piece is a view, if it is in memory that the sender shares.
    """

    def __init__(
        self,
        new_buffer: Callable[[int], bytearray | memoryview] = bytearray,
        whole_of: Callable[[bytes | memoryview, int], memoryview | None] = _is_never_whole,
    ) -> None:
        self.complete: dict[Digest, bytes | bytearray | memoryview] = {}
        self._new_buffer = new_buffer
        self._whole_of = whole_of
        self._partial: dict[Digest, _Partial] = {}
        self.expiring: dict[Digest, RunId] = {}
        """The blobs that the scheduler has forgotten, with the newest run that may need them."""

    def add(self, blob: Blob) -> None:
        """Take one piece.

        Raises:
          ProtocolError: the pieces are longer than the blob.
        """
        self.expiring.pop(blob.digest, None)
        size = len(blob.data)
        if size == blob.total:
            self.complete[blob.digest] = blob.data
            return
        partial = self._partial.get(blob.digest)
        if partial is None:
            if size > blob.total:
                raise ProtocolError(f"a blob of {blob.total} bytes came as {size} bytes")
            whole = self._whole_of(blob.data, blob.total)
            content = self._new_buffer(blob.total) if whole is None else whole
            partial = self._partial[blob.digest] = _Partial(content, is_whole=whole is not None)
        end = partial.filled + size
        if end > blob.total:
            raise ProtocolError(f"a blob of {blob.total} bytes came as {end} bytes")
        if not partial.is_whole:
            partial.content[partial.filled : end] = blob.data
        partial.filled = end
        if end == blob.total:
            self.complete[blob.digest] = self._partial.pop(blob.digest).content

    def expire_after(self, digests: tuple[Digest, ...], newest: RunId) -> None:
        """Forget these as soon as `newest` and all runs before it are over."""
        for digest in digests:
            self._partial.pop(digest, None)
            if digest in self.complete:
                self.expiring[digest] = newest

    def expire_all_after(self, newest: RunId) -> None:
        """Forget all of them likewise, and drop what was arriving: the sender counts none of it as sent."""
        self.expire_after(tuple(self.complete), newest)
        self._partial.clear()

    def forget_before(self, oldest: RunId | None) -> tuple[Digest, ...]:
        """Drop the blobs that only runs before `oldest` can need (None: there is no run), and return them."""
        gone = tuple(digest for digest, newest in self.expiring.items() if oldest is None or newest < oldest)
        for digest in gone:
            del self.expiring[digest]
            del self.complete[digest]
        return gone

    def clear(self) -> tuple[Digest, ...]:
        """Drop everything, and return the digests."""
        gone = tuple(self.complete)
        self.complete.clear()
        self._partial.clear()
        self.expiring.clear()
        return gone
