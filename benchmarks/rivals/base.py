"""What the cases ask of a system under test."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.model import Unsupported

WORKERS = 2


class Rival(abc.ABC):
    """Two worker processes, of one thread each unless a case wants more, reached from this process.

    ``start`` to ``gather`` must be there; whatever else a system does not have stays as it is here and is reported
    as such.
    """

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None
    """Its name on the package index, for the version; None for the standard library."""
    slow: ClassVar[bool] = False
    """More than a millisecond a task: the largest cases are run smaller, and the figure is per task anyway."""

    threads: int = 1
    """Of each worker; a case may set it before `start`."""

    has_workers: ClassVar[bool] = True
    """Whether it runs tasks elsewhere; else it is only asked to compute collections."""

    @abc.abstractmethod
    def start(self, folder: Path) -> None:
        """Return when both workers can run tasks."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End every process that ``start`` started."""

    @abc.abstractmethod
    def submit(self, function: Callable[..., Any], *args: Any) -> Any: ...

    @abc.abstractmethod
    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]: ...

    @abc.abstractmethod
    def wait(self, futures: Sequence[Any]) -> None:
        """Return when all are finished; no result need have travelled."""

    @abc.abstractmethod
    def gather(self, futures: Sequence[Any]) -> list[Any]: ...

    def require_dependencies(self) -> None:
        """Refuse with ``Unsupported`` if a future cannot be an argument of another call."""
        return

    def require_functions_by_value(self) -> None:
        """Refuse with ``Unsupported`` if workers must be able to import a function."""
        return

    def actor(self, kind: type[Any]) -> Any:
        """A proxy for an object of this class on a worker."""
        raise Unsupported("has no actors")

    def primitives(self) -> str:
        """The module whose `Lock` and `Queue` tasks share by name."""
        raise Unsupported("has no locks and queues")

    def limit_memory(self, nbytes: int) -> None:
        """Give each worker so much memory; called before ``start``."""
        raise Unsupported("has no memory limit")

    def encrypt(self, folder: Path) -> None:
        """Have all connections use TLS with certificates; called before ``start``."""
        raise Unsupported("has no TLS")

    def workers(self) -> list[str]:
        raise Unsupported("has no addressable workers")

    def submit_to(self, worker: str, function: Callable[..., Any], *args: Any) -> Any:
        raise Unsupported("has no addressable workers")

    def scatter(self, values: Sequence[Any]) -> list[Any]:
        raise Unsupported("has no scatter")

    def get(self, graph: Mapping[str, Any], keys: list[str]) -> list[Any]:
        raise Unsupported("has no graphs")

    def compute(self, collection: Any) -> Any:
        """The result of a dask collection."""
        raise Unsupported("does not compute dask's collections")

    def map_in_trio(self, function: Callable[..., Any], values: Sequence[Any]) -> float:
        """Seconds from ``map`` to all finished, with the client that is native to Trio."""
        raise Unsupported("has no client for Trio")

    def process_ids(self) -> dict[str, list[int]]:
        """Role to processes: "scheduler", "worker"."""
        raise Unsupported("has no processes of its own while idle")

    def time_local_cluster(self, folder: Path) -> float:
        """Seconds to a cluster on this machine with both workers ready."""
        raise Unsupported("has no LocalCluster")

    def time_programs(self, folder: Path) -> tuple[float, float]:
        """Seconds to the scheduler's ready line, and to a worker's registration, each from the program's start."""
        raise Unsupported("has no programs")
