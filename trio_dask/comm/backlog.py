"""What is on its way out of a connection: rows that wait to become frames, and a frame that was begun."""

from __future__ import annotations

from itertools import islice
from typing import cast

from trio_dask.protocol.codec import BlobRow, Row, rows_header
from trio_dask.protocol.frames import Kind, encode_frame

__all__ = ["Backlog"]

_FRAME_BYTES = 256 * 2**10
"""Frames end at this size, unless one row alone is larger: the receiver handles a frame in one go."""


class Backlog:
    """Rows are gathered until a frame is wanted, so frames are as large as the peer is slow."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._rows_size = 0
        self.rest: memoryview | None = None
        """What is still to be sent of a frame that was begun. While it is there, no other frame may be."""

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._rows_size + len(self.rest) if self.rest else self._rows_size

    def add(self, rows: list[Row]) -> None:
        """Put rows behind those that wait."""
        self._rows += rows
        self._rows_size += sum(map(len, rows))

    def take_frame(self) -> bytes:
        """The next frame, made of the rows that have waited longest; empty if none wait."""
        if not self._rows:
            return b""
        if self._rows_size <= _FRAME_BYTES:
            rows, self._rows, self._rows_size = self._rows, [], 0
        else:
            rows = self._first_rows()
        header = rows_header(len(rows))
        first = rows[0]
        if isinstance(first, BlobRow):
            return encode_frame(Kind.RECORDS, header, first.head, first.content)
        return encode_frame(Kind.RECORDS, header, *cast("list[bytes]", rows))

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._rows_size = 0
        self.rest = None

    def _first_rows(self) -> list[Row]:
        """As many as make a frame; a large piece of a blob has one of its own."""
        size = count = 0
        for row in self._rows:
            if count and isinstance(row, BlobRow):
                break
            size += len(row)
            count += 1
            if size >= _FRAME_BYTES:
                break
        rows = list(islice(self._rows, count))
        del self._rows[:count]
        self._rows_size -= size
        return rows
