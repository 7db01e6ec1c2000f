"""Dask's distributed network, rebuilt on Trio.

    from trio_dask import Client

    with Client() as client:                       # no address: a cluster on this machine
        print(client.submit(pow, 2, 10).result())

    async with AsyncClient("tcp://10.0.0.5:8786") as client:        # native Trio
        print(await client.gather(client.map(f, range(1000))))

Importing this loads nothing but the exceptions; every other name loads its module when it is first used.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trio_dask._version import __version__
from trio_dask.errors import (
    ActorLost,
    AddressError,
    ClusterError,
    DataLost,
    ForkedClientError,
    FutureCancelledError,
    FutureLost,
    KeptCrashing,
    KeyConflict,
    KilledWorker,
    NoScheduler,
    ProtocolError,
    RefusedError,
    RemoteError,
    Reschedule,
    SchedulerLost,
    SerializationError,
    SpillError,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    TrioDaskError,
    UnavailableError,
    UsageError,
)
from trio_dask.hooks import hooks

if TYPE_CHECKING:
    from trio_dask.client.actors import Actor, ActorFuture, BaseActorFuture
    from trio_dask.client.as_completed import as_completed
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client
    from trio_dask.client.coordination.events import AsyncEvent, Event
    from trio_dask.client.coordination.locks import AsyncLock, Lock
    from trio_dask.client.coordination.multi_locks import AsyncMultiLock, MultiLock
    from trio_dask.client.coordination.queues import AsyncQueue, Queue
    from trio_dask.client.coordination.semaphores import AsyncSemaphore, Semaphore
    from trio_dask.client.coordination.variables import AsyncVariable, Variable
    from trio_dask.client.current_client import fire_and_forget, futures_of, get_client, worker_client
    from trio_dask.client.default_clients import default_client, temp_default_client
    from trio_dask.client.futures import AsyncFuture, Future
    from trio_dask.client.memory_sampler import MemorySampler
    from trio_dask.client.metadata_operations import get_task_metadata
    from trio_dask.client.progress import progress
    from trio_dask.client.reports import get_task_stream, performance_report
    from trio_dask.client.rpc_client import rpc
    from trio_dask.client.spans import span
    from trio_dask.client.wait import ALL_COMPLETED, FIRST_COMPLETED, DoneAndNotDone, wait
    from trio_dask.deploy.adaptive import Adaptive
    from trio_dask.deploy.embedded import Nanny, Scheduler, Worker
    from trio_dask.deploy.local_cluster import LocalCluster, open_local_cluster
    from trio_dask.deploy.ssh.cluster import SSHCluster, open_ssh_cluster
    from trio_dask.plugins.bases import Environ, NannyPlugin, WorkerPlugin
    from trio_dask.plugins.files import UploadDirectory, UploadFile
    from trio_dask.plugins.forwarded_logs import ForwardLogging
    from trio_dask.plugins.installs import InstallPlugin, PipInstall
    from trio_dask.scheduler.plugins import SchedulerPlugin
    from trio_dask.security.security import Security
    from trio_dask.worker.forwarded_output import ForwardOutput
    from trio_dask.worker.remote_output import print, warn
    from trio_dask.worker.task_context import check_cancelled, get_worker, rejoin, secede

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "Actor",
    "ActorFuture",
    "ActorLost",
    "Adaptive",
    "AddressError",
    "AsyncClient",
    "AsyncEvent",
    "AsyncFuture",
    "AsyncLock",
    "AsyncMultiLock",
    "AsyncQueue",
    "AsyncSemaphore",
    "AsyncVariable",
    "BaseActorFuture",
    "CancelledError",
    "Client",
    "ClusterError",
    "DataLost",
    "DoneAndNotDone",
    "Environ",
    "Event",
    "ForkedClientError",
    "ForwardLogging",
    "ForwardOutput",
    "Future",
    "FutureCancelledError",
    "FutureLost",
    "InstallPlugin",
    "KeptCrashing",
    "KeyConflict",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MemorySampler",
    "MultiLock",
    "Nanny",
    "NannyPlugin",
    "NoScheduler",
    "PipInstall",
    "ProtocolError",
    "Queue",
    "RefusedError",
    "RemoteError",
    "Reschedule",
    "SSHCluster",
    "Scheduler",
    "SchedulerLost",
    "SchedulerPlugin",
    "Security",
    "Semaphore",
    "SerializationError",
    "SpillError",
    "TaskCancelled",
    "TaskExited",
    "TaskTimeout",
    "TrioDaskError",
    "UnavailableError",
    "UploadDirectory",
    "UploadFile",
    "UsageError",
    "Variable",
    "Worker",
    "WorkerPlugin",
    "__version__",
    "as_completed",
    "check_cancelled",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_metadata",
    "get_task_stream",
    "get_worker",
    "open_local_cluster",
    "open_ssh_cluster",
    "performance_report",
    "print",
    "progress",
    "rejoin",
    "rpc",
    "secede",
    "span",
    "temp_default_client",
    "wait",
    "warn",
    "worker_client",
]

_HOMES = {
    name: module
    for module, names in {
        "client.actors": "Actor ActorFuture BaseActorFuture",
        "client.as_completed": "as_completed",
        "client.async_client": "AsyncClient",
        "client.client": "Client",
        "client.coordination.events": "AsyncEvent Event",
        "client.coordination.locks": "AsyncLock Lock",
        "client.coordination.multi_locks": "AsyncMultiLock MultiLock",
        "client.coordination.queues": "AsyncQueue Queue",
        "client.coordination.semaphores": "AsyncSemaphore Semaphore",
        "client.coordination.variables": "AsyncVariable Variable",
        "client.current_client": "fire_and_forget futures_of get_client worker_client",
        "client.default_clients": "default_client temp_default_client",
        "client.futures": "AsyncFuture Future",
        "client.memory_sampler": "MemorySampler",
        "client.metadata_operations": "get_task_metadata",
        "client.progress": "progress",
        "client.rpc_client": "rpc",
        "client.spans": "span",
        "client.reports": "get_task_stream performance_report",
        "client.wait": "ALL_COMPLETED FIRST_COMPLETED DoneAndNotDone wait",
        "deploy.adaptive": "Adaptive",
        "deploy.embedded": "Nanny Scheduler Worker",
        "deploy.local_cluster": "LocalCluster open_local_cluster",
        "deploy.ssh.cluster": "SSHCluster open_ssh_cluster",
        "plugins.bases": "Environ NannyPlugin WorkerPlugin",
        "plugins.files": "UploadDirectory UploadFile",
        "plugins.forwarded_logs": "ForwardLogging",
        "plugins.installs": "InstallPlugin PipInstall",
        "scheduler.plugins": "SchedulerPlugin",
        "security.security": "Security",
        "worker.forwarded_output": "ForwardOutput",
        "worker.remote_output": "print warn",
        "worker.task_context": "check_cancelled get_worker rejoin secede",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        from trio_dask.unsupported_names import MODULE, unsupported_error

        raise unsupported_error(f"module {__name__!r}", name, MODULE)
    value = globals()[name] = getattr(import_module(f"trio_dask.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _local_cluster(**options: Any) -> Any:
    from trio_dask.deploy.local_cluster import LocalCluster

    return LocalCluster(**options)


def _open_local_cluster(**options: Any) -> Any:
    from trio_dask.deploy.local_cluster import open_local_cluster

    return open_local_cluster(**options)


def _find_client(address: str | None, timeout: Any) -> Any:
    from trio_dask.client.current_client import find_client

    return find_client(address, timeout)


def _around_tasks() -> Any:
    from trio_dask.client.collections.cluster_scheduler import dask_configuration
    from trio_dask.client.collections.hooks_for_libraries import serve_libraries

    serve_libraries()
    return dask_configuration.during()


def _scheduler_settings(arguments: Any) -> Any:
    from trio_dask.cli.scheduler import read_settings

    return read_settings(arguments)


def _worker_settings(arguments: Any) -> Any:
    from trio_dask.cli.worker import read_settings

    return read_settings(arguments)


def _check_worker(arguments: Any) -> None:
    from trio_dask.cli.worker import check_elsewhere

    check_elsewhere(arguments)


def _actor(*fields: Any) -> Any:
    from trio_dask.client.actors import Actor

    return Actor(*fields)


hooks.actor = _actor
hooks.scheduler_settings = _scheduler_settings
hooks.worker_settings = _worker_settings
hooks.check_worker = _check_worker
hooks.around_tasks = _around_tasks
hooks.local_cluster = _local_cluster
hooks.open_local_cluster = _open_local_cluster
hooks.find_client = _find_client
