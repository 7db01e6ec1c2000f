"""Any graph, cut anywhere: each part has what it needs, and what is kept between parts is what parts to come need."""

import gc
import operator
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.dask_graphs import GraphTask, plan
from trio_dask.client.garbage_collection import without_garbage_collection
from trio_dask.client.graph_parts import FIRST_PART, GraphRow, PartCutter
from trio_dask.client.plain_graph_parts import PlainGraphParts
from trio_dask.errors import UsageError
from trio_dask.protocol.pickling import PickledFunction

Rows = Mapping[str, tuple[str, ...]]


def function(name: str, *blobs: tuple[bytes, bytes]) -> PickledFunction:
    return PickledFunction(name.encode() * 16, name.encode(), name, b"", blobs)


F = function("f")


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Each task after those it depends on; some dependencies are not in the graph."""
    rows: dict[str, tuple[str, ...]] = {}
    for number in range(draw(st.integers(1, 20))):
        names = [*rows, "foreign"]
        rows[f"t{number}"] = tuple(draw(st.lists(st.sampled_from(names), max_size=4, unique=True)))
    return rows


def last_use(rows: Rows) -> dict[str, int]:
    return {name: number for number, needs in enumerate(rows.values()) for name in needs}


def parts_of(rows: Rows, cuts: Sequence[int], outputs: Sequence[str]) -> Iterator[GraphPart]:
    cutter = PartCutter(last_use(rows), dict.fromkeys(outputs))
    for number, (key, needs) in enumerate(rows.items()):
        part = cutter.add(GraphRow(key, F, key.encode(), needs))
        assert part is None
        if number in cuts and (part := cutter.cut()) is not None:
            yield part
    if (part := cutter.cut()) is not None:
        yield part


@settings(max_examples=500, deadline=None)
@given(graphs(), st.sets(st.integers(0, 19)), st.data())
def test_any_cut_of_any_graph_keeps_exactly_what_later_parts_need(
    rows: dict[str, tuple[str, ...]], cuts: set[int], data: st.DataObject
) -> None:
    outputs = data.draw(st.lists(st.sampled_from(list(rows)), unique=True))
    held: set[str] = set()
    came: list[str] = []
    for part in parts_of(rows, sorted(cuts), outputs):
        message = part.message
        names = (*message.keys, *message.inputs)
        assert len(set(names)) == len(names)
        assert held.issuperset(set(message.inputs) - {"foreign"}), "an input may be gone"
        for number, (key, numbers) in enumerate(zip(message.keys, message.dependencies, strict=True)):
            assert tuple(names[other] for other in numbers) == rows[key]
            assert all(other < number or other >= len(message.keys) for other in numbers)
        assert [key.encode() for key in message.keys] == list(message.calls)
        assert part.outputs == [(number, key) for number, key in enumerate(message.keys) if key in outputs]
        assert message.wanted == ()
        came += message.keys
        held |= {message.keys[number] for number in message.held}
        assert held.issuperset(message.unheld)
        held -= set(message.unheld)
        later = {name for key in list(rows)[len(came) :] for name in rows[key]}
        assert held == later & set(came)
    assert came == list(rows)
    assert not held


def test_the_first_part_is_small_and_the_next_ones_are_larger() -> None:
    cutter = PartCutter({}, {})
    sizes = [
        len(part.message.keys)
        for number in range(10_000)
        if (part := cutter.add(GraphRow(f"t{number}", F, b"call", ()))) is not None
    ]
    assert sizes[:6] == [FIRST_PART, 2 * FIRST_PART, 4 * FIRST_PART, 8 * FIRST_PART, 16 * FIRST_PART, 16 * FIRST_PART]


def test_large_calls_and_many_dependencies_complete_a_part() -> None:
    cutter = PartCutter({}, {})
    assert cutter.add(GraphRow("a", F, b"c" * 10, ())) is None
    assert cutter.add(GraphRow("b", F, b"c" * 2**20, ())) is not None
    assert cutter.add(GraphRow("c", F, b"c", tuple(f"x{number}" for number in range(2**17)))) is not None
    assert cutter.cut() is None


def test_a_part_names_each_function_blob_and_option_once() -> None:
    shared, own = (b"s" * 16, b"shared"), (b"o" * 16, b"own")
    g, options = function("g", shared), {"retries": 2}
    cutter = PartCutter({}, {"c": None})
    cutter.add(GraphRow("a", F, b"1", (), token=b"t"))
    cutter.add(GraphRow("b", g, b"2", (), (own,), extra=options))
    cutter.add(GraphRow("c", g, b"3", (), extra=options))
    part = cutter.cut()
    assert part is not None
    message = part.message
    assert message.functions == (F.digest, g.digest)
    assert message.function_of == (0, 1, 1)
    assert message.blobs == ((), (shared[0], own[0]), (shared[0],))
    assert message.tokens == (b"t", b"", b"")
    assert [dict(message.options[number]) for number in message.options_of] == [{}, options, options]
    assert len(message.options) == 2
    assert dict(part.contents) == {F.digest: F.data, g.digest: g.data, shared[0]: shared[1], own[0]: own[1]}
    assert part.outputs == [(2, "c")]


def test_a_plain_graph_says_what_known_outputs_stand_for() -> None:
    made = plan({"x": (operator.add, 1, 2), "y": (operator.mul, "x", 5)}, ["y"])
    parts = PlainGraphParts(made.tasks, {"y": None}, {"retries": 1})
    (part,) = parts
    assert part.message.keys == ("x", "y")
    assert part.message.dependencies == ((), (0,))
    assert parts.tokens({"y"}) == {"y": part.message.tokens[1]}
    assert PlainGraphParts(made.tasks, {"y": None}, {}).tokens(()) == {"y": b""}
    assert all(part.message.tokens)
    assert part.message.options[0] == {"retries": 1}


def test_two_keys_with_one_name_are_refused() -> None:
    tasks = [GraphTask("1", operator.neg, (1,), ()), GraphTask("1", operator.neg, (2,), ())]
    with pytest.raises(UsageError, match="two keys of the graph have the same name, '1'"):
        PlainGraphParts(tasks, {}, {})


@pytest.mark.parametrize("searches", [True, False])
def test_the_search_for_garbage_is_as_before_after_a_block_without_it(searches: bool) -> None:
    before = gc.isenabled()
    (gc.enable if searches else gc.disable)()
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == searches
    finally:
        (gc.enable if before else gc.disable)()
