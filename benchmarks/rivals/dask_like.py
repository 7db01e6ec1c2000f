"""What trio_dask and distributed share: the client's API, and a scheduler and workers that are programs."""

from __future__ import annotations

import abc
import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.programs import Program

from .base import WORKERS, Rival

SCHEDULER_READY = r"Scheduler at:"
WORKER_READY = r"Registered to:"


class DaskLike(Rival):
    module: ClassVar[str]

    def __init__(self) -> None:
        # Loaded by name: each is optional in the environment that runs the other.
        self.package: Any = importlib.import_module(self.module)
        for name in ("Client", "LocalCluster"):  # names that load their modules late are part of the import
            getattr(self.package, name)
        self.client: Any = None
        self.scheduler_file: Path | None = None
        self.memory_arguments: list[str] = []
        self.tls_arguments: dict[str, list[str]] = {"scheduler": [], "worker": []}
        self.security: Any = None
        self.programs: dict[str, list[Program]] = {"scheduler": [], "worker": []}

    @abc.abstractmethod
    def scheduler_arguments(self, scheduler_file: Path) -> list[str]: ...

    @abc.abstractmethod
    def worker_arguments(self, scheduler_file: Path, folder: Path) -> list[str]: ...

    @abc.abstractmethod
    def local_cluster(self, folder: Path) -> Any:
        """A context manager: two worker processes of one thread each."""

    def start_programs(self, folder: Path, workers: int) -> None:
        scheduler_file = self.scheduler_file = folder / "scheduler.json"
        arguments = [*self.scheduler_arguments(scheduler_file), *self.tls_arguments["scheduler"]]
        scheduler = Program("scheduler", arguments, ready=SCHEDULER_READY, folder=folder)
        self.programs["scheduler"].append(scheduler)
        scheduler.wait_ready()
        deadline = time.monotonic() + 10.0
        while not (scheduler_file.exists() and scheduler_file.stat().st_size):
            if time.monotonic() > deadline:
                raise RuntimeError("the scheduler is ready and wrote no scheduler file")
            time.sleep(0.01)
        arguments = [*self.worker_arguments(scheduler_file, folder), *self.memory_arguments]
        arguments += self.tls_arguments["worker"]
        for number in range(workers):
            program = Program(f"worker {number}", arguments, ready=WORKER_READY, folder=folder)
            self.programs["worker"].append(program)
        for program in self.programs["worker"]:
            program.wait_ready()

    def start(self, folder: Path) -> None:
        self.start_programs(folder, WORKERS)
        more = {} if self.security is None else {"security": self.security}
        self.client = self.package.Client(scheduler_file=str(self.scheduler_file), **more)
        self.client.wait_for_workers(WORKERS)

    def stop(self) -> None:
        try:
            if self.client is not None:
                self.client.close()
        finally:
            for program in (*self.programs["worker"], *self.programs["scheduler"]):
                program.stop()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(function, *args)

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        futures: list[Any] = self.client.map(function, values)
        return futures

    def wait(self, futures: Sequence[Any]) -> None:
        _, not_done = self.package.wait(futures)
        assert not not_done

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.client.gather(futures)
        return results

    def actor(self, kind: type[Any]) -> Any:
        return self.client.submit(kind, actor=True).result()

    def primitives(self) -> str:
        return self.module

    def limit_memory(self, nbytes: int) -> None:
        self.memory_arguments = ["--memory-limit", str(nbytes)]

    def encrypt(self, folder: Path) -> None:
        # Values of processes of one machine would otherwise go from memory to memory, and not through TLS.
        os.environ["TRIO_DASK_CROSS_MEMORY"] = "0"
        self.security = self.package.Security.temporary()
        for role, arguments in self.tls_arguments.items():
            arguments += ["--protocol", "tls"]
            for option, name in (("ca-file", "ca_file"), ("cert", f"{role}_cert"), ("key", f"{role}_key")):
                path = folder / f"{role}-{option}.pem"
                path.touch(mode=0o600)
                path.write_text(getattr(self.security, f"tls_{name}"))
                arguments += [f"--tls-{option}", str(path)]

    def workers(self) -> list[str]:
        return sorted(self.client.nthreads())

    def submit_to(self, worker: str, function: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(function, *args, workers=[worker], pure=False)

    def scatter(self, values: Sequence[Any]) -> list[Any]:
        # Keys by content would measure a hash function, in either system.
        futures: list[Any] = self.client.scatter(values, hash=False)
        return futures

    def get(self, graph: Mapping[str, Any], keys: list[str]) -> list[Any]:
        return list(self.client.get(graph, keys))

    def compute(self, collection: Any) -> Any:
        return collection.compute()

    def process_ids(self) -> dict[str, list[int]]:
        return {role: [program.pid for program in programs] for role, programs in self.programs.items()}

    def time_local_cluster(self, folder: Path) -> float:
        started = time.perf_counter()
        with self.local_cluster(folder) as cluster:
            cluster.wait_for_workers(WORKERS)
            return time.perf_counter() - started

    def time_programs(self, folder: Path) -> tuple[float, float]:
        self.start_programs(folder, workers=1)
        (scheduler,), (worker,) = self.programs["scheduler"], self.programs["worker"]
        return scheduler.wait_ready(), worker.wait_ready()
