"""`client.profile`: in which functions tasks, workers and the scheduler spend their time, as these sampled it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import trio

from trio_dask.client.call_forms import CallForms, Timeout, awaitable, blocking, in_loop
from trio_dask.client.engine import Engine
from trio_dask.client.flame_graph import flame_graph
from trio_dask.client.operations import call_workers
from trio_dask.client.report_page import document
from trio_dask.client.task_options import Workers
from trio_dask.client.task_stream import moment, write_page
from trio_dask.errors import UsageError

PROFILE_FILE: Final = "dask-profile.html"
LATER: Final = 1e12
"""Later than any sample."""

PATIENCE_S: Final = 10.0
"""A worker that does not answer within this time is left out."""

HOW_TO_ENABLE: Final = (
    "set distributed.worker.profile.enabled to true in the configuration before {}, "
    "for example by DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=true"
)

Tree: TypeAlias = dict[str, Any]
"""A function: its `count` of samples, its `identifier`, its `description`, and by identifier its `children`."""


@in_loop
async def profile(
    engine: Engine,
    key: str | None = None,
    start: Timeout = None,
    stop: Timeout = None,
    workers: Workers = None,
    merge_workers: bool = True,
    plot: bool | str = False,
    filename: str | os.PathLike[str] | None = None,
    server: bool = False,
    scheduler: bool = False,
) -> Tree:
    """In which functions tasks have spent their time: a tree of functions, each with the samples taken in it.

    Workers and scheduler take samples if the configuration says so, when they start:
    `distributed.worker.profile.enabled`. They keep those of about an hour. An `async def` task is sampled where it runs
    or where it waits, as one in a thread is.

    Args:
      key: only of tasks with this name, which is usually the name of the function.
      start: later samples: seconds since 1970, or a text such as "10 s" for as long ago.
      stop: earlier ones.
      workers: names or addresses; by default all.
      merge_workers: False for a tree of each worker, by address.
      plot: write a flame graph as a page into a file.
      filename: of that page, `dask-profile.html` by default; with a name it is written without `plot`, too.
      server: of the workers themselves instead of their tasks: their event loops, and functions of `client.run`.
      scheduler: of the scheduler itself; a single tree.

    Raises:
      UsageError: what is asked for is not sampled, or arguments exclude each other.
    """
    first, last = moment(start, 0.0), moment(stop, LATER)
    if (server or scheduler) and key is not None:
        raise UsageError(f"key={key!r:.40} picks tasks: it goes with neither server=True nor scheduler=True")
    if scheduler:
        if server or workers is not None:
            raise UsageError("scheduler=True goes with neither server=True nor workers=; ask twice")
        trees = {"scheduler": await _profile_of_scheduler(engine, first, last)}
        merge_workers = True
    else:
        trees = await _profiles(engine, key, first, last, workers, server=server)
    if plot or filename is not None:
        text = document("Profile", flame_graph(merged(trees)))
        await trio.to_thread.run_sync(write_page, PROFILE_FILE if filename is None else filename, text)
    return merged(trees) if merge_workers else trees


async def _profiles(
    engine: Engine, key: str | None, start: float, stop: float, workers: Workers, *, server: bool = False
) -> dict[str, Tree]:
    ask, arguments = (_sampled_loop, (start, stop)) if server else (_sampled, (start, stop, key))
    sampled = await call_workers(engine, ask, arguments, workers, PATIENCE_S)
    found = {address: tree_of(*rows) for address, rows in sampled.items() if rows is not None}
    if sampled and not found:
        what = "themselves" if server else "their tasks"
        raise UsageError(f"the workers do not profile {what}: {HOW_TO_ENABLE.format('they start')}")
    return found


def _sampled(start: float, stop: float, key: str | None, dask_worker: Any) -> Any:
    profiler = dask_worker.profiler
    return None if profiler is None else profiler.between(start, stop, key)


def _sampled_loop(start: float, stop: float, dask_worker: Any) -> Any:
    profiler = dask_worker.profiler
    return None if profiler is None else profiler.loop_between(start, stop)


async def _profile_of_scheduler(engine: Engine, start: float, stop: float) -> Tree:
    sampled = await engine.ask("profile", (repr(start), repr(stop)))
    if sampled is None:
        raise UsageError(f"the scheduler does not profile itself: {HOW_TO_ENABLE.format('it starts')}")
    calls, counts = sampled
    return tree_of(calls, dict(counts))


@in_loop
async def begin_profile(engine: Engine) -> None:
    """Have workers end what belongs together, so that samples from now on are apart from earlier ones."""
    await _profile_if_any(engine, LATER)


@in_loop
async def profile_if_any(engine: Engine, start: float) -> Tree | None:
    """The samples from `start` on, or None if no worker takes any, or answers."""
    return await _profile_if_any(engine, start)


async def _profile_if_any(engine: Engine, start: float) -> Tree | None:
    try:
        return merged(await _profiles(engine, None, start, LATER, None))
    except UsageError:
        return None


def tree_of(calls: Sequence[tuple[int, str, str, int, str]], counts: Mapping[int, int]) -> Tree:
    """The tree of these calls, as workers list them (`stack_samples.Rows`)."""
    samples = [counts.get(number, 0) for number in range(len(calls) + 1)]
    for number in range(len(calls), 0, -1):
        samples[calls[number - 1][0]] += samples[number]
    root = _node("root", "", "", 0, "", samples[0])
    nodes = [root]
    for (caller, name, file, line_number, line), count in zip(calls, samples[1:], strict=True):
        node = _node(f"{name};{file};{line_number}", name, file, line_number, line, count)
        nodes[caller]["children"][node["identifier"]] = node
        nodes.append(node)
    return root


def _node(identifier: str, name: str, file: str, line_number: int, line: str, count: int) -> Tree:
    description = {"filename": file, "name": name, "line_number": line_number, "line": line}
    return {"count": count, "children": {}, "description": description, "identifier": identifier}


def merged(trees: Mapping[str, Tree]) -> Tree:
    """One tree of several; they stay as they are."""
    root = _node("root", "", "", 0, "", 0)
    stack = [(root, tree) for tree in trees.values()]
    while stack:
        into, tree = stack.pop()
        into["count"] += tree["count"]
        for identifier, child in tree["children"].items():
            if identifier not in into["children"]:
                into["children"][identifier] = {**child, "count": 0, "children": {}}
            stack.append((into["children"][identifier], child))
    return root


class BlockingProfiles(CallForms):
    """The form of this call for `Client`."""

    profile = blocking(profile)


class AsyncProfiles(CallForms):
    """The form of this call for `AsyncClient`."""

    profile = awaitable(profile)
