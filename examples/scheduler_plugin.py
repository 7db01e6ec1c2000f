"""A plugin beside a scheduler: it notes which worker finished which tasks, and tells at the end.

As a module: `dask-scheduler --preload scheduler_plugin.py --report FILE`. As a program it starts such a scheduler.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click

from trio_dask import Client, SchedulerPlugin


class Report(SchedulerPlugin):
    """Counts finished tasks by the name of their function."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._finished: Counter[str] = Counter()
        self._workers = 0

    def add_worker(self, scheduler, worker):
        self._workers += 1

    def transition(self, key, start, finish, **more):
        if finish == "memory":
            self._finished[key.rpartition("-")[0]] += 1

    def close(self):
        lines = [f"{number} of {name}" for name, number in self._finished.most_common()]
        self._path.write_text("\n".join([f"workers: {self._workers}", *lines]))


@click.command()
@click.option("--report", required=True)
def dask_setup(scheduler, report):
    """Called by the scheduler before any worker or client joins."""
    scheduler.add_plugin(Report(report))


def main() -> None:
    """Run a cluster with this module beside its scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        file, report = f"{folder}/scheduler.json", f"{folder}/report"
        trio_dask = [sys.executable, "-m", "trio_dask"]
        options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", file]
        with (
            subprocess.Popen(
                [*trio_dask, "scheduler", *options, "--preload", __file__, "--report", report],
                stderr=subprocess.DEVNULL,
            ) as scheduler,
            subprocess.Popen(
                [*trio_dask, "worker", "--scheduler-file", file, "--no-nanny"], stderr=subprocess.DEVNULL
            ) as worker,
        ):
            try:
                with Client(scheduler_file=file) as client:
                    squares = client.map(pow, range(10), [2] * 10)
                    print("sum:", client.submit(sum, squares).result())
            finally:
                worker.terminate()
                worker.wait()
                scheduler.terminate()
        print(Path(report).read_text())


if __name__ == "__main__":
    main()
