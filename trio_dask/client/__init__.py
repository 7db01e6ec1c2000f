"""The client: `AsyncClient` for Trio, `Client` for blocking code, one core for both.

Some things a client needs come from rooms it must not import: a cluster of its own (`deploy`), and the task it is
called from (`worker`). `trio_dask` itself, which stands above all rooms, fills them in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

__all__ = ["TaskWorker", "hooks"]


class TaskWorker(Protocol):
    """What a client wants to know of the worker whose task calls it."""

    scheduler_address: str

    def get_client(self, make: Callable[[str], Any]) -> Any:
        """The client that all tasks of the worker share, made from the scheduler's address when first asked for."""
        ...


class Hooks:
    """Filled in by `trio_dask`; both import what they need when they are called."""

    local_cluster: Callable[..., Any] | None = None
    """A `LocalCluster` made from keyword arguments."""

    task_worker: Callable[[], TaskWorker | None] | None = None
    """The worker of the task that runs here, if any does."""

    outside_of_slots: Callable[[Any], AbstractContextManager[None]] | None = None
    """Around blocking for results of this client: if a task of its worker does that, others can run meanwhile."""

    outside_of_slots_async: Callable[[Any], AbstractAsyncContextManager[None]] | None = None
    """The same for waiting under Trio."""


hooks = Hooks()
