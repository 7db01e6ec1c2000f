"""Blocks of which one sees what ran: `get_task_stream`, and `performance_report`, whose page opens offline."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import trio

from trio_dask.client.cluster_dump import write
from trio_dask.client.current_client import get_client
from trio_dask.client.flame_graph import flame_graph
from trio_dask.client.profiles import Tree, begin_profile, profile_if_any
from trio_dask.client.report_page import page
from trio_dask.client.task_stream import STREAM_FILE, Runs
from trio_dask.client.wait_signals import refuse_in_event_loop


class get_task_stream:
    """What ran during a block, `with` for a blocking client and `async with` under Trio; afterwards in `data`.

        with get_task_stream() as stream:
            client.gather(client.map(f, range(100)))
        print(stream.data)

    Args:
      client: by default that of `get_client()`.
      plot: write it as a page into the file `filename` as well.
    """

    def __init__(
        self, client: Any = None, plot: bool | str = False, filename: str | os.PathLike[str] = STREAM_FILE
    ) -> None:
        self.data: list[dict[str, Any]] = []
        self._client = client
        self._options = {"plot": plot, "filename": filename}
        self._start = 0.0

    def __enter__(self) -> get_task_stream:
        refuse_in_event_loop("with get_task_stream()", "`async with`")
        self._client = get_client() if self._client is None else self._client
        self._client.get_task_stream(count=0)
        self._start = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self.data += self._client.get_task_stream(start=self._start, **self._options)

    async def __aenter__(self) -> get_task_stream:
        self._client = get_client() if self._client is None else self._client
        await self._client.get_task_stream(count=0)
        self._start = time.time()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._finish()  # noqa: ASYNC102 - once cancelled, it gives nothing

    async def _finish(self) -> None:
        self.data += await self._client.get_task_stream(start=self._start, **self._options)


class performance_report:
    """Writes a page about what ran during a block, `with` for a blocking client and `async with` under Trio.

        with performance_report(filename="report.html"):
            client.gather(client.map(f, range(100)))

    The page has a summary, the workers, the task stream, and a profile where workers take samples. It is one file, and
    loads nothing.

    Args:
      filename: of the page. A URL such as "s3://bucket/report.html" is written by fsspec, with the `storage_options`.
      stacklevel, mode: accepted as by distributed, and ignored.
      client: by default that of `get_client()`.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] = "dask-report.html",
        stacklevel: int = 1,
        mode: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        *,
        client: Any = None,
    ) -> None:
        self._target = os.fspath(filename)
        self._storage_options = storage_options or {}
        self._client = client
        self._start = 0.0

    def __enter__(self) -> performance_report:
        refuse_in_event_loop("with performance_report()", "`async with`")
        self._client = get_client() if self._client is None else self._client
        self._client.get_task_stream(count=0)
        begin_profile(self._client).block()
        self._start = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        runs = self._client.get_task_stream(start=self._start)
        profile = profile_if_any(self._client, self._start).block()
        self._write(self._page(runs, self._client.scheduler_info(), profile))

    async def __aenter__(self) -> performance_report:
        self._client = get_client() if self._client is None else self._client
        await self._client.get_task_stream(count=0)
        await begin_profile(self._client).wait()
        self._start = time.time()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._finish()  # noqa: ASYNC102 - once cancelled, it writes nothing

    async def _finish(self) -> None:
        runs = await self._client.get_task_stream(start=self._start)
        profile = await profile_if_any(self._client, self._start).wait()
        text = self._page(runs, await self._client.scheduler_info(), profile)
        await trio.to_thread.run_sync(self._write, text)

    def _write(self, text: str) -> None:
        write(self._target, text.encode(), lambda page, file: file.write(page), self._storage_options)

    def _page(self, runs: Runs, info: dict[str, Any], profile: Tree | None) -> str:
        elapsed_s = time.time() - self._start
        busy_s = sum(run["startstops"][0]["stop"] - run["startstops"][0]["start"] for run in runs)
        threads = info["total_threads"]
        summary = [
            ("Duration", f"{elapsed_s:.2f} s"),
            ("Runs of tasks", f"{len(runs)}"),
            ("Failed", f"{sum(run['status'] != 'OK' for run in runs)}"),
            ("Time in tasks", f"{busy_s:.2f} s"),
            ("Threads in use", f"{busy_s / elapsed_s / threads:.0%} of {threads}" if threads and elapsed_s else "none"),
            ("Workers", f"{info['n_workers']}"),
            ("Scheduler", f"{info['address']}"),
        ]
        more = [] if profile is None else ["<h2>Profile</h2>", *flame_graph(profile)]
        return page("Performance report", summary, runs, more)
