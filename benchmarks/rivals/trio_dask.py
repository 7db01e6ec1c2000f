"""This package."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from .base import WORKERS
from .dask_like import DaskLike


class TrioDask(DaskLike):
    name = "trio_dask"
    distribution = "trio_dask"
    module = "trio_dask"

    def scheduler_arguments(self, scheduler_file: Path) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(scheduler_file)]
        return ["-m", "trio_dask", "scheduler", *options]

    def worker_arguments(self, scheduler_file: Path, folder: Path) -> list[str]:
        options = ["--scheduler-file", str(scheduler_file), "--host", "127.0.0.1", "--no-nanny"]
        options += ["--nthreads", str(self.threads)]
        return ["-m", "trio_dask", "worker", *options]

    def local_cluster(self, folder: Path) -> Any:
        return self.package.LocalCluster(n_workers=WORKERS, threads_per_worker=1)

    def map_in_trio(self, function: Callable[..., Any], values: Sequence[Any]) -> float:
        async def measure() -> float:
            async with self.package.AsyncClient(scheduler_file=str(self.scheduler_file)) as client:
                await client.wait_for_workers(WORKERS)
                started = time.perf_counter()
                futures = client.map(function, values)
                results = await client.gather(futures)
                elapsed = time.perf_counter() - started
                assert results == [function(value) for value in values]
                return elapsed

        return trio.run(measure)
