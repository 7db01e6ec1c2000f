"""The client for blocking code: the same engine, in a Trio loop on a thread of its own."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar, TypeVarTuple
from weakref import WeakSet

import trio

from trio_dask.client import default_clients, operations, orphaned_clusters
from trio_dask.client.client_base import BaseClient
from trio_dask.client.dask_graphs import flat_keys, shaped_like
from trio_dask.client.engine import Engine
from trio_dask.client.futures import Future, Timeout
from trio_dask.client.loop_thread import CallbackThread, EngineThread
from trio_dask.client.nested_futures import concrete, filled, futures_in, own_states, skips, values_of
from trio_dask.client.open_engine import address_of, engine_for, home_of, settings_for
from trio_dask.client.option_conflicts import unambiguous
from trio_dask.client.scatter import parcels_of, put_all, reshaped
from trio_dask.client.task_options import Workers, understood
from trio_dask.client.wait_signals import as_seconds, refuse_in_event_loop
from trio_dask.errors import DataLost, UsageError
from trio_dask.hooks import hooks
from trio_dask.ids import Key

__all__ = ["Client"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_open_clients: WeakSet[Client] = WeakSet()

IGNORED = frozenset(
    ("connection_limit", "deserializers", "direct_to_workers", "extensions", "heartbeat_interval", "loop")
) | {"serializers"}
"""Arguments of distributed's `Client` that mean nothing here."""


class Client(BaseClient[Future]):
    """A client for ordinary, blocking code.

        with Client() as client:
            futures = client.map(f, range(1000))
            print(client.submit(sum, futures).result())

    `submit` and `map` return at once, without waiting for anything; results wake the caller directly. The client that
    was opened last is the default one for `get_client`. A client that is not closed is closed when the program ends.
    One that started a cluster, and was replaced as the default one, ends its cluster once nobody has it or a future of
    it.

    A lost link is a delay: the client dials again for up to `timeout`, futures stay valid, calls wait. If another
    scheduler answers then, or the first one says goodbye or cannot be reached in time, all futures and waiting calls
    fail at once with `SchedulerLost`, and stay so. The client itself goes on: what is asked next is asked of the
    scheduler that is there by then; if need be it is dialled for up to `timeout` again.

    Args:
      address: of the scheduler, such as "tcp://host:8786" or "host", or a cluster. Without one the environment variable
        `DASK_SCHEDULER_ADDRESS` counts; without that either, the client starts a `LocalCluster` of its own.
      timeout: for connecting, at first and again, in seconds or as a text such as "30s".
      set_as_default: whether `get_client` and unpickled futures may use this client.
      scheduler_file: instead of an address, the file that the scheduler writes; it is waited for.
      name: how this client is called in the scheduler's answers and logs.
      **options: for the `LocalCluster` of its own, such as `n_workers` and `threads_per_worker`.

    Raises:
      NoScheduler: none could be reached within `timeout`; the message says why. It is an `OSError`.
      RefusedError: the scheduler refuses this client, for example for its version of Python.
      ClusterError: the cluster of its own did not start.
      RuntimeError: this thread runs Trio or asyncio.
    """

    def __init__(
        self,
        address: Any = None,
        timeout: Timeout = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: object = None,
        asynchronous: bool = False,
        name: str | None = None,
        **options: Any,
    ) -> None:
        if asynchronous:
            raise UsageError("Client blocks; use AsyncClient in a Trio program")
        if security:
            raise UsageError("security= is not supported yet")
        refuse_in_event_loop("Client()")
        options = {option: value for option, value in options.items() if option not in IGNORED}
        self.cluster: Any = None if address is None or isinstance(address, str) else address
        self._owns_cluster = False
        settings = settings_for(address_of(address), scheduler_file, timeout, name)
        if settings.scheduler is None and settings.scheduler_file is None:
            if hooks.local_cluster is None:
                raise UsageError("Client() needs an address or scheduler_file=")
            self.cluster = hooks.local_cluster(**options)
            self._owns_cluster = True
            settings = settings_for(address_of(self.cluster), None, timeout, name)
        elif options:
            raise TypeError(f"Client() got an unexpected argument {min(options)!r}; there is a cluster already")
        try:
            self._open(engine_for(settings), home_of(settings), name)
        except BaseException:
            self._close_cluster()
            raise
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
        """Another client is the default one now: with the last reference to this one its own cluster ends."""
        if self._replaced is None:
            close = partial(_close_parts, self._thread, self._callbacks, self.cluster)
            self._replaced = orphaned_clusters.let_go(self, self._engine, close)

    @classmethod
    def without_waiting(cls, address: str, timeout: Timeout = None) -> Client:
        """A client that connects while calls are made already, and is not a default one; it can be made under Trio.

        Where connecting fails, whoever asks for anything hears of it as `SchedulerLost`.
        """
        settings = settings_for(address, None, timeout, None)
        client = cls.__new__(cls)
        client.cluster, client._owns_cluster = None, False
        client._open(engine_for(settings), home_of(settings), wait=False)
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.name}: {self.status}, scheduler {self._engine.address}>"

    def close(self, timeout: Timeout = None) -> None:
        """Release everything, say goodbye, and end the cluster if it is the client's own. Idempotent.

        Futures that still exist are cancelled by it.
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

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """The default client here. Raises `ValueError` if there is none."""
        return default_clients.default_client()

    def as_current(self) -> AbstractContextManager[None]:
        """Make this the default client of the code in a `with` block."""
        return default_clients.as_current(self)

    # ------------------------------------------------------------------------------------------------ results

    def gather(
        self,
        futures: Any,
        errors: Literal["raise", "skip"] = "raise",
        direct: object = None,
        asynchronous: object = None,
    ) -> Any:
        """Block for the results of futures, and return them in the same lists, tuples, sets and dicts.

        The first error is raised; with `errors="skip"` what failed is left out.
        """
        refuse_in_event_loop("Client.gather()")
        skip = skips(errors)
        futures = concrete(futures)
        states = own_states(self._engine, list(futures_in(futures)))
        try:
            reading = self._engine.read(states, None, on_failure=not skip)
        except BaseException:
            del futures  # a traceback of Ctrl-C may be kept for long, and would keep them, and so their tasks
            raise
        assert reading is not None
        return filled(futures, values_of(self._engine, reading, states, skip=skip))

    def get(self, dsk: Mapping[Any, Any], keys: Any, *, sync: bool = True, **options: Any) -> Any:
        """Compute keys of a plain graph (a dict of tasks), and return their values in the shape of `keys`.

        Without `sync` it does not wait, and futures stand in the place of values that have to be computed.

        Raises `KeyError` for a key that is neither in the graph nor at the scheduler.
        """
        if sync:
            refuse_in_event_loop("Client.get()")
        found = self._submit_graph(dsk, flat_keys(keys), understood(options))
        try:
            values = self.gather(found) if sync else found
        except DataLost:
            self._refuse_unknown(dsk, found)
            raise
        except BaseException:
            del found  # as in `gather`
            raise
        return shaped_like(keys, values)

    def scatter(
        self,
        data: Any,
        workers: Workers = None,
        broadcast: bool = False,
        direct: object = None,
        hash: bool = True,
        timeout: Timeout = None,
        asynchronous: object = None,
    ) -> Any:
        """Put values onto workers; futures in the shape of `data` (a list, tuple, set, dict, or a single value).

        Equal values have equal keys, unless `hash` is False. With `broadcast` every worker gets a copy. Scattered data
        cannot be computed again: with the last copy it is lost.
        """
        refuse_in_event_loop("Client.scatter()")
        data = concrete(data)
        parcels = parcels_of(data, hashed=hash)
        futures = self._expected(parcels)
        states = [future.state for future in futures]
        seconds = as_seconds(timeout)
        self._engine.call(put_all, self._engine, parcels, states, workers, broadcast, timeout_s=seconds)
        return reshaped(data, futures)

    # ------------------------------------------------------------------------------------------------ the cluster

    def who_has(self, futures: Any = None) -> dict[Key, tuple[str, ...]]:
        """The addresses of the workers that hold each result, by key."""
        return self._call(operations.who_has, futures)

    def has_what(self, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
        """The keys of the results that each worker holds, by address."""
        return self._call(operations.has_what, workers)

    def processing(self, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
        """The keys of the tasks that each worker has been given and not finished, by address."""
        return self._call(operations.processing, workers)

    def nthreads(self, workers: Workers = None) -> dict[str, int]:
        """How many threads each worker has, by address."""
        return self._call(operations.ask_workers, "nthreads", workers)

    ncores = nthreads

    def nbytes(self, keys: Any = None, summary: bool = True) -> dict[Key, int]:
        """The sizes of results in bytes, by name of the function; without `summary`, by key."""
        return self._call(operations.nbytes, keys, summary)

    def scheduler_info(self, *_: object, **__: object) -> dict[str, Any]:
        """What the scheduler says of itself and of its workers."""
        return self._call(operations.scheduler_info)

    def story(self, *keys_or_futures: Any) -> list[tuple[float, Key, str]]:
        """The last steps of tasks that the scheduler remembers: its time in seconds, the key, what happened."""
        return self._call(operations.story, keys_or_futures)

    def wait_for_workers(self, n_workers: int = 1, timeout: Timeout = None) -> None:
        """Block until there are this many workers. Raises `TimeoutError` if that is not in time."""
        self._call(operations.wait_for_workers, n_workers, timeout)

    @unambiguous
    def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        workers: Workers = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: operations.OnError = "raise",
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Call a function in the process of each worker, outside of its task slots; what it returned, by address.

        What it raises is raised here; with `on_error="return"` it stands in the result's place, with `"ignore"` such
        workers are left out. Without `wait` nothing is returned, and errors are logged.
        """
        operations.refuse_nanny(nanny)
        if not wait:
            self._engine.start(operations.run, self._engine, function, args, kwargs, workers, on_error)
            return None
        return self._call(operations.run, function, args, kwargs, workers, on_error)

    def run_on_scheduler(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Not available: a scheduler of trio_dask never unpickles anything. Raises `UsageError`."""
        raise UsageError(operations.NO_RUN_ON_SCHEDULER)

    def restart(self, timeout: Timeout = None, wait_for_workers: bool = True) -> None:
        """Cancel everything of every client, and have all workers begin afresh.

        Raises `TimeoutError` if, after `timeout`, not all of them are back.
        """
        self._call(operations.restart, timeout, wait_for_workers)

    def restart_workers(
        self, workers: Workers, timeout: Timeout = None, raise_for_error: bool = True
    ) -> dict[str, str]:
        """Have some workers begin afresh, as new processes where they have a nanny; what only they held is recomputed.

        Returns "OK" or "timed out" for each, by what it was called here.

        Raises:
          UsageError: there is no such worker.
          TimeoutError: one is not back after `timeout` (at most 30 s), unless `raise_for_error` is False.
        """
        return self._call(operations.restart_workers, workers, timeout, raise_for_error)

    def retire_workers(
        self, workers: Workers = None, close_workers: bool = True, remove: bool = True, n: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Have workers leave without losing anything: they finish what runs, and others take over what only they hold.

        Args:
          workers: names, addresses, hosts or numbers of the workers.
          n: instead of them, how many; those with the least to do go first.

        Returns what the workers that have left had said of themselves, by address.

        Raises:
          UsageError: there is no such worker.
          ClusterError: what they hold has nowhere to go, or they were needed otherwise; the message says what.
        """
        return self._call(operations.retire_workers, workers, n, close_workers, remove)

    def shutdown(self) -> None:
        """End the cluster, scheduler and workers, and close this client."""
        self._engine.shutdown()
        self.close()

    def _call(self, function: Callable[[Engine, *_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        refuse_in_event_loop("this call")
        return self._engine.call(function, self._engine, *args)


def _close_parts(thread: EngineThread, callbacks: CallbackThread, cluster: Any) -> None:
    thread.stop(None)
    callbacks.stop()
    cluster.close()


@atexit.register
def _close_all() -> None:
    """Leave nothing behind when the program ends: neither our threads nor the clusters that clients have started."""
    for client in list(_open_clients):
        client.close()
    orphaned_clusters.close_unreachable()
