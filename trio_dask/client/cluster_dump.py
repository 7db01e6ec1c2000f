"""`client.dump_cluster_state`: what all programs of a cluster know, in one file."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import msgpack
import trio

from trio_dask.client.call_forms import CallForms, awaitable, blocking, in_loop
from trio_dask.client.engine import Engine
from trio_dask.client.libraries import library
from trio_dask.client.operations import outcomes_of_workers
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.processes.recent_lines import recent_lines
from trio_dask.processes.versions import versions

ANSWER_S: Final = 10.0
"""A worker that has not answered after this time is named in the file."""

LOG_LINES: Final = 1000

ENDINGS: Final = {"msgpack": ".msgpack.gz", "yaml": ".yaml"}
TABLES: Final = frozenset({"clients", "data", "runs", "tasks", "workers"})
"""Their names are those of tasks and programs."""


@in_loop
async def dump_cluster_state(
    engine: Engine,
    /,
    filename: str | os.PathLike[str] = "dask-cluster-dump",
    write_from_scheduler: bool | None = None,
    exclude: Collection[str] = (),
    format: Literal["msgpack", "yaml"] = "msgpack",
    **storage_options: Any,
) -> None:
    """Write what the scheduler and each worker know into a file: tasks, results, who runs what, logs and versions.

    The file has a mapping with `scheduler`, `workers` (by address; one that has not answered within 10 s has only
    `error`) and `versions`. It appears when it is whole.

    Args:
      filename: its ending is added if it has none: `.msgpack.gz` or `.yaml`. A URL such as "s3://bucket/dump" is
        written by fsspec, with the `storage_options`.
      write_from_scheduler: refused; the client writes the file.
      exclude: names of fields to leave out, such as "story" or "log".
      format: "msgpack" (compressed), or "yaml" for people.

    Raises:
      UsageError: an argument makes no sense.
      UnavailableError: the file cannot be written, or a library for that is missing.
    """
    ending = ENDINGS.get(format)
    if ending is None:
        raise UsageError(f"format is 'msgpack' or 'yaml', not {format!r:.40}")
    if write_from_scheduler:
        raise UsageError("a scheduler writes no files for clients: leave out write_from_scheduler=True")
    if isinstance(exclude, str):
        raise UsageError(f"exclude is a list of names, such as [{exclude!r}]")
    target = os.fspath(filename)
    if not target.endswith(ending):
        target += ending
    if storage_options and "://" not in target:
        raise UsageError(f"{min(storage_options)} is for URLs, and {target!r} is a file of this machine")
    state = _without(await _state(engine), frozenset(exclude))
    await trio.to_thread.run_sync(write, target, state, _writer(format), storage_options)


async def _state(engine: Engine) -> dict[str, Any]:
    scheduler: dict[str, Any] = {"address": engine.address, **await engine.ask("dump")}
    scheduler["tasks"] = {}
    page = 0
    while True:
        page, rows = await engine.ask("dump_tasks", (str(page),))
        scheduler["tasks"] |= rows
        if not page:
            break
    scheduler["story"] = await engine.ask("story")
    scheduler["log"] = await engine.ask("logs", (str(LOG_LINES),))
    found = await outcomes_of_workers(engine, _tables, (LOG_LINES,), ANSWER_S)
    workers: dict[str, Any] = {
        address: {"error": "it is away: its connection to the scheduler is lost"}
        for address, worker in scheduler["workers"].items()
        if worker["phase"] == "away"
    }
    by_worker: dict[str, Any] = {}
    for address, outcome in found.items():
        if isinstance(outcome, BaseException):
            workers[address] = {"error": str(outcome) or type(outcome).__name__}
        else:
            by_worker[address] = outcome.pop("versions")
            workers[address] = outcome
    told = {"scheduler": await engine.ask("versions"), "workers": by_worker, "client": versions()}
    return {"scheduler": scheduler, "workers": workers, "versions": told}


async def _tables(log_lines: int, dask_worker: Any) -> dict[str, Any]:  # noqa: ASYNC124 - to run in the event loop
    return {
        **dask_worker.tables(),
        "address": dask_worker.address,
        "name": dask_worker.name,
        "call_stacks": dask_worker.call_stacks(),
        "log": recent_lines(log_lines),
        "versions": versions(),
    }


def _without(value: Any, names: Collection[str], *, is_table: bool = False) -> Any:
    """Plain lists and mappings, without the fields of these names."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {
            key: _without(below, names, is_table=key in TABLES and not is_table)
            for key, below in items
            if is_table or key not in names
        }
    if isinstance(value, list | tuple):
        return [_without(below, names) for below in cast("list[Any]", value)]
    return value


def _writer(format: str) -> Callable[[Any, IO[bytes]], object]:
    return _write_msgpack if format == "msgpack" else partial(_write_yaml, library("yaml", "PyYAML"))


def _write_msgpack(state: Any, file: IO[bytes]) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb") as packed:
        msgpack.pack(state, packed)


def _write_yaml(yaml: Any, state: Any, file: IO[bytes]) -> None:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    yaml.dump(state, file, Dumper=dumper, encoding="utf-8", allow_unicode=True, sort_keys=False)


def write(
    target: str, state: Any, write_to: Callable[[Any, IO[bytes]], object], storage_options: Mapping[str, Any]
) -> None:
    """Write a state into a file, which appears when it is whole, or to a URL."""
    if "://" in target:
        with library("fsspec").open(target, mode="wb", **storage_options) as file:
            write_to(state, file)
        return
    path = Path(target).absolute()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with open(draft, "wb") as file:
                write_to(state, file)
            draft.replace(path)
        except BaseException:  # a draft that was not finished must not stay, whatever ended it
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error.strerror or error}") from error


class BlockingDumps(CallForms):
    """The form of this call for `Client`."""

    dump_cluster_state = blocking(dump_cluster_state)


class AsyncDumps(CallForms):
    """The form of this call for `AsyncClient`."""

    dump_cluster_state = awaitable(dump_cluster_state)
