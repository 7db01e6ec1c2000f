"""dask's collections: from building them to their result, which dask's own work is a part of."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import work
from .model import Case, Context, Kind, Metric, at_most_of, at_most_times
from .rivals.base import WORKERS

SPLIT_EVERY = 8
"""How many inputs a sum of dask has."""
WARM_UP_SHARE = 0.02


def array_sum(share: float) -> Any:
    """23,498 tasks: blocks meet their transposed ones."""
    import dask.array as da

    blocks = max(4, round(80 * share**0.5))
    x = da.random.random((50 * blocks, 50 * blocks), chunks=(50, 50))
    return (x + x.T - x.mean(axis=0)).sum()


def bag_sum(share: float) -> Any:
    """4,288 tasks."""
    import dask.bag as db

    count = max(10, round(2_000 * share))
    return db.range(100 * count, npartitions=count).map(work.increment).filter(work.is_odd).sum()


def delayed_tree(share: float) -> Any:
    """16,383 tasks, most of whose time dask spends on building the graph."""
    from dask.delayed import delayed

    level = [delayed(work.increment)(number) for number in range(2 ** max(4, round(8_192 * share).bit_length() - 1))]
    add = delayed(work.add)
    while len(level) > 1:
        level = [add(*level[i : i + 2]) for i in range(0, len(level), 2)]
    return level[0]


def frame_means(share: float) -> Any:
    """Half a year by the minute, a partition for each day."""
    import dask.datasets

    frame = dask.datasets.timeseries("2000-01-01", _end("2000-07-01", share), freq="60s", partition_freq="1d")
    return frame.groupby("name").x.mean()


def frame_merge(share: float) -> Any:
    """60 partitions with 30 of them, by shuffles of tasks."""
    import dask
    import dask.datasets

    frame = dask.datasets.timeseries("2000-01-01", _end("2000-03-01", share), freq="600s", partition_freq="1d")
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        return frame.merge(frame.partitions[: frame.npartitions // 2], on="id").optimize()


def array_product(share: float) -> Any:
    """Bound by the linear algebra of NumPy."""
    import dask.array as da

    size = 1_000 * max(2, round(8 * share**0.5))
    y = da.random.random((size, size), chunks=(1_000, 1_000))
    return y.dot(y.T).sum()


def _end(last: str, share: float) -> str:
    import pandas as pd

    first = pd.Timestamp("2000-01-01")
    days = max(4, round((pd.Timestamp(last) - first).days * share))
    return str((first + pd.Timedelta(days=days)).date())


def compute(make: Callable[[float], Any], context: Context) -> dict[str, float]:
    """Workers have imported what they need before the clock starts."""
    rival = context.rival
    for _ in range(WORKERS):
        rival.compute(make(WARM_UP_SHARE))
    started = time.perf_counter()
    rival.compute(make(context.sizes.collection_share))
    return {"elapsed": time.perf_counter() - started}


def shuffle(context: Context) -> dict[str, float]:
    """A frame of twice what a worker may hold, by the method that each system chooses."""
    import dask.dataframe as dd

    rival, sizes = context.rival, context.sizes
    if rival.has_workers:
        rival.limit_memory(2**30)
    rival.start(context.folder)
    partitions = 64
    rows = sizes.shuffle_bytes // partitions // 32
    frame = dd.from_map(partial(work.make_frame, rows=rows), range(partitions), meta=work.make_frame(0, 0))
    small = dd.from_map(partial(work.make_frame, rows=10), range(4), meta=work.make_frame(0, 0))
    rival.compute(small.shuffle("key").map_partitions(len).sum())
    started = time.perf_counter()
    counted = rival.compute(frame.shuffle("key").map_partitions(len).sum())
    elapsed = time.perf_counter() - started
    assert counted == rows * partitions
    return {"elapsed": elapsed}


def bag_shape_graph(parts: int) -> tuple[dict[str, Any], str]:
    """The graph of RSDS' case "bag", and its output: a filtered bag times itself, filtered and summed.

    With 50 parts these are 5,459 tasks with 10,358 inputs, one more of each than there; a path has at most eight.
    """
    graph: dict[str, Any] = {}

    def add(name: str, *inputs: str) -> str:
        graph[name] = (work.block_of_bytes, len(graph), *inputs)
        return name

    kept = [add(f"kept-{part}", add(f"made-{part}")) for part in range(parts)]
    pairs = [(left, right) for left in range(parts) for right in range(parts)]
    level = [
        add(f"older-{left}-{right}", add(f"pair-{left}-{right}", *{kept[left]: None, kept[right]: None}))
        for left, right in pairs
    ]
    while len(level) > 1:
        groups = range(0, len(level), SPLIT_EVERY)
        level = [add(f"sum-{len(level)}-{start}", *level[start : start + SPLIT_EVERY]) for start in groups]
    return graph, level[0]


def bag_shape(context: Context) -> dict[str, float]:
    """The shape of one of RSDS' graphs (arXiv 2010.11105): 1.9 inputs a task, results of 12 kB."""
    graph, output = bag_shape_graph(context.sizes.bag_shape_parts)
    started = time.perf_counter()
    context.rival.get(graph, [output])
    return {"per_task": (time.perf_counter() - started) / len(graph)}


def _case(name: str, title: str, make: Callable[[float], Any], divisor: float, factor: float) -> Case:
    bounds = (at_most_of("distributed", divisor), at_most_times("sync", factor))
    return Case(name, title, partial(compute, make), (Metric("elapsed", title, Kind.TIME, bounds),))


CASES = (
    _case("array", "array of 6,400 blocks, with its transpose", array_sum, 8, 1.2),
    _case("bag", "bag of 2,000 partitions: map, filter, sum", bag_sum, 8, 1.2),
    _case("delayed", "delayed tree over 8,192 leaves", delayed_tree, 6, 1.1),
    _case("groupby", "frame of 182 partitions: means by name", frame_means, 3, 1.0),
    _case("frame-merge", "frames of 60 and 30 partitions: merge by tasks", frame_merge, 3, 1.0),
    Case(
        "product",
        "array of 64 blocks times its transpose",
        partial(compute, array_product),
        (
            Metric(
                "elapsed",
                "array of 64 blocks times its transpose",
                Kind.TIME,
                (at_most_times("distributed", 0.85),),
            ),
        ),
    ),
    Case(
        "shuffle",
        "shuffle of 2 GB on two workers of 1 GiB",
        shuffle,
        (
            Metric(
                "elapsed", "shuffle of 2 GB on two workers of 1 GiB", Kind.TIME, (at_most_times("distributed", 0.7),)
            ),
        ),
        cluster=False,
        moves_data=True,
    ),
    Case(
        "bag-shape",
        "graph of 5,459 tasks with 1.9 inputs each, results of 12 kB",
        bag_shape,
        (Metric("per_task", "bag shape of RSDS, per task", Kind.TIME, (at_most_of("distributed", 20),)),),
    ),
)
