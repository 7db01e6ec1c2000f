"""A cluster on this machine: `open_local_cluster` for Trio, `LocalCluster` for blocking code.

Scheduler and workers are processes of their own, bound to loopback; with `processes=False` they run inside the program.
No process stays behind, however the block ends, even if the program is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import trio

from trio_dask.deploy.adaptive_policy import Size
from trio_dask.deploy.cluster import CLOSED, AsyncCluster, BlockingCluster, ReadableCluster
from trio_dask.deploy.cluster_forms import called_in_loop, for_trio, takes_arguments_of
from trio_dask.deploy.cluster_members import Member, Members
from trio_dask.deploy.cluster_sizing import Layout, allow_files, most_workers_for, plan, workers_for
from trio_dask.deploy.embedded import Scheduler, Worker
from trio_dask.errors import ClusterError
from trio_dask.html_cards import Totals
from trio_dask.ids import WorkerName, given_name
from trio_dask.parsing import counted, format_bytes
from trio_dask.unsupported_names import CLUSTER

if TYPE_CHECKING:
    from trio_dask.client.call_forms import Timeout
    from trio_dask.deploy.adaptive import Adaptive

IGNORED = frozenset(
    (
        *("asynchronous", "blocked_handlers", "dashboard_address", "loop", "scheduler_sync_interval", "service_kwargs"),
        *("services", "start", "worker_dashboard_address", "worker_services"),
    )
)


class SchedulerMember(NamedTuple):
    """The scheduler of a local cluster, a process. `pid` is None before it runs."""

    address: str
    pid: int | None


class _Described(ReadableCluster):
    """What distributed's local cluster says of its members."""

    _KIND = "local cluster"

    @property
    def scheduler(self) -> SchedulerMember | Scheduler:
        """The scheduler: its address and its process; or itself, if it runs in this program."""
        return cast("AsyncLocalCluster", self._readable()).scheduler_member()


class AsyncLocalCluster(_Described, AsyncCluster):
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

    def _amounts(self) -> dict[str, str]:
        return Totals.of(self.described().values()).rows()

    def scheduler_member(self) -> SchedulerMember | Scheduler:
        """The scheduler. Raises `ClusterError` if it does not run."""
        members = self._running()
        return members.scheduler or SchedulerMember(members.scheduler_address, members.scheduler_pid)

    def described(self) -> dict[str, dict[str, Any]]:
        """See `AsyncCluster.described`."""
        layout = self._layout
        return {
            member.address: {
                "type": "Worker",
                "name": given_name(name),
                "pid": member.pid,
                "nthreads": layout.threads_per_worker,
                "memory_limit": layout.memory_limit_bytes,
            }
            for name, member in self._members_by_name().items()
            if member.address
        }

    def _label(self) -> str:
        return self._layout.name

    def _address(self) -> str:
        return self._running().scheduler_address

    def _members_by_name(self) -> dict[str, Member | Worker]:
        members = {} if self._members is None else self._members.workers
        return {name: member.worker or member for name, member in members.items()}

    def scale(self, n: int = 0, memory: str | float | None = None, cores: int | None = None) -> None:
        """Have `n` workers, or enough for this much `memory` or this many `cores` (threads) in all.

        It does not wait for them, and ends `adapt`. Results that only a leaving worker held are computed again.

        Raises:
          UsageError: one of these is no whole number from 0 on, or no amount of memory; or the system does not allow
            as many open files as that many workers need.
        """
        members = self._running()
        number = workers_for(self._layout, n, memory, cores)
        self.stop_adapting()
        allow_files(self._layout, number)
        members.set_worker_count(number)

    scale_up = scale
    """The same, as with distributed."""

    def scale_down(self, workers: Iterable[WorkerName]) -> None:
        """End these workers, by name or address; does not wait, and ends `adapt`.

        Results that only they held are computed again. Names that no worker has mean nothing.
        """
        members = self._running()
        self.stop_adapting()
        members.end_workers({str(worker) for worker in workers})

    def adapt(
        self,
        minimum: int | None = None,
        maximum: float | None = None,
        *,
        interval: Timeout = None,
        target_duration: Timeout = None,
        wait_count: int | None = None,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | float | None = None,
        maximum_memory: str | float | None = None,
    ) -> Adaptive:
        """Have the cluster grow and shrink with the work that there is, until `scale` or the `stop` of what it returns.

        Args:
          minimum: the least number of workers, by default 0.
          maximum: the largest number, by default any.
          interval: the time between two decisions, by default 1 s.
          target_duration: the cluster grows until it expects to finish all work within this time, by default 5 s.
          wait_count: how many times in a row a worker must have been superfluous before it leaves, by default 3.
          minimum_cores, minimum_memory: as many workers as have at least this many threads, and this much memory.
          maximum_cores, maximum_memory: no more workers than have at most so many, and so much.

        The configuration has other defaults if you like (`distributed.adaptive.*`). A worker leaves only if it runs
        nothing, and after others have copied the results that it holds.

        Raises:
          UsageError: an argument makes no sense.
          ClusterError: the cluster does not run.
        """
        layout = self._layout
        if minimum_cores is not None or minimum_memory is not None:
            minimum = workers_for(layout, 0 if minimum is None else minimum, minimum_memory, minimum_cores)
        if maximum_cores is not None or maximum_memory is not None:
            most = most_workers_for(layout, maximum_memory, maximum_cores)
            maximum = most if maximum is None else min(maximum, most)
        return super().adapt(
            minimum, maximum, interval=interval, target_duration=target_duration, wait_count=wait_count
        )

    @property
    def unit_size(self) -> Size:
        """What one worker offers."""
        layout = self._layout
        return Size(layout.threads_per_worker, layout.memory_limit_bytes or 0, layout.worker.get("resources") or {})

    def units(self) -> dict[str, Sequence[str]]:
        """See `AsyncCluster.units`."""
        return {
            name: () if member.address is None else (member.address,)
            for name, member in self._running().workers.items()
        }

    def add_units(self, number: int) -> None:
        """Start this many more workers. Does not wait for them."""
        members = self._running()
        number += len(members.workers)
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


open_local_cluster = for_trio(plan, AsyncLocalCluster, "open_local_cluster", "LocalCluster", IGNORED)


class LocalCluster(_Described, BlockingCluster[AsyncLocalCluster]):
    """A scheduler and workers on this machine, for blocking code; ready when it has been made.

    Use it in a `with` block, or `close` it. It ignores arguments of distributed's `LocalCluster` that mean nothing here
    (`dashboard_address`, `loop`, ...).

    Raises:
      UsageError: an argument makes no sense.
      ClusterError: the cluster could not be started.
    """

    _UNSUPPORTED = CLUSTER

    @takes_arguments_of(plan, name="LocalCluster", for_trio="open_local_cluster", ignored=IGNORED)
    def __init__(self, layout: Layout) -> None:
        self._start(partial(AsyncLocalCluster, layout))

    scale = called_in_loop(AsyncLocalCluster.scale)
    scale_up = scale
    scale_down = called_in_loop(AsyncLocalCluster.scale_down)
    adapt = called_in_loop(AsyncLocalCluster.adapt)
