"""Graphs of dask as rows: what is special about aliases."""

import operator
from collections.abc import Hashable
from typing import Any

from dask._task_spec import Alias, Task, TaskRef

from trio_dask.client.collections.graph_nodes import DaskGraphParts
from trio_dask.protocol.messages import SubmitGraph
from trio_dask.protocol.pickled_nodes import GivenArguments
from trio_dask.protocol.pickling import load_call


def whole(graph: dict[Hashable, Any], *outputs: Hashable) -> SubmitGraph:
    (part,) = DaskGraphParts(lambda: graph, outputs, lambda _: {})
    return part.message


def test_a_task_that_depends_on_an_alias_and_on_its_target_depends_on_one_task() -> None:
    graph: dict[Hashable, Any] = {
        ("t", 0): Task(("t", 0), int),
        "a": Alias("a", ("t", 0)),
        "b": Alias("b", "a"),
        "sum": Task("sum", operator.add, TaskRef("b"), TaskRef(("t", 0))),
        "foreign": Task("foreign", operator.add, TaskRef("sum"), TaskRef(("x", 1))),
    }
    message = whole(graph, "foreign")
    assert message.keys == ("('t', 0)", "sum", "foreign")
    assert message.dependencies[:2] == ((), (0,))
    assert message.inputs == ("('x', 1)",)
    args, _ = load_call(message.calls[1], {}, {})
    assert GivenArguments(*args).compute({"('t', 0)": 21}) == ((21, 21), {})
