"""What this package uses of dask, its private names above all: they stand here, and nowhere else.

Importing this imports dask.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from dask import _task_spec
from dask._expr import Expr

Alias: Any = _task_spec.Alias
DataNode: Any = _task_spec.DataNode
GraphNode: Any = _task_spec.GraphNode
Task: Any = _task_spec.Task
TaskRef: Any = _task_spec.TaskRef

# As modules of which type checkers know nothing: their functions have few types, or wrong ones.
base: Any = import_module("dask.base")
config: Any = import_module("dask.config")
delayed: Any = import_module("dask.delayed").delayed
flat: Any = import_module("dask.core").flatten
is_collection: Any = import_module("dask.base").is_dask_collection
annotating: Any = import_module("dask.base").annotate
execute_subgraph: Any = getattr(_task_spec, "_execute_subgraph", None)
"""The function of tasks that are fused of others."""
_order: Any = import_module("dask.order").order
_spec: Any = _task_spec


def nodes_of(graph: Any) -> dict[Hashable, Any]:
    """The graph of an expression, or a dict of tasks in any of dask's forms, as a dict of `GraphNode`s."""
    if isinstance(graph, Expr):
        graph = _of(graph).__dask_graph__()
    nodes: dict[Hashable, Any] = _spec.convert_legacy_graph(dict(graph))
    return nodes


def reduce_task(task: Any) -> tuple[Any, ...]:
    """What the pickle of a task consists of: half of what dask puts there, in half the time."""
    return restore_task, (task.key, task.func, task.args, task.kwargs, task._dependencies)


def restore_task(
    key: Hashable, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dependencies: frozenset[Hashable]
) -> Any:
    """The task again."""
    task = Task.__new__(Task)
    task.key, task.func, task.args, task.kwargs, task._dependencies = key, func, args, kwargs, dependencies
    task._data_producer, task._token, task._is_coro, task._repr = False, None, None, None
    return task


def annotations_of(graph: Any) -> Mapping[str, Mapping[Hashable, Any]]:
    """What an expression says about how its tasks run: for each kind of annotation a value for each key."""
    return _of(graph).__dask_annotations__() if isinstance(graph, Expr) else {}


def with_graph(collection: Any, graph: Mapping[Hashable, Any]) -> Any:
    """A collection like this one with the same keys, and this graph."""
    rebuild, arguments = collection.__dask_postpersist__()
    if not hasattr(_of(type(collection)), "expr"):
        return rebuild(graph, *arguments)
    # A frame takes all keys of the graph for its partitions.
    from dask.dataframe import dask_expr

    meta, divisions, name = arguments
    return _of(dask_expr).from_graph(graph, meta, divisions, list(collection.__dask_keys__()), name)


@contextmanager
def without_annotations() -> Generator[None]:
    """A block in which dask puts no annotations of the code around it onto the graphs that it makes."""
    token = base._annotations.set({})
    try:
        yield
    finally:
        base._annotations.reset(token)


def is_expression(graph: Any) -> bool:
    """Whether this is an expression, and not a dict of tasks."""
    return isinstance(graph, Expr)


def ordered(nodes: Mapping[Hashable, Any]) -> list[Hashable]:
    """The keys of a graph in the order in which its tasks should run, each after those that it depends on."""
    dependencies = {key: node.dependencies for key, node in nodes.items()}
    numbers = _order(dict(nodes), dependencies=dependencies)
    return sorted(nodes, key=numbers.__getitem__)


def _of(graph: Any) -> Any:
    """The same object, of which type checkers know nothing."""
    return graph
