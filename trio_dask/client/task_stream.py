"""What ran where and when, as the scheduler has kept it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from trio_dask.client.call_forms import CallForms, Timeout, awaitable, blocking, in_loop
from trio_dask.client.engine import Engine
from trio_dask.client.report_page import page
from trio_dask.client.wait_signals import as_seconds

STREAM_FILE: Final = "task-stream.html"
Runs = Sequence[dict[str, Any]]


@in_loop
async def _task_stream(
    engine: Engine,
    start: Timeout = None,
    stop: Timeout = None,
    count: int | None = None,
    plot: bool | str = False,
    filename: str | os.PathLike[str] = STREAM_FILE,
    bokeh_resources: object = None,
) -> Runs:
    """The runs of tasks, oldest first: a dictionary for each, with `key`, `worker`, `status`, `startstops` and others.

    The scheduler keeps the last 100,000 runs from the first call of a client on, as long as that client is there.

    Args:
      start: runs that ended later: seconds since 1970, or a text such as "10 s" for as long ago.
      stop: runs that began before that.
      count: the last ones, this many.
      plot: write them as a page into the file `filename`.
      bokeh_resources: accepted as by distributed, and ignored.
    """
    rows = await engine.ask("task_stream", (repr(moment(start, 0.0)), repr(moment(stop, 1e12))))
    runs = [_run(*row) for row in rows]
    if count is not None:
        runs = runs[-count:] if count > 0 else []
    if plot:
        await trio.to_thread.run_sync(write_page, filename, page("Task stream", [], runs))
    return runs


def moment(given: Timeout, default: float) -> float:
    """A time in seconds since 1970; a text says how long ago that is."""
    if given is None:
        return default
    seconds = as_seconds(given)
    assert seconds is not None
    return time.time() - seconds if isinstance(given, str) else seconds


def _run(
    stop: float, worker: str, key: str, duration_s: float, nbytes: int, type_name: str, span: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "key": key,
        "worker": worker,
        "status": "OK" if type_name else "error",
        "nbytes": nbytes,
        "type": type_name,
        "span": span,
        "startstops": [{"action": "compute", "start": stop - duration_s, "stop": stop}],
    }


def write_page(filename: str | os.PathLike[str], text: str) -> None:
    """Write a page into a file."""
    Path(filename).write_text(text, encoding="utf-8")


class BlockingStreams(CallForms):
    """The form of this call for `Client`."""

    get_task_stream = blocking(_task_stream)


class AsyncStreams(CallForms):
    """The form of this call for `AsyncClient`."""

    get_task_stream = awaitable(_task_stream)
