"""`Scheduler`, `Worker` and `Nanny`: to run inside a Trio program, each for as long as its block lasts.

    async with Scheduler() as scheduler, Worker(scheduler.address), AsyncClient(scheduler.address) as client:
        print(await client.submit(pow, 2, 10))

Local clusters run their members in the same way. A scheduler and a worker run in the program's own Trio loop; the
worker of a nanny is a process. What ends one of them by itself ends its block, with the error that a command would
exit with.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from trio_dask.comm.joining import forget_cluster, remember_cluster
from trio_dask.config import NannySettings, WorkerSettings
from trio_dask.deploy import child_services
from trio_dask.deploy.block import Embedded
from trio_dask.deploy.embedded_settings import SchedulerPlan, WorkerPlan, plan_scheduler, plan_worker
from trio_dask.deploy.preload import preload, set_up
from trio_dask.deploy.remote_modules import read_remote_modules
from trio_dask.deploy.worker_program import remove_scratch
from trio_dask.errors import ClusterError
from trio_dask.ids import WorkerName, given_name
from trio_dask.owned_files import keep_file
from trio_dask.parsing import counted, format_bytes
from trio_dask.processes.child_process import pass_on
from trio_dask.processes.spawn import Starter, start_by_exec
from trio_dask.security.credentials import Credentials
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.named_executors import NamedExecutors

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from trio_dask.nanny.handle import NannyHandle
    from trio_dask.nanny.service import Nanny as NannyService
    from trio_dask.processes.child_context import ChildLog
    from trio_dask.scheduler.plugins import SchedulerHandle
    from trio_dask.worker.task_context import WorkerHandle


class Scheduler(Embedded):
    """A scheduler inside this Trio program, as long as its block lasts.

    Workers and clients of this program find its credentials by its address; those of other programs have the user's
    cluster key, as with `dask-scheduler`. When the block ends, workers and clients are told, and the port is free.

    Args:
      host: name or address to listen on; by default all interfaces.
      port: 0 takes any free one; a list for several protocols, where what is missing means 0.
      protocol: "tcp", "tls", "ws" or "wss", or a list of these. By default TLS with `security`, and else TCP.
      security: certificates and TLS settings, a `Security` or a dict of its arguments; True for temporary ones.
      plugins: see `SchedulerPlugin`.
      options: any other option of `dask-scheduler`, such as `idle_timeout="1h"`, `scheduler_file=`, `cluster_key=` or
        `auth=False`; `preload_argv=` is a list.

    Raises, when it is entered:
      OSError: it cannot listen there, as when the port is taken.
      UsageError, UnavailableError: an argument, a file or an interface cannot be used.
      RuntimeError: this thread runs no Trio, or it was entered before.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | str | Sequence[int] = 0,
        protocol: str | Sequence[str] | None = None,
        security: Any = None,
        plugins: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        self._set_up(plan_scheduler(host, port, protocol, security, options), plugins)

    @classmethod
    def of(cls, plan: SchedulerPlan) -> Scheduler:
        """The scheduler of a plan."""
        made = cls.__new__(cls)
        made._set_up(plan)
        return made

    def _set_up(self, plan: SchedulerPlan, plugins: Sequence[Any] = ()) -> None:
        self._prepare()
        self._plan = plan
        self._plugins = plugins
        self._handle: SchedulerHandle | None = None

    @property
    def address(self) -> str:
        """Where workers and clients reach it; empty before it runs."""
        return "" if self._handle is None else self._handle.address

    @property
    def addresses(self) -> tuple[str, ...]:
        """One for each protocol, the first of which is `address`; empty before it runs."""
        return () if self._handle is None else self._handle.addresses

    @property
    def id(self) -> str:
        """What distinguishes it from all others, before and after; empty before it runs."""
        return "" if self._handle is None else self._handle.id

    @property
    def handle(self) -> SchedulerHandle:
        """What plugins and preloaded modules get: `add_plugin`, `log_event` and more.

        Raises:
          ClusterError: it does not run.
        """
        if self._handle is None or self.status != "running":
            raise ClusterError(f"this scheduler is {self.status}")
        return self._handle

    @property
    def workers(self) -> list[str]:
        """The addresses of the workers that are registered."""
        return self.identity()["workers"] if self.status == "running" else []

    def identity(self) -> dict[str, Any]:
        """What it is: address, process, versions, and the addresses of its workers. Raises `ClusterError` as above."""
        return self.handle.identity()

    def _facts(self) -> dict[str, str]:
        return {"at": self.address}

    async def _run(self, task_status: trio.TaskStatus[Any]) -> None:
        from trio_dask.scheduler.service import run_scheduler  # most programs have a scheduler in another process

        credentials = self._plan.credentials_of("scheduler")
        await run_scheduler(self._plan.settings, credentials=credentials, around=self._around, task_status=task_status)

    @asynccontextmanager
    async def _around(self, handle: SchedulerHandle) -> AsyncGenerator[None]:
        self._handle = handle
        for plugin in self._plugins:
            handle.add_plugin(plugin)
        settings = self._plan.settings
        sources = await read_remote_modules(settings.preload)
        modules = preload(settings.preload, settings.preload_argv, sources=sources)
        async with set_up(modules, settings.preload_argv, handle):
            for address in handle.addresses:
                remember_cluster(address, self._plan.credentials_of)
            try:
                yield
            finally:
                for address in handle.addresses:
                    forget_cluster(address)


class Worker(Embedded):
    """A worker inside this Trio program, as long as its block lasts. Tasks run in threads of this process.

    The block begins once it is registered. When it ends, the worker says goodbye; results that it alone holds are
    computed again elsewhere. `rpc(worker.address).terminate` has it drain first.

    Args:
      scheduler_ip: the scheduler's address, such as `scheduler.address`; by default that of the configuration.
      scheduler_port: its port, if it does not stand in the address.
      nthreads: how many tasks it runs at once; by default one per processor.
      name: its name; by default its address.
      memory_limit: of this process, such as "4GiB", a number of bytes, a fraction of the machine, "auto" (the machine),
        or None for no limit.
      resources: what it offers to tasks that ask for resources.
      executor: executors in which tasks run that name one of them, by name, such as `{"gpu": ThreadPoolExecutor(1)}`.
        They stay yours: this does not shut them down.
      host: name or address to listen on; by default this machine's address on the route to the scheduler.
      port: 0 takes any free one; "9000:9010" tries these in order.
      security: certificates and TLS settings, a `Security` or a dict of its arguments.
      options: any other option of `dask-worker`, such as `death_timeout="60s"`, `local_directory=`, `scheduler_file=`,
        `cluster_key=` or `auth=False`. Without a `death_timeout` it waits for its scheduler for ever.

    Raises, when it is entered or in its block:
      NoScheduler: there was none for `death_timeout`.
      RefusedError: the scheduler does not take it; it has another key, perhaps.
      OSError: it cannot listen there.
      UsageError, UnavailableError: an argument, a file or an interface cannot be used.
      RuntimeError: this thread runs no Trio, or it was entered before.
    """

    def __init__(
        self,
        scheduler_ip: str | None = None,
        scheduler_port: int | None = None,
        *,
        nthreads: int | None = None,
        name: WorkerName | None = None,
        memory_limit: str | float | None = "auto",
        resources: Mapping[str, float] | None = None,
        executor: Mapping[str, Executor] | None = None,
        host: str | None = None,
        port: int | str = 0,
        security: Any = None,
        **options: Any,
    ) -> None:
        plan = plan_worker(
            "Worker",
            scheduler_ip,
            scheduler_port,
            nthreads=nthreads,
            name=name,
            memory_limit=memory_limit,
            resources=resources,
            host=host,
            port=port,
            security=security,
            options=options,
        )
        self._set_up(plan)
        if executor is not None and not isinstance(executor, Mapping):
            raise TypeError(
                f'executor is a dict such as {{"gpu": ThreadPoolExecutor(1)}}, not {executor!r:.60}: tasks that name '
                "none run in the worker's own threads"
            )
        self._executors.update(executor or {})

    @classmethod
    def of(cls, settings: WorkerSettings) -> Worker:
        """The worker of these settings."""
        made = cls.__new__(cls)
        made._set_up(WorkerPlan(NannySettings(worker=settings)))
        return made

    def _set_up(self, plan: WorkerPlan) -> None:
        self._prepare()
        self._plan = plan
        self._settings = plan.settings.worker
        self._drain = DrainRequest()
        self._executors = NamedExecutors()
        self._handle: WorkerHandle | None = None

    @property
    def status(self) -> str:
        """created, starting, running, connecting (it has lost its scheduler), leaving, closed, or failed."""
        if self._phase != "running" or self._handle is None:
            return self._phase
        return "leaving" if self._drain.reason else "running" if self._handle.address else "connecting"

    @property
    def address(self) -> str:
        """Where peers reach it; empty while it has no scheduler."""
        return "" if self._handle is None else self._handle.address

    @property
    def id(self) -> str:
        """What distinguishes this session from all others; empty while it has no scheduler."""
        return "" if self._handle is None else self._handle.incarnation

    @property
    def name(self) -> WorkerName:
        """Its name, or its address if it has none."""
        return given_name(self._settings.name or "") if self._handle is None else self._handle.name

    @property
    def scheduler_address(self) -> str:
        """The address of its scheduler."""
        return self._settings.scheduler or ("" if self._handle is None else self._handle.scheduler_address)

    @property
    def nthreads(self) -> int:
        """How many tasks it runs at once."""
        return self._settings.nthreads

    @property
    def memory_limit(self) -> int | None:
        """Its memory limit in bytes, if it has one."""
        return self._settings.memory_limit_bytes

    @property
    def pid(self) -> int | None:
        """None: it is a part of this program."""
        return None

    @property
    def handle(self) -> WorkerHandle:
        """What tasks see of it (`get_worker()`): `data`, `state`, `plugins` and more.

        Raises:
          ClusterError: it does not run.
        """
        if self._handle is None or self._phase != "running":
            raise ClusterError(f"this worker is {self.status}")
        return self._handle

    @property
    def data(self) -> Mapping[str, Any]:
        """The values that it holds, by key. Raises `ClusterError` as above."""
        return self.handle.data

    @property
    def state(self) -> dict[str, Any]:
        """What tasks keep here for others. Raises `ClusterError` as above."""
        return self.handle.state

    @property
    def executors(self) -> MutableMapping[str, Executor]:
        """The executors in which tasks run that name one of them (`dask.annotate(executor=...)`)."""
        return self._executors

    def _facts(self) -> dict[str, str]:
        limit = "no limit" if self.memory_limit is None else format_bytes(self.memory_limit)
        shown = {"name": str(self.name), "at": self.address} if self.name != self.address else {"at": self.address}
        return {**shown, "with": counted(self.nthreads, "thread"), "memory": limit}

    async def _run(self, task_status: trio.TaskStatus[Any]) -> None:
        from trio_dask.worker.service import run_worker  # most programs have workers in other processes

        await run_worker(
            self._settings,
            credentials=self._plan.credentials(),
            drain=self._drain,
            around=self._around,
            task_status=task_status,
        )

    @asynccontextmanager
    async def _around(self, handle: WorkerHandle) -> AsyncGenerator[None]:
        self._handle = handle
        handle.executors = self._executors
        nanny = self._plan.settings
        sources = await read_remote_modules(nanny.preload)
        modules = preload(nanny.preload, nanny.preload_argv, sources=sources)
        async with set_up(modules, nanny.preload_argv, handle):
            yield


class Nanny(Embedded):
    """A nanny inside this Trio program, as long as its block lasts; its worker is a process, which it restarts.

    The block begins once the worker is registered. When it ends, the worker says goodbye, and its process ends with
    all that its tasks have started.

    Args:
      port: where the nanny listens, as for the worker of `Worker`.
      worker_port: where the worker listens.
      env: variables for the environment of the worker.
      options: any other option of `dask-worker`, such as `max_restarts=` or `preload_nanny=`.

    The other arguments are those of `Worker`; memory and processor limits hold for the worker's process.

    Raises, when it is entered or in its block:
      KeptCrashing: the worker crashed more often than `max_restarts`, or at its start.
      NoScheduler, RefusedError, OSError, UsageError, UnavailableError, RuntimeError: as `Worker` does.
    """

    def __init__(
        self,
        scheduler_ip: str | None = None,
        scheduler_port: int | None = None,
        *,
        nthreads: int | None = None,
        name: WorkerName | None = None,
        memory_limit: str | float | None = "auto",
        resources: Mapping[str, float] | None = None,
        host: str | None = None,
        port: int | str = 0,
        worker_port: int | str = 0,
        env: Mapping[str, str] | None = None,
        security: Any = None,
        preload_nanny: str | Sequence[str] = (),
        **options: Any,
    ) -> None:
        plan = plan_worker(
            "Nanny",
            scheduler_ip,
            scheduler_port,
            nthreads=nthreads,
            name=name,
            memory_limit=memory_limit,
            resources=resources,
            host=host,
            port=worker_port,
            security=security,
            options={**options, "nanny_port": port, "env": env},
        )
        modules = [preload_nanny] if isinstance(preload_nanny, str) else list(preload_nanny)
        label = f"worker {plan.settings.worker.name}" if plan.settings.worker.name else "worker"
        self._set_up(plan, label=label, preload_nanny=modules)

    @classmethod
    def of(
        cls,
        settings: NannySettings,
        credentials: Credentials | None,
        *,
        label: str,
        log: ChildLog,
        changed: Callable[[], object],
        start: Starter,
    ) -> Nanny:
        """The nanny of these settings; for the other arguments see `nanny.service.Nanny`."""
        made = cls.__new__(cls)
        made._set_up(WorkerPlan(settings), credentials, label=label, log=log, changed=changed, start=start)
        return made

    def _set_up(
        self,
        plan: WorkerPlan,
        credentials: Credentials | None = None,
        *,
        label: str,
        log: ChildLog | None = None,
        changed: Callable[[], object] = lambda: None,
        start: Starter = start_by_exec,
        preload_nanny: Sequence[str] = (),
    ) -> None:
        self._prepare()
        self._plan = plan
        self._given = credentials
        self._label = label
        self._log = log
        self._changed = changed
        self._start = start
        self._modules = preload_nanny
        self._service: NannyService | None = None

    @property
    def status(self) -> str:
        """created, starting, running, waiting (for the worker's next start), stopping, closed, or failed."""
        return self._phase if self._phase != "running" or self._service is None else self._service.status()["status"]

    @property
    def address(self) -> str:
        """Where it answers `rpc`; empty if it does not."""
        return "" if self._service is None else str(self._service.control_address or "")

    @property
    def worker_address(self) -> str:
        """The worker's address; empty while it is not registered."""
        return (not self._ended.is_set() and self._service and self._service.address) or ""

    @property
    def id(self) -> str:
        """What distinguishes it from all others; empty before it runs."""
        return "" if self._service is None else self._service.incarnation

    @property
    def name(self) -> WorkerName:
        """The worker's name; if it has none, the address that it had first."""
        return given_name((self._service and self._service.name) or self._plan.settings.worker.name or "")

    @property
    def pid(self) -> int:
        """The worker's process, 0 while there is none."""
        return 0 if self._service is None or self._ended.is_set() else self._service.pid

    @property
    def nthreads(self) -> int:
        """How many tasks the worker runs at once."""
        return self._plan.settings.worker.nthreads

    def restart(self) -> None:
        """Have another process take the place of the worker's. Does not wait.

        Raises:
          ClusterError: the nanny does not run.
        """
        if self._service is None or self._phase != "running":
            raise ClusterError(f"this nanny is {self.status}")
        self._service.restart()

    def _facts(self) -> dict[str, str]:
        return {"worker": self.worker_address, "pid": str(self.pid or ""), "with": counted(self.nthreads, "thread")}

    async def _run(self, task_status: trio.TaskStatus[Any]) -> None:
        from trio_dask.nanny.service import Nanny as NannyService

        settings, worker, option = self._plan.settings, self._plan.settings.worker, "--preload-nanny"
        settings = settings._replace(preload_sources=await read_remote_modules(settings.preload))
        credentials = self._given or self._plan.credentials()
        sources = await read_remote_modules(self._modules, option=option)
        modules = preload(self._modules, settings.preload_argv, option=option, sources=sources)

        def around(handle: NannyHandle) -> AbstractAsyncContextManager[None]:
            return set_up(modules, settings.preload_argv, handle, option=option)

        self._service = NannyService(
            settings,
            child_services.worker,
            credentials=credentials,
            label=self._label,
            log=self._log,
            changed=self._changed,
            output=pass_on,
            start=self._start,
            around=around if modules else None,
        )
        with keep_file(worker.pid_file, f"{os.getpid()}\n"):
            try:
                await self._service.run(task_status=task_status)
            finally:
                await remove_scratch(worker.local_directory)  # noqa: ASYNC102 - it shields itself, with a limit
