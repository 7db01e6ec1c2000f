"""A graph that carries much says so once, and names the task."""

from __future__ import annotations

import gc
import logging

import pytest

from trio_dask.client.collections.collector import ALLOCATIONS, fewer_collections
from trio_dask.client.collections.graph_size import GraphSize
from trio_dask.client.graph_parts import GraphRow
from trio_dask.config import ClientSettings
from trio_dask.protocol.pickling import pickle_function

ABS = pickle_function(abs)


def size_of(*rows: GraphRow) -> GraphSize:
    size = GraphSize()
    for row in rows:
        size.add(row)
    return size


def test_the_configuration_says_how_much_is_much(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = GraphRow("t", ABS, bytes(3000), (), ())
    for threshold, warnings in (("1kB", 1), ("1MB", 0)):
        monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__LARGE_GRAPH_WARNING_THRESHOLD", threshold)
        caplog.clear()
        size_of(row).warn()
        assert len(caplog.messages) == warnings


def test_a_graph_that_carries_much_names_the_task_with_most(caplog: pytest.LogCaptureFixture) -> None:
    rows = [GraphRow(f"t{number}", ABS, b"", (), ((bytes([number]), bytes(number * 2**20)),)) for number in range(6)]
    with caplog.at_level(logging.WARNING):
        size_of(*rows).warn()
    assert caplog.messages == [
        "A graph has 15.0 MiB of values, 5.0 MiB of them in task 't5': load such data in tasks, or scatter it"
    ]


def test_many_small_tasks_are_no_large_values(caplog: pytest.LogCaptureFixture) -> None:
    number = ClientSettings().large_graph_bytes // 90
    rows = [GraphRow(f"t{one}", ABS, bytes(100), (), ()) for one in range(number)]
    with caplog.at_level(logging.WARNING):
        size_of(*rows).warn()
    assert not caplog.messages


def test_what_tasks_share_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    shared = (b"digest", bytes(ClientSettings().large_graph_bytes // 2))
    size = size_of(*[GraphRow(f"t{number}", ABS, b"call", (), (shared,)) for number in range(10)])
    assert size.nbytes == ClientSettings().large_graph_bytes // 2 + len(b"call")
    with caplog.at_level(logging.WARNING):
        size.warn()
    assert not caplog.messages


def test_the_collector_runs_less_often_while_a_graph_is_made_and_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with fewer_collections():
        assert gc.get_threshold()[0] == ALLOCATIONS
        with fewer_collections():
            assert gc.get_threshold()[0] == ALLOCATIONS
        assert gc.get_threshold()[0] == ALLOCATIONS
    assert gc.get_threshold() == before


@pytest.mark.parametrize("own", [0, 10 * ALLOCATIONS])
def test_a_program_that_has_set_the_threshold_keeps_its_own(own: int) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(own)
        with fewer_collections():
            assert gc.get_threshold()[0] == own
        assert gc.get_threshold()[0] == own
        gc.set_threshold(*before)
        with fewer_collections():
            gc.set_threshold(123)
        assert gc.get_threshold()[0] == 123
    finally:
        gc.set_threshold(*before)
