"""dask's own scheduler "sync": all in this process, one task after the other. The floor for collections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import dask.base

from benchmarks.model import Unsupported

from .base import Rival


class OneProcess(Rival):
    name = "sync"
    distribution = "dask"
    has_workers = False

    def start(self, folder: Path) -> None:
        assert dask.base.is_dask_collection  # it is imported before any clock starts

    def stop(self) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        raise Unsupported("computes collections only")

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        raise Unsupported("computes collections only")

    def wait(self, futures: Sequence[Any]) -> None:
        raise Unsupported("computes collections only")

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        raise Unsupported("computes collections only")

    def compute(self, collection: Any) -> Any:
        return collection.compute(scheduler="sync")
