"""The names that `dask.distributed` has and trio_dask does not, each with the reason or with what to use instead.

Reading such a name raises an `AttributeError` with that sentence; `hasattr` is False, as for any other name that does
not exist. `docs/coming-from-distributed.md` has the same sentences. A test compares them, and the names with those of a
released version of distributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

PAGE: Final = "docs/coming-from-distributed.md"

NO_ACTORS = "actors are not there yet"
NO_COORDINATION = "the coordination primitives are not there yet"
NO_PLUGINS = "plugins are not there yet; dask-worker --preload MODULE runs code in each worker"
NO_DASHBOARD = "there is no dashboard"
NO_DASK = "dask's collections are not supported yet"
NO_EVENTS = "events are not there yet"
NO_DATASETS = "published datasets are not there yet"
NO_METADATA = "metadata is not there yet"
NO_PROFILE = "there is no profiler"
NO_LOGS = "logs are not collected; each program writes its own to stderr"
NO_ASYNCIO = "there is no asyncio; use AsyncClient under Trio"
NO_REPLICAS = "results are copied when they are needed; scatter(broadcast=True) puts data everywhere"
INTERNAL = "it is internal to distributed"

MODULE: Final[Mapping[str, str]] = {
    "Actor": NO_ACTORS,
    "ActorFuture": NO_ACTORS,
    "Adaptive": "clusters do not adapt by themselves yet; use LocalCluster.scale",
    "BaseActorFuture": NO_ACTORS,
    "CompatibleExecutor": "there is no executor of concurrent.futures yet; use Client.submit and Client.map",
    "CondaInstall": NO_PLUGINS,
    "Environ": "use dask-worker --env NAME=VALUE",
    "Event": NO_COORDINATION,
    "InstallPlugin": NO_PLUGINS,
    "Lock": NO_COORDINATION,
    "MultiLock": NO_COORDINATION,
    "Nanny": "there is no class for a nanny; start one with dask-worker or LocalCluster",
    "NannyPlugin": NO_PLUGINS,
    "PipInstall": NO_PLUGINS,
    "Queue": NO_COORDINATION,
    "Reschedule": "a task cannot ask for another worker; use submit(retries=)",
    "SSHCluster": "dask-ssh is not there yet",
    "Scheduler": "there is no class for a scheduler; start one with dask-scheduler or LocalCluster",
    "SchedulerPlugin": "a scheduler runs no code of users",
    "Security": "TLS is not supported yet",
    "Semaphore": NO_COORDINATION,
    "SpecCluster": "use LocalCluster or dask-worker",
    "Status": "states are words; see Client.status and Future.status",
    "SubprocessCluster": "use LocalCluster, whose workers are processes of their own",
    "TimeoutError": "use Python's own TimeoutError",
    "UploadDirectory": "files are not sent to workers yet",
    "UploadFile": "files are not sent to workers yet",
    "Variable": NO_COORDINATION,
    "Worker": "there is no class for a worker; start one with dask-worker or LocalCluster; tasks have get_worker()",
    "WorkerPlugin": NO_PLUGINS,
    "config": "there is no configuration file; give options and arguments",
    "connect": INTERNAL,
    "dask": INTERNAL,
    "get_task_metadata": NO_METADATA,
    "get_task_stream": NO_DASHBOARD,
    "local_client": "use worker_client",
    "performance_report": NO_DASHBOARD,
    "print": "the output of a task appears where its worker prints",
    "progress": "there is no progress bar yet; use as_completed",
    "span": "spans are not there yet",
    "sync": NO_ASYNCIO,
    "warn": "the warnings of a task appear where its worker prints",
    "widgets": NO_DASHBOARD,
}

CLIENT: Final[Mapping[str, str]] = {
    "amm": NO_REPLICAS,
    "asynchronous": "Client blocks, and AsyncClient does not",
    "benchmark_hardware": NO_DASHBOARD,
    "call_stack": "call stacks of tasks are not available yet",
    "compute": NO_DASK,
    "dashboard_link": NO_DASHBOARD,
    "dump_cluster_state": "use story(), scheduler_info() or trio-dask status --json",
    "forward_logging": NO_LOGS,
    "futures_of": "use trio_dask.futures_of",
    "get_dataset": NO_DATASETS,
    "get_events": NO_EVENTS,
    "get_executor": "there is no executor of concurrent.futures yet; use submit and map",
    "get_metadata": NO_METADATA,
    "get_scheduler_logs": NO_LOGS,
    "get_task_stream": NO_DASHBOARD,
    "get_versions": "versions are compared when a worker or a client connects",
    "get_worker_logs": NO_LOGS,
    "list_datasets": NO_DATASETS,
    "log_event": NO_EVENTS,
    "loop": NO_ASYNCIO,
    "normalize_collection": NO_DASK,
    "persist": NO_DASK,
    "profile": NO_PROFILE,
    "publish_dataset": NO_DATASETS,
    "rebalance": NO_REPLICAS,
    "register_plugin": NO_PLUGINS,
    "register_worker_callbacks": NO_PLUGINS,
    "replicate": NO_REPLICAS,
    "set_metadata": NO_METADATA,
    "start": "a client connects when it is made",
    "subscribe_topic": NO_EVENTS,
    "sync": NO_ASYNCIO,
    "unforward_logging": NO_LOGS,
    "unpublish_dataset": NO_DATASETS,
    "unregister_scheduler_plugin": NO_PLUGINS,
    "unregister_worker_plugin": NO_PLUGINS,
    "unsubscribe_topic": NO_EVENTS,
    "upload_file": "files are not sent to workers yet",
    "write_scheduler_file": "use dask-scheduler --scheduler-file FILE",
}

FUTURE: Final[Mapping[str, str]] = {
    "bind_client": "a future belongs to the client that made it",
    "executor": "use client",
    "substitute": INTERNAL,
}

AS_COMPLETED: Final[Mapping[str, str]] = {"condition": INTERNAL}

LOCAL_CLUSTER: Final[Mapping[str, str]] = {
    "adapt": "clusters do not adapt by themselves yet; use scale",
    "asynchronous": "LocalCluster blocks, and open_local_cluster does not",
    "called_from_running_loop": NO_ASYNCIO,
    "dashboard_link": NO_DASHBOARD,
    "from_name": "connect to a cluster by its address",
    "get_logs": NO_LOGS,
    "loop": NO_ASYNCIO,
    "new_worker_spec": INTERNAL,
    "observed": "use workers",
    "plan": INTERNAL,
    "requested": "use workers",
    "scale_down": "use scale",
    "scale_up": "use scale",
    "start_worker": "use scale",
    "sync": NO_ASYNCIO,
}


def unsupported_error(owner: str, name: str, reasons: Mapping[str, str]) -> AttributeError:
    """The error to raise for a name that `owner` does not have; it gives the reason if distributed has the name."""
    reason = reasons.get(name)
    if reason is None:
        return AttributeError(f"{owner} has no attribute {name!r}")
    return AttributeError(f"{owner} has no attribute {name!r}, which distributed has: {reason} (see {PAGE})")


class UnsupportedName:
    """A descriptor for an attribute that distributed has and this class does not.

    For classes whose attributes are read for each task: a `__getattr__` would slow down every one of them.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise unsupported_error(owner.__name__, self._name, self._reasons)
