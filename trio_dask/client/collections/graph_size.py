"""Warns of graphs that carry large values, which are better made by tasks, or scattered before."""

from __future__ import annotations

import logging
from typing import Final

from trio_dask.client.graph_parts import GraphRow
from trio_dask.config import ClientSettings
from trio_dask.configuration import configured, load
from trio_dask.ids import Digest, Key

FREE_BYTES: Final = 2**10
"""What any task may carry: a million small ones have no large values."""

_logger = logging.getLogger("trio_dask.client")


class GraphSize:
    """Adds up what the tasks of a graph carry; content that several share counts once."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._seen: set[Digest] = set()
        self._largest: tuple[int, Key] = (0, "")

    def add(self, row: GraphRow) -> None:
        """Count one task."""
        nbytes = len(row.call)
        for digest, content in row.contents:
            if digest not in self._seen:
                self._seen.add(digest)
                nbytes += len(content)
        if nbytes <= FREE_BYTES:
            return
        self.nbytes += nbytes
        if nbytes > self._largest[0]:
            self._largest = nbytes, row.key

    def warn(self) -> None:
        """Say so if it is much, and name the task that carries most."""
        settings = ClientSettings(**configured(ClientSettings, "client", load()))
        if self.nbytes > settings.large_graph_bytes:
            largest, key = self._largest
            _logger.warning(
                "A graph has %.1f MiB of values, %.1f MiB of them in task %r: load such data in tasks, or scatter it",
                self.nbytes / 2**20,
                largest / 2**20,
                key,
            )
