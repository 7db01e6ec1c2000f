"""What waits to leave a connection: rows that will become frames, and the rest of a frame that was begun."""

from __future__ import annotations

from itertools import islice
from typing import Any

from trio_dask.protocol.codec import OwnFrame, Row, rows_header
from trio_dask.protocol.frames import Kind, frame_header

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
        parts: list[Any]
        if (size := self._rows_size) <= _FRAME_BYTES:
            parts, self._rows, self._rows_size = self._rows, [], 0  # what has a frame to itself is larger
        else:
            rows = self._first_rows()
            if isinstance(own := rows[0], OwnFrame):
                return b"".join((frame_header(own.kind, own.size), *own.parts))
            parts = [*rows]
            size = sum(map(len, parts))
        header = rows_header(len(parts))
        return b"".join((frame_header(Kind.RECORDS, len(header) + size), header, *parts))

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._rows_size = 0
        self.rest = None

    def _first_rows(self) -> list[Row]:
        """As many as make a frame."""
        size = count = 0
        for row in self._rows:
            if count and isinstance(row, OwnFrame):
                break
            size += len(row)
            count += 1
            if size >= _FRAME_BYTES:
                break
        rows = list(islice(self._rows, count))
        del self._rows[:count]
        self._rows_size -= size
        return rows
