"""A cluster on this machine: `open_local_cluster` for Trio, `LocalCluster` for blocking code.

Scheduler and workers are processes of their own, bound to loopback; with `processes=False` they run inside the program.
No process stays behind, however the block ends, even if the program is killed.
"""

from __future__ import annotations

from functools import partial

import trio

from trio_dask.deploy.cluster import (
    CLOSED,
    AsyncCluster,
    BlockingCluster,
    awaited_in_loop,
    called_in_loop,
    for_trio,
    takes_arguments_of,
)
from trio_dask.deploy.cluster_members import Member, Members
from trio_dask.deploy.cluster_sizing import Layout, allow_files, plan, workers_for
from trio_dask.errors import ClusterError
from trio_dask.parsing import counted, format_bytes
from trio_dask.unsupported_names import LOCAL_CLUSTER

IGNORED = frozenset(("asynchronous", "dashboard_address", "loop", "silence_logs", "start", "worker_dashboard_address"))


class AsyncLocalCluster(AsyncCluster):
    """A running cluster on this machine, inside the block of `open_local_cluster`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self._members: Members | None = None

    def __repr__(self) -> str:
        layout = self._layout
        memory = "no limit" if layout.memory_limit_bytes is None else format_bytes(layout.memory_limit_bytes)
        each = f"{counted(layout.threads_per_worker, 'thread')} and {memory} each"
        return f"<local cluster {self.scheduler_address}: {counted(len(self.workers), 'worker')} with {each}>"

    def _label(self) -> str:
        return self._layout.name

    def _address(self) -> str:
        return self._running().scheduler_address

    def _members_by_name(self) -> dict[str, Member]:
        return {} if self._members is None else dict(self._members.workers)

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

    def _asked_for(self) -> int:
        return len(self._running().workers)

    async def _wait_for(self, number: int) -> None:
        await self._running().wait_for_workers(number)

    def _stop(self) -> bool:
        if self._members is not None:
            self._members.stop()
        return self._members is not None

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


open_local_cluster = for_trio(plan, AsyncLocalCluster, "open_local_cluster", "LocalCluster")


<<<<<<< HEAD
class LocalCluster(BlockingCluster[AsyncLocalCluster]):
=======
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
>>>>>>> main
    """A scheduler and workers on this machine, for blocking code; ready when it has been made.

    Use it in a `with` block, or `close` it. It ignores arguments of distributed's `LocalCluster` that mean nothing here
    (`dashboard_address`, `silence_logs`, ...).

    Raises:
      UsageError: an argument makes no sense.
      ClusterError: the cluster could not be started.
    """

    _KIND = "local cluster"
    _UNSUPPORTED = LOCAL_CLUSTER

    @takes_arguments_of(plan, name="LocalCluster", for_trio="open_local_cluster", ignored=IGNORED)
    def __init__(self, layout: Layout) -> None:
        self._start(partial(AsyncLocalCluster, layout))

    scale = called_in_loop(AsyncLocalCluster.scale)
    wait_for_workers = awaited_in_loop(AsyncLocalCluster.wait_for_workers)
