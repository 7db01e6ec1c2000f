"""Cases in which the tasks cost nothing: what is measured is the system around them."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from . import work
from .model import Case, Context, Kind, Metric, at_most_of, below

DAG_SEED = 2024


def latency(context: Context) -> dict[str, float]:
    rival, calls = context.rival, context.sizes.latency_calls
    times = []
    for number in range(calls):
        started = time.perf_counter()
        result = rival.submit(work.increment, number).result()
        times.append(time.perf_counter() - started)
        assert result == number + 1
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": statistics.median(times), "p99": cuts[98]}


def map_until_finished(context: Context) -> dict[str, float]:
    rival, tasks = context.rival, context.sizes.map_tasks
    started = time.perf_counter()
    futures = rival.map(work.increment, range(tasks))
    rival.wait(futures)
    elapsed = time.perf_counter() - started
    assert futures[-1].result() == tasks
    return {"per_task": elapsed / tasks}


def map_by_value(context: Context) -> dict[str, float]:
    """A function that the workers cannot import, as those of scripts and notebooks."""
    rival, tasks = context.rival, context.sizes.map_tasks
    rival.require_functions_by_value()
    offset = 1
    started = time.perf_counter()
    futures = rival.map(lambda x: work.increment(x) + offset, range(tasks))
    rival.wait(futures)
    elapsed = time.perf_counter() - started
    assert futures[-1].result() == tasks + 1
    return {"per_task": elapsed / tasks}


def map_of_method(context: Context) -> dict[str, float]:
    """A callable with state: each task has its own."""
    rival, tasks = context.rival, context.sizes.map_tasks
    counter = work.Counter()
    started = time.perf_counter()
    futures = rival.map(counter.add, range(tasks))
    rival.wait(futures)
    elapsed = time.perf_counter() - started
    assert futures[1].result() == 1
    return {"per_task": elapsed / tasks}


def map_in_trio(context: Context) -> dict[str, float]:
    tasks = context.sizes.map_tasks
    return {"per_task_in_trio": context.rival.map_in_trio(work.increment, range(tasks)) / tasks}


def map_with_results(context: Context) -> dict[str, float]:
    rival, sizes = context.rival, context.sizes
    tasks = sizes.gather_tasks_slow if rival.slow else sizes.gather_tasks
    started = time.perf_counter()
    results = rival.gather(rival.map(work.increment, range(tasks)))
    elapsed = time.perf_counter() - started
    assert results == list(range(1, tasks + 1))
    return {"per_task": elapsed / tasks}


def chain(context: Context) -> dict[str, float]:
    rival, steps = context.rival, context.sizes.chain_steps
    rival.require_dependencies()
    started = time.perf_counter()
    links = [rival.submit(work.increment, 0)]
    for _ in range(steps - 1):
        links.append(rival.submit(work.increment, links[-1]))
    result = links[-1].result()
    elapsed = time.perf_counter() - started
    assert result == steps
    return {"per_step": elapsed / steps}


def tree(context: Context) -> dict[str, float]:
    """Neighbours are added until one is left: 2**n plain numbers, 2**n - 1 tasks."""
    rival, leaves = context.rival, 2**context.sizes.tree_exponent
    rival.require_dependencies()
    tasks = 0
    started = time.perf_counter()
    level: list[Any] = list(range(leaves))
    while len(level) > 1:
        level = [rival.submit(work.add, level[i], level[i + 1]) for i in range(0, len(level), 2)]
        tasks += len(level)
    result = level[0].result()
    elapsed = time.perf_counter() - started
    assert tasks == leaves - 1
    assert result == leaves * (leaves - 1) // 2
    return {"per_task": elapsed / tasks}


def merge(context: Context) -> dict[str, float]:
    rival, tasks = context.rival, context.sizes.merge_tasks
    rival.require_dependencies()
    started = time.perf_counter()
    result = rival.submit(work.total, rival.map(work.times_ten, range(tasks))).result()
    elapsed = time.perf_counter() - started
    assert result == 10 * tasks * (tasks - 1) // 2
    return {"per_task": elapsed / (tasks + 1)}


def random_graph(tasks: int, seed: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Each task depends on two different earlier ones; and what each must give."""
    source = random.Random(seed)
    graph: dict[str, Any] = {}
    expected: dict[str, int] = {}
    names: list[str] = []
    for number in range(tasks):
        name = f"node-{number}"
        if number < 2:
            graph[name] = (work.increment, number)
            expected[name] = number + 1
        else:
            left, right = source.sample(range(number), 2)
            graph[name] = (work.mix, names[left], names[right])
            expected[name] = work.mix(expected[names[left]], expected[names[right]])
        names.append(name)
    return graph, expected


def random_dag(context: Context) -> dict[str, float]:
    """The results of all tasks on which no other depends, through ``get``."""
    tasks = context.sizes.dag_tasks
    graph, expected = random_graph(tasks, DAG_SEED)
    used = {name for task in graph.values() for name in task[1:]}
    sinks = [name for name in graph if name not in used]
    started = time.perf_counter()
    results = context.rival.get(graph, sinks)
    elapsed = time.perf_counter() - started
    if results != [expected[name] for name in sinks]:
        raise AssertionError("the random graph gave wrong results")
    return {"per_task": elapsed / tasks}


CASES = (
    Case(
        "latency",
        "lone submit().result()",
        latency,
        (
            Metric("p50", "lone submit to result, p50", Kind.TIME, (at_most_of("distributed", 20),)),
            Metric("p99", "lone submit to result, p99", Kind.TIME),
        ),
    ),
    Case(
        "map",
        "map of trivial calls, until all are finished",
        map_until_finished,
        (Metric("per_task", "map, per task", Kind.TIME, (at_most_of("distributed", 60), below("ppe"))),),
    ),
    Case(
        "map-by-value",
        "map of a function that cannot be imported",
        map_by_value,
        (Metric("per_task", "map of a script's function, per task", Kind.TIME, (at_most_of("distributed", 60),)),),
    ),
    Case(
        "map-method",
        "map of a bound method, whose object every task has for itself",
        map_of_method,
        (Metric("per_task", "map of a bound method, per task", Kind.TIME),),
    ),
    Case(
        "map-trio",
        "the same map through AsyncClient, results included",
        map_in_trio,
        (
            Metric(
                "per_task_in_trio",
                "map through AsyncClient, per task",
                Kind.TIME,
                (at_most_of("distributed", 60), below("ppe")),
                rivals_key="map.per_task",
            ),
        ),
        only_ours=True,
        note="rivals' figure: their map",
    ),
    Case(
        "map-gather",
        "map of trivial calls with all results",
        map_with_results,
        (Metric("per_task", "map with results, per task", Kind.TIME),),
        note="distributed runs a fifth of the tasks; the figure is per task",
    ),
    Case(
        "chain",
        "chain of dependent submits",
        chain,
        (Metric("per_step", "chain, per step", Kind.TIME, (at_most_of("distributed", 40),)),),
    ),
    Case(
        "tree",
        "pairwise tree reduction, submitted one by one",
        tree,
        (Metric("per_task", "tree reduction, per task", Kind.TIME, (at_most_of("distributed", 60),)),),
    ),
    Case("merge", "merge of many into one", merge, (Metric("per_task", "merge, per task", Kind.TIME),)),
    Case(
        "random-dag",
        "random graph, two dependencies a task",
        random_dag,
        (Metric("per_task", "random graph, per task", Kind.TIME, (at_most_of("distributed", 33),)),),
    ),
)
