"""A cluster on this machine: `open_local_cluster` for Trio, `LocalCluster` for blocking code.

Scheduler and workers are processes of their own, bound to loopback; with `processes=False` they run inside the program.
No process stays behind, however the block ends, even if the program is killed.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from inspect import Parameter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import trio

from trio_dask.client.call_forms import CallForms, Timeout, described_by, remade
from trio_dask.client.wait_signals import limit, refuse_in_event_loop, require_trio
from trio_dask.deploy.cluster_members import Member, Members
from trio_dask.deploy.cluster_sizing import Layout, allow_files, check_scale, plan, workers_for
from trio_dask.errors import ClusterError, ForkedClientError, UsageError
from trio_dask.parsing import counted, format_bytes
from trio_dask.processes.job_control import handle_ctrl_z
from trio_dask.unsupported_names import LOCAL_CLUSTER, unsupported_error

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client


CLOSED = "this cluster is closed"

IGNORED = frozenset(("asynchronous", "dashboard_address", "loop", "silence_logs", "start", "worker_dashboard_address"))

P = ParamSpec("P")
R = TypeVar("R")
Form = TypeVar("Form", bound=Callable[..., Any])


class _BaseCluster(CallForms):
    """What can be read of a cluster, in its loop or in another thread."""

    def _readable(self) -> AsyncLocalCluster:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What the processes of this cluster are called."""
        return self._readable()._layout.name  # pyright: ignore[reportPrivateUsage] - its own base

    @property
    def scheduler_address(self) -> str:
        """Where clients connect."""
        return self._readable()._running().scheduler_address  # pyright: ignore[reportPrivateUsage] - its own base

    @property
    def workers(self) -> dict[str, Member]:
        """The workers by name, those that are still starting (they have no address yet) among them."""
        members = self._readable()._members  # pyright: ignore[reportPrivateUsage] - its own base
        return {} if members is None else dict(members.workers)


class AsyncLocalCluster(_BaseCluster):
    """A running cluster on this machine, inside the block of `open_local_cluster`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._members: Members | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        layout = self._layout
        memory = "no limit" if layout.memory_limit_bytes is None else format_bytes(layout.memory_limit_bytes)
        each = f"{counted(layout.threads_per_worker, 'thread')} and {memory} each"
        return f"<local cluster {self.scheduler_address}: {counted(len(self.workers), 'worker')} with {each}>"

    def _readable(self) -> AsyncLocalCluster:
        return self

    def scale(self, n: int = 0, memory: str | float | None = None, cores: int | None = None) -> None:
        """Have `n` workers, or enough for this much `memory` or this many `cores` (threads) in all.

        It does not wait for them. Results that only a leaving worker held are computed again.

        Raises:
          UsageError: one of these is no whole number from 0 on, or no amount of memory; or the system does not allow
            as many open files as that many workers need.
        """
        members = self._running()
        number = workers_for(self._layout, n, memory, cores)
        allow_files(self._layout, number)
        members.set_worker_count(number)

    async def wait_for_workers(self, n_workers: int | None = None, timeout: Timeout = None) -> None:
        """Wait until at least `n_workers` workers are there, by default all that were asked for.

        Raises:
          TimeoutError: they are not, after `timeout` (seconds, or a text such as "30s").
          UsageError: `n_workers` is no whole number from 0 on.
        """
        members = self._running()
        if n_workers is not None:
            check_scale(n_workers)
        wanted = len(members.workers) if n_workers is None else n_workers
        with limit(timeout):
            await members.wait_for_workers(wanted)
            return
        raise TimeoutError(f"fewer than {counted(wanted, 'worker')} after {timeout} s")

    def get_client(self, **options: Any) -> AsyncClient:
        """A client of this cluster, to be entered with `async with`; `options` are those of `AsyncClient`."""
        from trio_dask.client.async_client import AsyncClient

        return AsyncClient(self.scheduler_address, **options)

    async def aclose(self) -> None:
        """End every worker and the scheduler. Idempotent; leaving the block does it as well."""
        if self._members is not None:
            self._members.stop()
            await self._ended.wait()

    @property
    def failure(self) -> ClusterError | None:
        """Why the cluster has ended by itself, if it has."""
        return None if self._members is None else self._members.failure

    def _running(self) -> Members:
        if self._members is None or self._ended.is_set():
            raise self.failure or ClusterError(CLOSED)
        return self._members

    async def host(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the cluster and keep it until `aclose`.

        Raises:
          ClusterError: it could not be started, or it ended by itself.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._members = Members(self._layout, nursery)
                await self._members.start()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._ended.set()
            if self._members is not None:
                self._members.note_end()
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def _open(layout: Layout) -> AsyncGenerator[AsyncLocalCluster, None]:
    cluster = AsyncLocalCluster(layout)
    with _one_error(cluster):
        async with trio.open_nursery() as nursery:
            await nursery.start(cluster.host)
            yield cluster
            nursery.cancel_scope.cancel()


def _described(form: Form, definition: Callable[..., Any], name: str, result: str, *around: Parameter) -> Form:
    """Give a form its definition's docstring and signature; its first and last parameters may be its own."""
    described = cast("Any", form)
    described.__name__, described.__qualname__, described.__doc__ = name.rpartition(".")[2], name, definition.__doc__
    parameters = [*around[:1], *inspect.signature(definition).parameters.values(), *around[1:]]
    described.__signature__ = inspect.Signature(parameters, return_annotation=result)
    return form


def _for_trio(definition: Callable[P, Layout]) -> Callable[P, AbstractAsyncContextManager[AsyncLocalCluster]]:
    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[AsyncLocalCluster]:
        require_trio("open_local_cluster", "LocalCluster")
        return _open(definition(*args, **kwargs))

    return _described(call, definition, "open_local_cluster", "AbstractAsyncContextManager[AsyncLocalCluster]")


open_local_cluster = _for_trio(plan)


@contextmanager
def _one_error(cluster: AsyncLocalCluster) -> Generator[None]:
    """Raise what the block raised without the group of our nursery, or the cluster's failure if it has failed."""
    try:
        yield
    except BaseExceptionGroup as group:  # raised again, whole if it has several errors
        only = group.exceptions[0] if len(group.exceptions) == 1 else None
        if cluster.failure is not None:
            raise cluster.failure from (None if only is cluster.failure else group)
        if only is None:
            raise
        raise only from only.__cause__


def _takes_arguments_of(
    definition: Callable[P, Layout],
) -> Callable[[Callable[[LocalCluster, Layout], None]], Callable[Concatenate[LocalCluster, P], None]]:
    """A decorator for `__init__`: takes the definition's arguments, and ignores some of distributed's."""
    known = inspect.signature(definition).parameters.keys()

    def decorate(start: Callable[[LocalCluster, Layout], None]) -> Callable[Concatenate[LocalCluster, P], None]:
        def call(self: LocalCluster, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if kwargs.pop("asynchronous", None):
                raise UsageError("LocalCluster blocks; use open_local_cluster in a Trio program")
            for name in sorted(kwargs.keys() - known):
                if name not in IGNORED:
                    raise TypeError(f"LocalCluster() got an unexpected argument {name!r}")
                del kwargs[name]
            refuse_in_event_loop("LocalCluster()")
            start(self, definition(*args, **kwargs))

        own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        foreign = Parameter("foreign", Parameter.VAR_KEYWORD, annotation="Any")
        return _described(call, definition, "LocalCluster.__init__", "None", own, foreign)

    return decorate


def _awaited_in_loop(
    method: Callable[Concatenate[AsyncLocalCluster, P], Awaitable[R]],
) -> Callable[Concatenate[LocalCluster, P], R]:
    """The form of an async method that blocks."""
    form: Callable[Concatenate[LocalCluster, P], R] = _form(method, trio.from_thread.run)
    return form


def _called_in_loop(
    method: Callable[Concatenate[AsyncLocalCluster, P], R],
) -> Callable[Concatenate[LocalCluster, P], R]:
    """The form of a method for other threads than that of the cluster's loop."""
    form: Callable[Concatenate[LocalCluster, P], R] = _form(method, trio.from_thread.run_sync)
    return form


def _form(method: Callable[..., Any], run: Callable[..., Any]) -> Any:
    def make(name: str) -> Callable[..., Any]:
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            def act(cluster: AsyncLocalCluster) -> Any:
                return method(cluster, *args, **kwargs)

            return self._run_in_loop(run, act)

        return described_by(method, call, name)

    return remade(make, method.__name__)


class LocalCluster(_BaseCluster):
    """A scheduler and workers on this machine, for blocking code; ready when it has been made.

    Use it in a `with` block, or `close` it. It ignores arguments of distributed's `LocalCluster` that mean nothing here
    (`dashboard_address`, `silence_logs`, ...).

    Raises:
      UsageError: an argument makes no sense.
      ClusterError: the cluster could not be started.
    """

    @_takes_arguments_of(plan)
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._cluster: AsyncLocalCluster | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._closing = False
        self._scope = trio.CancelScope()
        self._started = threading.Event()
        self._pid = os.getpid()
        self._error: BaseException | None = None
        handle_ctrl_z()  # a handler can be set in the main thread alone
        # A daemon: when the program ends without closing us, the children notice that by themselves.
        self._thread = threading.Thread(target=self._run, name="trio_dask local cluster", daemon=True)
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
            async with _open(self._layout) as cluster:
                self._cluster = cluster
                self._started.set()
                await trio.sleep_forever()

    def _readable(self) -> AsyncLocalCluster:
        if self._error is not None:
            raise self._error
        if self._cluster is None or not (self._is_forked or self._thread.is_alive()):
            raise ClusterError(CLOSED)
        return self._cluster

    def _usable(self) -> AsyncLocalCluster:
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
            raise unsupported_error("LocalCluster", name, LOCAL_CLUSTER)

    def __repr__(self) -> str:
        try:
            return repr(self._readable())
        except ClusterError as exc:
            return f"<local cluster: {exc}>"

    def _run_in_loop(self, run: Callable[..., Any], function: Callable[..., Any]) -> Any:
        """Have the loop's thread call or await this with the cluster, and return what it returns."""
        try:
            return run(function, self._usable(), trio_token=self._token)
        except trio.RunFinishedError:
            raise ClusterError(CLOSED) from None

    scale = _called_in_loop(AsyncLocalCluster.scale)
    wait_for_workers = _awaited_in_loop(AsyncLocalCluster.wait_for_workers)

    def get_client(self, **options: Any) -> Client:
        """A client of this cluster; `options` are those of `Client`."""
        from trio_dask.client.client import Client

        return Client(self, **options)

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

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if self._error is not None and error is None:
            raise self._error
