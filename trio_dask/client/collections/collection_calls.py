"""Computing collections: what both clients do with expressions and graphs of dask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any, TypeVar, cast

import trio

from trio_dask.client.collections.collector import fewer_collections
from trio_dask.client.collections.dask_names import (
    base,
    delayed,
    flat,
    is_collection,
    nodes_of,
    with_graph,
    without_annotations,
)
from trio_dask.client.collections.graph_nodes import DaskGraphParts, needed_nodes
from trio_dask.client.collections.task_annotations import TaskAnnotations
from trio_dask.client.dask_graphs import key_to_str
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture
from trio_dask.client.graph_sender import lead_of_call
from trio_dask.client.task_options import Options, annotations_here

F = TypeVar("F", bound=BaseFuture)
MakeFuture = Callable[[Any], F]


def futures_for(
    engine: Engine,
    make: Callable[[Engine, Any], F],
    graph: Any,
    keys: Sequence[Hashable],
    options: Options,
    around: Mapping[str, Any],
) -> list[F]:
    """Send a graph (an expression, or a dict of tasks), and return a future for each of these keys of it.

    `around` are the annotations of the code that makes the call.
    """
    extra_of = TaskAnnotations(graph, options, around)
    names = [key_to_str(key) for key in keys]
    outputs = list(dict.fromkeys(keys))
    make_nodes = _made_here(graph) if _makes_nodes_here() else partial(nodes_of, graph)
    parts = DaskGraphParts(make_nodes, outputs, extra_of)
    states = engine.send_graph(dict.fromkeys(names, b""), parts, lead_of_call(waits=False))
    futures = {state.key: make(engine, state) for state in states}
    return [futures[name] for name in names]


def _makes_nodes_here() -> bool:
    """Whether the caller must materialize its graph itself.

    Some properties of frames compute, and until Python 3.12 a `cached_property` is locked meanwhile, for all objects of
    its class: a thread that makes nodes for the one that computes, or for earlier graphs, could wait for it for ever.
    """
    return sys.version_info < (3, 12) and "dask.dataframe" in sys.modules and not trio.lowlevel.in_trio_run()


def _made_here(graph: Any) -> Callable[[], dict[Hashable, Any]]:
    failure: Exception | None = None
    nodes: dict[Hashable, Any] = {}
    try:
        with fewer_collections():
            nodes = nodes_of(graph)
    except Exception as error:  # of the user's objects: the futures raise it
        failure = error

    def give() -> dict[Hashable, Any]:
        if failure is not None:
            raise failure
        return nodes

    return give


def compute(
    engine: Engine,
    make: Callable[[Engine, Any], F],
    collections: Any,
    options: Options,
    *,
    optimize_graph: bool = True,
    traverse: bool = True,
) -> Any:
    """A future in the place of each collection; what is none stays as it is.

    One collection gives one future. Of a list, tuple or set of several, one graph is made, and with `traverse` the
    items may be containers with collections, which become one future each.
    """

    def schedule(expr: Any, keys: Sequence[Hashable], **_: Any) -> list[F]:
        return futures_for(engine, make, expr, keys, options, around)

    around = annotations_here()
    several = _several(collections)
    items = [collections] if several is None else several
    if traverse:
        items = [_as_one(item) for item in items]
    with without_annotations():  # they would come before the options of the call
        found = base.compute(*items, traverse=False, optimize_graph=optimize_graph, scheduler=schedule)
    return found[0] if several is None else list(found)


def _several(collections: Any) -> list[Any] | None:
    """The items of a list, tuple or set; None for anything else."""
    return list(cast("Iterable[Any]", collections)) if isinstance(collections, list | tuple | set | frozenset) else None


def _as_one(item: Any) -> Any:
    """A container with collections in it as one collection."""
    return delayed(item) if _is_container(item) and not is_collection(item) else item


def _is_container(item: object) -> bool:
    return isinstance(item, list | tuple | set | dict | Iterator) or (is_dataclass(item) and not isinstance(item, type))


def persist(
    engine: Engine,
    make: Callable[[Engine, Any], F],
    collections: Any,
    options: Options,
    *,
    optimize_graph: bool = True,
) -> Any:
    """Collections like these, whose tasks are futures.

    Raises `TypeError` for what is no collection.
    """
    several = _several(collections)
    items = [collections] if several is None else several
    for item in items:
        if not is_collection(item):
            raise TypeError(f"persist() takes dask collections, not {item!r:.60}")

    def schedule(expr: Any, keys: Sequence[Hashable], **_: Any) -> list[F]:
        return futures_for(engine, make, expr, keys, options, around)

    around = annotations_here()
    with without_annotations():
        found = base.persist(*items, traverse=False, optimize_graph=optimize_graph, scheduler=schedule)
    return found[0] if several is None else list(found)


def normalize_collection(engine: Engine, make: Callable[[Engine, Any], F], collection: Any) -> Any:
    """The collection with futures for those of its tasks that the client has futures of already.

    Raises `TypeError` for what is no collection.
    """
    if not is_collection(collection):
        raise TypeError(f"normalize_collection() takes a dask collection, not {collection!r:.60}")
    graph = dict(collection.__dask_graph__())
    names = {key_to_str(key): key for key, node in graph.items() if not isinstance(node, BaseFuture)}
    states = engine.find(names)
    if not states:
        return collection
    futures = {names[state.key]: make(engine, state) for state in states}
    nodes = {key: node for key, node in nodes_of(graph).items() if key not in futures}
    outputs = list(flat(collection.__dask_keys__()))
    needed: dict[Hashable, Any] = needed_nodes(nodes, outputs)
    for key in (*outputs, *[name for node in list(needed.values()) for name in node.dependencies]):
        if key in futures:
            needed[key] = futures[key]
    return with_graph(collection, needed)


def futures_in_collection(collection: Any) -> list[Any]:
    """The futures in the graph of a collection."""
    return [value for value in dict(collection.__dask_graph__()).values() if isinstance(value, BaseFuture)]
