"""dask.distributed, with its dashboard and nannies off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import WORKERS
from .dask_like import DaskLike


class Distributed(DaskLike):
    name = "distributed"
    distribution = "distributed"
    module = "distributed"
    slow = True

    def scheduler_arguments(self, scheduler_file: Path) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(scheduler_file)]
        return ["-m", "distributed.cli.dask_scheduler", *options]

    def worker_arguments(self, scheduler_file: Path, folder: Path) -> list[str]:
        options = ["--scheduler-file", str(scheduler_file), "--host", "127.0.0.1", "--nworkers", "1"]
        options += ["--nthreads", str(self.threads), "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
        return ["-m", "distributed.cli.dask_worker", *options]

    def local_cluster(self, folder: Path) -> Any:
        return self.package.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(folder),
        )
