"""``concurrent.futures.ProcessPoolExecutor``: the floor of the standard library, without a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.model import Unsupported

from .base import WORKERS, Rival


class ProcessPool(Rival):
    name = "ppe"

    def __init__(self) -> None:
        # Its processes start with the first task.
        self.pool = ProcessPoolExecutor(WORKERS)

    def start(self, folder: Path) -> None:
        pass

    def stop(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return self.pool.submit(function, *args)

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Future[Any]]:
        return [self.pool.submit(function, value) for value in values]

    def wait(self, futures: Sequence[Future[Any]]) -> None:
        wait(futures)

    def gather(self, futures: Sequence[Future[Any]]) -> list[Any]:
        return [future.result() for future in futures]

    def require_dependencies(self) -> None:
        raise Unsupported("a future cannot be an argument")

    def require_functions_by_value(self) -> None:
        raise Unsupported("pickles functions by name")
