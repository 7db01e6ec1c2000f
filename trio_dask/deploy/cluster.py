"""What clusters have in common that a program starts and ends: their form for Trio, and the one that blocks.

The blocking form has a thread of its own, in which the form for Trio runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, TypeVar

import trio

from trio_dask.client.call_forms import CallForms, Timeout, awaited_by_sync
from trio_dask.client.wait_signals import limit
from trio_dask.deploy.block import opened
from trio_dask.deploy.cluster_forms import awaited_in_loop, called_in_loop
from trio_dask.deploy.cluster_sizing import check_scale
from trio_dask.errors import ClusterError, ForkedClientError, TrioDaskError
from trio_dask.html_cards import Logs, SchedulerInfo, card
from trio_dask.ids import WorkerName, given_name
from trio_dask.parsing import counted
from trio_dask.processes.job_control import handle_ctrl_z
from trio_dask.unsupported_names import unsupported_error

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client
    from trio_dask.deploy.adaptive import Adaptive
    from trio_dask.deploy.adaptive_policy import Size


CLOSED = "this cluster is closed"

R = TypeVar("R")
A = TypeVar("A", bound="AsyncCluster")


class ReadableCluster(CallForms):
    """What can be read of a cluster, in its loop or in another thread."""

    _KIND: ClassVar = "cluster"

    def _readable(self) -> AsyncCluster:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What the processes of this cluster are called."""
        return self._readable()._label()  # pyright: ignore[reportPrivateUsage] - its own base

    @property
    def scheduler_address(self) -> str:
        """Where clients connect."""
        return self._readable()._address()  # pyright: ignore[reportPrivateUsage] - its own base

    @property
    def status(self) -> str:
        """running, failed (it has ended by itself), or closed."""
        try:
            cluster = self._readable()
            cluster._address()  # pyright: ignore[reportPrivateUsage] - its own base
        except ClusterError as error:
            return "closed" if str(error) == CLOSED else "failed"
        return "running"

    @property
    def dashboard_link(self) -> str:
        """Empty: there is no dashboard."""
        return ""

    @property
    def plan(self) -> set[WorkerName]:
        """The names of the workers (over SSH: the hosts with workers) that there should be."""
        return {given_name(name) for name in self._readable().units()}

    @property
    def requested(self) -> set[WorkerName]:
        """The same: all of them are started at once."""
        return self.plan

    @property
    def observed(self) -> set[WorkerName]:
        """The names of those that are registered."""
        return {given_name(name) for name, addresses in self._readable().units().items() if addresses}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        status = self.status
        rows = {"status": status}
        title = self._KIND
        if status == "running":
            cluster = self._readable()
            title = f"{title} {cluster._label()}"  # pyright: ignore[reportPrivateUsage] - its own base
            rows["scheduler"] = cluster._address()  # pyright: ignore[reportPrivateUsage] - its own base
            rows |= cluster._amounts()  # pyright: ignore[reportPrivateUsage] - its own base
        return card(title, rows)

    @property
    def scheduler_info(self) -> SchedulerInfo:
        """The scheduler's address, and the workers that run, by address, as `Client.scheduler_info` has them."""
        cluster = self._readable()
        return SchedulerInfo(type="Scheduler", address=cluster.scheduler_address, workers=cluster.described())

    @property
    def workers(self) -> dict[str, Any]:
        """The workers by name, those that are still starting among them."""
        return self._readable()._members_by_name()  # pyright: ignore[reportPrivateUsage] - its own base


class AsyncCluster(ReadableCluster):
    """A running cluster, inside the block of what opened it. A subclass says how it is started."""

    def __init__(self) -> None:
        self._ended = trio.Event()
        self._adaptive: Adaptive | None = None
        self._helpers: trio.Nursery | None = None

    def _readable(self) -> AsyncCluster:
        return self

    def _label(self) -> str:
        raise NotImplementedError

    def _address(self) -> str:
        """Where clients connect. Raises `ClusterError` if it does not run."""
        raise NotImplementedError

    def _members_by_name(self) -> dict[str, Any]:
        raise NotImplementedError

    def described(self) -> dict[str, dict[str, Any]]:
        """What is known of the workers that run, by address: `name`, `nthreads` and `memory_limit` at least."""
        raise NotImplementedError

    def _amounts(self) -> dict[str, str]:
        """How much it has, for a card."""
        return {"workers": str(len(self._members_by_name()))}

    def _asked_for(self) -> int:
        """How many workers there should be. Raises `ClusterError` if it does not run."""
        raise NotImplementedError

    async def _wait_for(self, number: int) -> None:
        """Wait until this many workers are registered."""
        raise NotImplementedError

    def _stop(self) -> bool:
        """End everything; does not wait. False if nothing has begun."""
        raise NotImplementedError

    @property
    def failure(self) -> TrioDaskError | None:
        """Why the cluster has ended by itself, if it has."""
        raise NotImplementedError

    async def host(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the cluster and keep it until `aclose`.

        Raises:
          ClusterError: it could not be started, or it ended by itself.
        """
        raise NotImplementedError

    async def wait_for_workers(self, n_workers: int | None = None, timeout: Timeout = None) -> None:
        """Wait until at least `n_workers` workers are there, by default all that were asked for.

        Raises:
          TimeoutError: they are not, after `timeout` (seconds, or a text such as "30s").
          UsageError: `n_workers` is no whole number from 0 on.
        """
        wanted = self._asked_for()
        if n_workers is not None:
            check_scale(n_workers)
            wanted = n_workers
        with limit(timeout):
            await self._wait_for(wanted)
            return
        raise TimeoutError(f"fewer than {counted(wanted, 'worker')} after {timeout} s")

    def get_client(self, **options: Any) -> AsyncClient:
        """A client of this cluster, to be entered with `async with`; `options` are those of `AsyncClient`."""
        from trio_dask.client.async_client import AsyncClient

        return AsyncClient(self.scheduler_address, **options)

    async def get_logs(
        self, cluster: bool = True, scheduler: bool = True, workers: bool | Iterable[str] = True
    ) -> Logs:
        """What its programs have logged last, oldest first: one text for "Scheduler", one for each worker's address.

        Programs keep 10,000 lines each, also those that they do not write to stderr; a cluster inside this program logs
        where that does.

        Args:
          cluster: whether to have a text for "Cluster", which is empty: what starts programs logs in this one.
          scheduler: whether to ask the scheduler.
          workers: which workers to ask, by address; or all, or none.
        """
        logs = Logs({"Cluster": ""} if cluster else {})
        async with self.get_client(set_as_default=False) as client:
            if scheduler:
                logs["Scheduler"] = _oldest_first(await client.get_scheduler_logs())
            if workers:
                asked = await client.get_worker_logs(workers=None if workers is True else list(workers))
                logs.update((address, _oldest_first(lines)) for address, lines in asked.items())
        return logs

    # ------------------------------------------------------------------------------------------ its size

    @property
    def unit_size(self) -> Size | None:
        """What one unit offers that `scale` counts (a worker, or a host), as far as it is known before one is there."""
        return None

    def units(self) -> dict[str, Sequence[str]]:
        """The units that there should be, by name, and the addresses of the workers of each that are registered."""
        raise NotImplementedError

    def add_units(self, number: int) -> None:
        """Start this many more. Does not wait for them."""
        raise NotImplementedError

    def note_release(self, name: str) -> None:
        """The workers of this unit are about to leave, and shall not be started again."""

    def adapt(
        self,
        minimum: int | None = None,
        maximum: float | None = None,
        *,
        interval: Timeout = None,
        target_duration: Timeout = None,
        wait_count: int | None = None,
    ) -> Adaptive:
        """Have the cluster grow and shrink with the work that there is, until `scale` or the `stop` of what it returns.

        Args:
          minimum: the least number of workers (over SSH: of hosts), by default 0.
          maximum: the largest number, by default any.
          interval: the time between two decisions, by default 1 s.
          target_duration: the cluster grows until it expects to finish all work within this time, by default 5 s.
          wait_count: how many times in a row a worker must have been superfluous before it leaves, by default 3.

        The configuration has other defaults if you like (`distributed.adaptive.*`). A worker leaves only if it runs
        nothing, and after others have copied the results that it holds.

        Raises:
          UsageError: an argument makes no sense.
          ClusterError: the cluster does not run.
        """
        from trio_dask.deploy.adaptive import Adaptive, adaptive_settings

        settings = adaptive_settings(minimum, maximum, interval, target_duration, wait_count)
        self._address()
        if self._helpers is None:
            raise ClusterError(CLOSED)
        self.stop_adapting()
        self._adaptive = Adaptive(self, settings)
        self._helpers.start_soon(self._adaptive.run)
        return self._adaptive

    def stop_adapting(self) -> None:
        """Keep the size that the cluster has."""
        if self._adaptive is not None:
            self._adaptive.stop()
            self._adaptive = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the cluster, and what helps it, until it ends. Raises what `host` raises."""
        async with trio.open_nursery() as self._helpers:
            await self.host(task_status=task_status)
            self._helpers.cancel_scope.cancel()

    async def aclose(self) -> None:
        """End every worker and the scheduler. Idempotent; leaving the block does it as well."""
        if self._stop():
            await self._ended.wait()


def _oldest_first(lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join(text for _, text in reversed(lines))


class BlockingCluster(ReadableCluster, Generic[A]):
    """A cluster for blocking code: ready when it has been made. Use it in a `with` block, or `close` it."""

    asynchronous = False
    """For programs that ask; the form for Trio is an async context manager."""
    loop = None
    """distributed's event loop; there is none for programs to use."""
    _UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    """The names that distributed's class has, and this one has not, with the reason."""

    def _start(self, make: Callable[[], A]) -> None:
        """Start the cluster that `make` makes, in a thread of its own, and wait until it is ready."""
        self._make = make
        self._cluster: A | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._closing = False
        self._scope = trio.CancelScope()
        self._started = threading.Event()
        self._pid = os.getpid()
        self._error: BaseException | None = None
        handle_ctrl_z()  # a handler can be set in the main thread alone
        # A daemon: when the program ends without closing us, the children notice that by themselves.
        self._thread = threading.Thread(target=self._run, name=f"trio_dask {type(self).__name__}", daemon=True)
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:  # Ctrl-C while we start
            self.close()
            raise
        if self._error is not None:
            self._thread.join()
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: the two would keep each other, and the caller's variables

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except (Exception, BaseExceptionGroup) as exc:  # it belongs to the thread that uses us
            self._error = exc
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._closing:
            self._scope.cancel()
        with self._scope:
            async with opened(self._make()) as cluster:
                self._cluster = cluster
                self._started.set()
                await trio.sleep_forever()

    def _readable(self) -> A:
        if self._error is not None:
            raise self._error
        if self._cluster is None or not (self._is_forked or self._thread.is_alive()):
            raise ClusterError(CLOSED)
        return self._cluster

    def _usable(self) -> A:
        """The cluster, for a call that does more than read. Raises `ForkedClientError` in a forked child."""
        cluster = self._readable()
        if self._is_forked:
            raise ForkedClientError(
                f"this cluster belongs to process {self._pid}, from which process {os.getpid()} was forked"
            )
        return cluster

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    if not TYPE_CHECKING:  # a type checker would take it to have every name

        def __getattr__(self, name):
            raise unsupported_error(type(self).__name__, name, self._UNSUPPORTED)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cluster stays in its program; pass on its scheduler_address, or a scheduler file")

    def __repr__(self) -> str:
        try:
            return repr(self._readable())
        except ClusterError as exc:
            return f"<{self._KIND}: {exc}>"

    def _run_in_loop(self, run: Callable[..., Any], function: Callable[..., Any]) -> Any:
        """Have the loop's thread call or await this with the cluster, and return what it returns."""
        try:
            return run(function, self._usable(), trio_token=self._token)
        except trio.RunFinishedError:
            raise ClusterError(CLOSED) from None

    def get_client(self, **options: Any) -> Client:
        """A client of this cluster: the default one if it is that, and there are no `options`; else a new one.

        The `options` are those of `Client`.
        """
        from trio_dask.client.client import Client
        from trio_dask.client.default_clients import current

        found = None if options else current()
        return found if isinstance(found, Client) and found.cluster is self else Client(self, **options)

    def sync(self, func: Callable[..., Awaitable[R]], /, *args: Any, asynchronous: object = None, **kwargs: Any) -> R:
        """Await `func(*args, **kwargs)` in the Trio loop of this cluster, and return what it returns."""

        async def call(_: object) -> R:
            return await awaited_by_sync(func, *args, **kwargs)

        result: R = self._run_in_loop(trio.from_thread.run, call)
        return result

    adapt = called_in_loop(AsyncCluster.adapt)
    get_logs = awaited_in_loop(AsyncCluster.get_logs)
    wait_for_workers = awaited_in_loop(AsyncCluster.wait_for_workers)

    def close(self, timeout: float | None = None) -> None:
        """End every worker and the scheduler, and wait until they have ended. Idempotent.

        In a forked child it does nothing: the cluster is the parent's.
        """
        if self._is_forked:
            return
        self._closing = True
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._scope.cancel)
            except trio.RunFinishedError:
                pass  # it has ended by itself
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if self._error is not None and error is None:
            raise self._error
