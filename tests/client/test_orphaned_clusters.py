"""Clients that were replaced as the default one."""

from __future__ import annotations

import threading
from typing import Any, cast

from trio_dask.client import orphaned_clusters

PATIENCE_S = 10


class EndedEngine:
    """An engine whose loop has ended."""

    def hold_client_weakly(self) -> None:
        pass

    def run_soon(self, *_: Any) -> bool:
        return False


class Somebody:
    """A client, as far as it matters here."""


def test_one_whose_loop_has_ended_ends_its_cluster_when_nobody_has_it() -> None:
    closed = threading.Event()
    client = Somebody()
    orphaned_clusters.close_when_unreachable(cast("Any", client), cast("Any", EndedEngine()), closed.set)
    assert not closed.is_set()
    del client
    assert closed.wait(PATIENCE_S)
