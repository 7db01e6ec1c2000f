"""The client for blocking code: the same engine, in a Trio loop in its own thread."""

from __future__ import annotations

import atexit
import os
import weakref
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import trio

from trio_dask.client import default_clients, orphaned_clusters
from trio_dask.client.call_forms import Timeout, blocking
from trio_dask.client.client_base import IGNORED, BaseClient
from trio_dask.client.cluster_dump import BlockingDumps
from trio_dask.client.dataset_operations import BlockingDatasets
from trio_dask.client.engine import Engine
from trio_dask.client.futures import Future
from trio_dask.client.hardware import BlockingHardware
from trio_dask.client.inspection import BlockingInspection
from trio_dask.client.local_runs import BlockingLocalRuns
from trio_dask.client.loop_thread import CallbackThread, EngineThread
from trio_dask.client.memory_manager import BlockingMemory
from trio_dask.client.metadata_operations import BlockingMetadata
from trio_dask.client.open_engine import address_of, client_tls, engine_for, home_of, settings_for
from trio_dask.client.operations import BlockingOperations
from trio_dask.client.plugin_operations import BlockingPlugins
from trio_dask.client.profiles import BlockingProfiles
from trio_dask.client.task_stream import BlockingStreams
from trio_dask.client.topics import BlockingTopics
from trio_dask.client.wait_signals import as_seconds, refuse_in_event_loop
from trio_dask.errors import UsageError
from trio_dask.hooks import hooks

if TYPE_CHECKING:
    from trio_dask.client.executor import ClientExecutor

_open_clients: WeakSet[Client] = WeakSet()


class Client(
    BlockingOperations,
    BlockingDatasets,
    BlockingMetadata,
    BlockingPlugins,
    BlockingTopics,
    BlockingInspection,
    BlockingStreams,
    BlockingProfiles,
    BlockingDumps,
    BlockingHardware,
    BlockingLocalRuns,
    BlockingMemory,
    BaseClient[Future],
):
    """A client for ordinary, blocking code.

        with Client() as client:
            futures = client.map(f, range(1000))
            print(client.submit(sum, futures).result())

    `submit` and `map` return at once, without waiting for anything; results wake the caller directly. The client that
    was opened last is the default one for `get_client`; in the `with` block of a client it is that one. A client that
    is not closed is closed when the program ends. One that started a cluster and was replaced as the default one ends
    its cluster once no reference to it, or to a future of it, is left.

    A lost connection is a delay: the client dials for up to `timeout`; futures stay valid, and calls wait. If another
    scheduler answers, or the first one says goodbye or cannot be reached in time, all futures and waiting calls fail
    at once with `SchedulerLost`. The client goes on: its next request goes to the new scheduler or, while there is
    none, makes the client dial again for up to `timeout`.

    Args:
      address: of the scheduler, such as "tcp://host:8786" or "host", or a cluster. By default that of the
        configuration, such as the environment variable `DASK_SCHEDULER_ADDRESS`; without that, the client starts a
        `LocalCluster` of its own.
      timeout: for connecting, at first and again, in seconds or as a text such as "30s".
      set_as_default: whether `get_client` and unpickled futures may use this client.
      scheduler_file: instead of an address, the file that the scheduler writes; the client waits for it.
      name: of this client in the scheduler's answers and logs.
      cluster_key: the file with the cluster's key, instead of where it is looked for otherwise.
      security: certificates and TLS settings, a `Security`; or, for a cluster of its own, True for temporary ones.
      auth: False for a scheduler that was started with `--no-auth`; by default what the configuration says, or True.
      **options: for the `LocalCluster` of its own, such as `n_workers` and `threads_per_worker`.

    Raises:
      NoScheduler: none could be reached within `timeout`; the message says why. It is an `OSError`.
      RefusedError: the scheduler refuses this client, for example for its version of Python.
      ClusterError: the cluster of its own did not start.
      RuntimeError: this thread runs Trio or asyncio.
    """

    _is_default = False

    def __init__(
        self,
        address: Any = None,
        timeout: Timeout = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: object = None,
        asynchronous: bool = False,
        name: str | None = None,
        cluster_key: str | os.PathLike[str] | None = None,
        auth: bool | None = None,
        **options: Any,
    ) -> None:
        if asynchronous:
            raise UsageError("Client blocks; use AsyncClient in a Trio program")
        refuse_in_event_loop("Client()")
        options = {option: value for option, value in options.items() if option not in IGNORED}
        self.cluster = None if address is None or isinstance(address, str) else address
        self._owns_cluster = False
        settings = settings_for(address_of(address), scheduler_file, timeout, name, cluster_key, auth)
        if settings.scheduler is None and settings.scheduler_file is None:
            if hooks.local_cluster is None:
                raise UsageError("Client() needs an address or scheduler_file=")
            self.cluster = hooks.local_cluster(security=security, **options)
            self._owns_cluster = True
            settings = settings_for(address_of(self.cluster), None, timeout, name)
            security = None  # the cluster's own
        elif options:
            raise TypeError(f"Client() got an unexpected argument {min(options)!r}; there is a cluster already")
        try:
            self._open(engine_for(settings, client_tls(security)), home_of(settings), name)
        except BaseException:  # Ctrl-C as well: the cluster that was started must not stay
            self._close_cluster()
            raise
        self._scheduler_file = settings.scheduler_file
        self._is_default = set_as_default
        if set_as_default:
            former = [client for client in _open_clients if client._owns_cluster and client is not self]
            for client in former:
                client._let_go()
            if self._owns_cluster:
                orphaned_clusters.warn_of_many(1 + len(former))
            default_clients.remember(self)

    def _open(
        self, engine: Engine, home: trio.lowlevel.TrioToken | None, name: str | None = None, *, wait: bool = True
    ) -> None:
        super().__init__(engine, Future, name)
        engine.bind_client(self, Future)
        self._replaced: weakref.finalize[..., Any] | None = None
        self._callbacks = CallbackThread()
        engine.run_callback = self._callbacks.put
        self._thread = EngineThread(engine, home)
        self._thread.start(wait=wait)
        _open_clients.add(self)

    def _let_go(self) -> None:
        """Another client is the default one now: close this one's cluster with the last reference to this one."""
        if self._replaced is None:
            close = partial(_close_parts, self._thread, self._callbacks, self.cluster)
            self._replaced = orphaned_clusters.close_when_unreachable(self, self.engine, close)

    @classmethod
    def without_waiting(cls, address: str, timeout: Timeout = None, worker: str = "") -> Client:
        """A client that accepts calls while it connects, and is no default client; it can be made under Trio.

        If connecting fails, its calls raise `SchedulerLost`. If `worker`, an incarnation, is lost, its session ends.
        """
        settings = settings_for(address, None, timeout, None)
        client = cls.__new__(cls)
        client._owns_cluster = False
        client._open(engine_for(settings, worker=worker), home_of(settings), wait=False)
        return client

    def __enter__(self) -> Client:
        self._block = default_clients.as_current(self) if self._is_default else nullcontext()
        self._block.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self._block.__exit__(None, None, None)

    def close(self, timeout: Timeout = None) -> None:
        """Release everything, say goodbye, and end the cluster if it is the client's own. Idempotent.

        It cancels futures that still exist.
        """
        default_clients.forget(self)
        _open_clients.discard(self)
        if self._replaced is not None:
            self._replaced.detach()
        self._thread.stop(as_seconds(timeout))
        self._callbacks.stop()
        self._close_cluster()

    def _close_cluster(self) -> None:
        if self._owns_cluster:
            self._owns_cluster = False
            self.cluster.close()

    def get_executor(self, **options: Any) -> ClientExecutor:
        """A `concurrent.futures.Executor` that runs its calls here, for code that takes such an object.

            with client.get_executor(pure=False) as executor:
                results = list(executor.map(f, range(1000), chunksize=10))

        Args:
          **options: of all its calls, as in `submit`: `pure`, `workers`, `allow_other_workers`, `resources`,
            `retries`, `priority`, `time_limit`.

        Raises `TypeError` for another option, and `UsageError` for one that makes no sense.
        """
        from trio_dask.client.executor import ClientExecutor

        return ClientExecutor(self, **options)

    asynchronous = False
    """For dask, which takes a client as `scheduler=` if it blocks."""

    gather = blocking(BaseClient[Future]._gather)
    get = blocking(BaseClient[Future]._get, waits_if="sync")
    scatter = blocking(BaseClient[Future]._scatter)
    shutdown = blocking(BaseClient[Future]._shutdown)
    sync = blocking(BaseClient[Future]._sync)


def _close_parts(thread: EngineThread, callbacks: CallbackThread, cluster: Any) -> None:
    thread.stop(None)
    callbacks.stop()
    cluster.close()


@atexit.register
def _close_all() -> None:
    """At the end of the program, end our threads and the clusters that clients have started."""
    for client in list(_open_clients):
        client.close()
    orphaned_clusters.close_unreachable()
