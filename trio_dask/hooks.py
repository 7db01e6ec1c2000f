"""Functions that rooms offer to rooms that must not import them; None until the room is loaded.

A client asks here for the task that calls it, which the worker's room knows, and for a cluster of its own. A program
that has not loaded the worker's room runs no tasks, and learns that here at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol


class TaskWorker(Protocol):
    """What a client wants to know of the worker whose task calls it."""

    scheduler_address: str
    incarnation: str
    actors: Any
    """The actors that live there, see `worker.hosted_actors`."""

    def get_client(self, make: Callable[[str], Any]) -> Any:
        """The client that all tasks of the worker share, made from the scheduler's address when first asked for."""
        ...


class TaskHooks(Protocol):
    """What code that a task calls needs of the task's worker."""

    def current_worker(self) -> TaskWorker | None:
        """The worker of the task that runs here, if any does."""
        ...

    def outside_of_slots(self, client: object) -> AbstractContextManager[None]:
        """A context in which to block for results of this client; a task of its worker frees its slot meanwhile."""
        ...

    def outside_of_slots_async(self, client: object) -> AbstractAsyncContextManager[None]:
        """The same for waiting under Trio."""
        ...


class _Hooks:
    tasks: TaskHooks | None = None
    """Set by `trio_dask.worker.task_context` when it is loaded."""

    local_cluster: Callable[..., Any] | None = None
    """Makes a `LocalCluster` of keyword arguments; set by `trio_dask`."""

    open_local_cluster: Callable[..., AbstractAsyncContextManager[Any]] | None = None
    """Opens a local cluster in this Trio loop, of keyword arguments; set by `trio_dask`."""

    find_client: Callable[[str | None, Any], Any] | None = None
    """Finds the client that is current here, for futures that are unpickled; set by `trio_dask`."""

    actor: Callable[[type[Any], str, int, str], Any] | None = None
    """Makes the proxy of an actor, from its class, its key, the run that made it and the address of its worker; set by
    `trio_dask`."""

    scheduler_settings: Callable[[Sequence[str]], Any] | None = None
    """Makes `SchedulerSettings` of a command line of `dask-scheduler`; set by `trio_dask`."""

    worker_settings: Callable[[Sequence[str]], Any] | None = None
    """Makes `NannySettings`, one for each worker, of a command line of `dask-worker`; set by `trio_dask`."""

    check_worker: Callable[[Sequence[str]], None] | None = None
    """Refuses a command line of `dask-worker` that would be wrong on any machine; set by `trio_dask`."""

    around_tasks: Callable[[], AbstractContextManager[None]] | None = None
    """Around the time in which a worker runs tasks: collections that these compute are computed by its cluster; set by
    `trio_dask`."""


hooks = _Hooks()


def client_here(address: str | None = None) -> Any:
    """The client that is current here, usable or not; with an address, one of the scheduler there.

    Raises `ValueError` if there is none.
    """
    assert hooks.find_client is not None, "trio_dask sets it"
    return hooks.find_client(address, None)
