"""Fused tasks: each node is called once, after those that it needs, and what is used up is dropped."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.client.collections.subgraphs import run_async_subgraph, run_subgraph


class Node:
    """Adds a number to the sum of what it needs, and counts its calls."""

    def __init__(self, number: int, *needs: Any) -> None:
        self.number = number
        self.dependencies = frozenset(needs)
        self.calls = 0

    def __call__(self, values: Mapping[Any, int]) -> int:
        self.calls += 1
        return self.number + sum(values[need] for need in self.dependencies)


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30), st.integers(0, 3))
def test_any_subgraph_gives_what_its_nodes_give(needs_of_each: list[list[int]], inputs: int) -> None:
    names: list[Any] = [f"input-{number}" for number in range(inputs)]
    values: dict[Any, int] = {name: 1000 + number for number, name in enumerate(names)}
    nodes: dict[Any, Node] = {}
    for number, needs in enumerate(needs_of_each):
        chosen = {names[need % len(names)] for need in needs} if names else set()
        nodes[number] = Node(number, *chosen)
        values[number] = number + sum(values[need] for need in chosen)
        names.append(number)
    output = len(needs_of_each) - 1
    assert run_subgraph(nodes, output, names[:inputs], *[values[name] for name in names[:inputs]]) == values[output]
    assert all(node.calls <= 1 for node in nodes.values())


class Block:
    pass


def test_what_is_used_up_is_dropped_before_the_end() -> None:
    seen: list[weakref.ref[Block]] = []

    class Make(Node):
        def __call__(self, values: Mapping[Any, Any]) -> Any:
            assert sum(block() is not None for block in seen) <= 1
            block = Block()
            seen.append(weakref.ref(block))
            return block

    nodes: dict[Any, Any] = {0: Make(0)}
    for number in range(1, 20):
        nodes[number] = Make(number, number - 1)
    run_subgraph(nodes, 19, ())
    assert len(seen) == 20
    assert sum(block() is not None for block in seen) <= 1


def test_a_chain_of_any_length_needs_no_deep_stack() -> None:
    nodes: dict[Any, Node] = {0: Node(1)} | {number: Node(1, number - 1) for number in range(1, 20_000)}
    assert run_subgraph(nodes, 19_999, ()) == 20_000


def test_what_a_node_raises_comes_out() -> None:
    class Bad(Node):
        def __call__(self, values: Mapping[Any, int]) -> int:
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        run_subgraph({0: Bad(0), 1: Node(1, 0)}, 1, ())


async def test_async_nodes_run_under_trio_and_others_in_threads() -> None:
    class Task(Node):
        def __init__(self, number: int, func: Callable[[], Any], *needs: Any) -> None:
            super().__init__(number, *needs)
            self.func = func

        def __call__(self, values: Mapping[Any, int]) -> Any:
            return self.func()

    async def in_loop() -> bool:
        await trio.lowlevel.checkpoint()
        return True

    threaded = Task(0, trio.lowlevel.in_trio_run, "a")
    nodes: dict[Any, Any] = {"a": Task(0, in_loop), "b": threaded, "c": Task(0, in_loop, "b")}
    assert await run_async_subgraph(nodes, "c", ()) is True
    assert await run_async_subgraph({"b": threaded}, "b", ("a",), 1) is False
