"""Runs tasks that dask has fused into one. Workers import this file by the names of its functions; it imports little.

dask's own function orders each subgraph anew when it runs, which takes longer than many subgraphs do.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any


def run_subgraph(
    nodes: Mapping[Hashable, Any], output: Hashable, inputs: Sequence[Hashable], *values_of_inputs: Any
) -> Any:
    """The value of `output`. Each node is called with the values that it depends on; a value is dropped after its use.

    Raises whatever a node raises.
    """
    values: dict[Hashable, Any] = dict(zip(inputs, values_of_inputs, strict=True))
    del values_of_inputs
    for key, node in _steps(nodes, output, values):
        values[key] = node(values)
    return values[output]


async def run_async_subgraph(
    nodes: Mapping[Hashable, Any], output: Hashable, inputs: Sequence[Hashable], *values_of_inputs: Any
) -> Any:
    """The same where nodes are `async def`: these run here, under Trio, and the others in threads."""
    import trio

    values: dict[Hashable, Any] = dict(zip(inputs, values_of_inputs, strict=True))
    del values_of_inputs
    for key, node in _steps(nodes, output, values):
        is_async = inspect.iscoroutinefunction(getattr(node, "func", None))
        values[key] = await node(values) if is_async else await trio.to_thread.run_sync(node, values)
    return values[output]


def _steps(
    nodes: Mapping[Hashable, Any], output: Hashable, values: dict[Hashable, Any]
) -> Generator[tuple[Hashable, Any]]:
    """The nodes that `output` needs, each after those that it needs. The caller puts their values into the table."""
    uses: dict[Hashable, int] = {}
    for node in nodes.values():
        for needed in node.dependencies:
            uses[needed] = uses.get(needed, 0) + 1
    stack = [output]
    while stack:
        key = stack[-1]
        if key in values:
            stack.pop()
            continue
        node = nodes[key]
        missing = [needed for needed in node.dependencies if needed not in values]
        if missing:
            stack += missing
            continue
        yield key, node
        stack.pop()
        for needed in node.dependencies:
            uses[needed] -= 1
            if not uses[needed] and needed != output:
                del values[needed]
