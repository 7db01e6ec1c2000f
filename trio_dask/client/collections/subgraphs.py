"""Runs tasks that dask has fused into one. Workers import this file by the name of `run_subgraph`; it imports nothing.

dask's own function orders each subgraph anew when it runs, which takes longer than many subgraphs do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any


def run_subgraph(
    nodes: Mapping[Hashable, Any], output: Hashable, inputs: Sequence[Hashable], *values_of_inputs: Any
) -> Any:
    """The value of `output`. Each node is called with the values that it depends on; a value is dropped after its use.

    Raises whatever a node raises.
    """
    values: dict[Hashable, Any] = dict(zip(inputs, values_of_inputs, strict=True))
    uses: dict[Hashable, int] = {}
    for node in nodes.values():
        for needed in node.dependencies:
            uses[needed] = uses.get(needed, 0) + 1
    del values_of_inputs
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
        values[key] = node(values)
        stack.pop()
        for needed in node.dependencies:
            uses[needed] -= 1
            if not uses[needed] and needed != output:
                del values[needed]
    return values[output]
