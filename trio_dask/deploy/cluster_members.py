"""The members of a local cluster, a scheduler and its workers, each with a task that starts it and looks after it.

As processes: this process binds the scheduler's port and hands it down, so that workers start at the same time and
already have something to connect to. Workers are forked from a process that has loaded what they need, while the
scheduler loads what it needs; where that is impossible, they are started by exec as well. Each worker has a nanny, in
the Trio loop of the cluster. A worker that cannot be started, or keeps crashing, or a scheduler that dies, ends the
cluster with that program's own last words.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Collection, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import trio

from trio_dask.comm.addresses import Address, choose_advertised_host, resolvable
from trio_dask.comm.inproc import inproc_address
from trio_dask.comm.joining import forget_cluster, remember_cluster
from trio_dask.config import NannySettings, SchedulerSettings, WorkerSettings
from trio_dask.deploy import child_services
from trio_dask.deploy.cluster_sizing import Layout
from trio_dask.deploy.embedded import Nanny, Scheduler, Worker
from trio_dask.deploy.embedded_settings import SchedulerPlan
from trio_dask.errors import ClusterError, TrioDaskError
from trio_dask.processes.child_context import ChildLog
from trio_dask.processes.child_process import Child, ChildSpec, pass_on, run_child
from trio_dask.processes.clone_parent import can_fork_sibling
from trio_dask.processes.fork_server import ForkServer
from trio_dask.processes.spawn import Starter, start_by_exec
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import Credentials
from trio_dask.settings_json import to_json

if TYPE_CHECKING:
    from trio_dask.security.security import TlsRole

BACKLOG = 4096
MAX_RESTARTS = 20
BACKOFF_S = (0.5, 2.0)

log = logging.getLogger("trio_dask.deploy")

_programs = count()


class Member:
    """One worker of the cluster: its name, and, while it runs, its address and process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address: str | None = None
        self.pid: int | None = None
        self.worker: Worker | None = None
        """Itself, if it runs in this program."""
        self.scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<worker {self.name} {self.address or 'starting'}>"


class Members:
    """All members of a local cluster, in one nursery."""

    def __init__(self, layout: Layout, nursery: trio.Nursery) -> None:
        self._layout = layout
        self._name = layout.name
        self._nursery = nursery
        self._numbers = count()
        self._changed = trio.Event()
        self._over = False
        self._start: Starter = start_by_exec
        self._key = ClusterKey.draw() if layout.processes else None
        """Of this cluster alone; its processes inherit it."""
        self.workers: dict[str, Member] = {}
        self.scheduler_address = ""
        self.scheduler_pid: int | None = None
        self.scheduler: Scheduler | None = None
        """Itself, if it runs in this program."""
        self.fork_server: ForkServer | None = None
        self.failure: ClusterError | None = None
        """Why the cluster ended by itself; its nursery is cancelled then."""

    async def start(self) -> None:
        """Start the scheduler and the workers, and wait until all of them are ready."""
        layout = self._layout
        if layout.processes:
            with self._bind() as listener:
                host, port = listener.getsockname()[:2]
                self.scheduler_address = str(Address(layout.protocol, choose_advertised_host(host), port))
                remember_cluster(self.scheduler_address, self._credentials)
                self._nursery.start_soon(self._look_after_scheduler, listener.fileno())
                if can_fork_sibling():
                    self.fork_server = ForkServer(f"{self._name}-fork-server", child_services.load_worker)
                    self._start = self.fork_server.start
                    self._nursery.start_soon(self.fork_server.run)
                self.set_worker_count(layout.n_workers)
                # From then on the scheduler alone holds its port: when it is gone, so is the port.
                await self._until(lambda: self.scheduler_pid is not None)
        else:
            address = str(inproc_address(f"{self._name}-{next(_programs)}"))
            plan = SchedulerPlan(SchedulerSettings(**layout.scheduler, address=address))
            self.scheduler = scheduler = Scheduler.of(plan)
            await self._nursery.start(self._run_scheduler_here, scheduler)
            self.scheduler_address = scheduler.address
            self.set_worker_count(layout.n_workers)
        await self.wait_for_workers(layout.n_workers)

    def _bind(self) -> socket.socket:
        host, port = self._layout.host, self._layout.scheduler_port
        try:
            family, *_, address = socket.getaddrinfo(resolvable(host), port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except socket.gaierror:
            reason = "unknown host name"
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
        self._fail(error := ClusterError(f"the scheduler cannot listen on {host}:{port}: {reason}"))
        raise error

    def set_worker_count(self, number: int) -> None:
        """Have this many workers: start new ones, or end the newest. Does not wait."""
        while len(self.workers) < number:
            member = Member(str(next(self._numbers)))
            self.workers[member.name] = member
            self._nursery.start_soon(self._look_after_worker, member)
        for name in list(self.workers)[number:]:
            self.workers.pop(name).scope.cancel()

    def end_workers(self, named: Collection[str]) -> None:
        """End the workers with these names or addresses. Does not wait."""
        for name, member in list(self.workers.items()):
            if name in named or member.address in named:
                self.workers.pop(name).scope.cancel()

    async def wait_for_workers(self, number: int) -> None:
        """Wait until at least this many workers are registered."""
        await self._until(lambda: sum(member.address is not None for member in self.workers.values()) >= number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._over:
                raise self.failure or ClusterError("this cluster was closed while a caller waited for it")
            await self._changed.wait()

    def note_end(self) -> None:
        """All members have ended: tell callers that still wait for a worker."""
        self._over = True
        forget_cluster(self.scheduler_address)
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def stop(self) -> None:
        """End all members; the nursery ends when they have."""
        self._nursery.cancel_scope.cancel()

    def _fail(self, error: ClusterError) -> None:
        if self.failure is None:
            self.failure = error
        self.stop()

    def _credentials(self, role: TlsRole) -> Credentials:
        security = self._layout.security
        return Credentials(self._key, None if security is None else security.for_role(role))

    # ------------------------------------------------------------------------------------------- as processes

    async def _look_after_scheduler(self, listen_fd: int) -> None:
        def on_report(child: Child, report: Mapping[str, Any]) -> None:
            self.scheduler_pid = child.pid
            self._note_change()

        spec = ChildSpec(
            name=f"{self._name}-scheduler",
            program=child_services.scheduler,
            settings=to_json(
                SchedulerSettings(**self._layout.scheduler, listen_fd=listen_fd, protocols=(self._layout.protocol,))
            ),
            credentials=self._credentials("scheduler"),
            log=ChildLog(level=self._layout.log_level),
            inherit=(listen_fd,),
            stderr=pass_on,
        )
        try:
            end = await run_child(spec, on_report)
        except ClusterError as exc:
            self._fail(exc)
            return
        if not end.started:
            self._fail(end.as_error())
        elif end.status:
            said = "\n".join(filter(None, (*end.words.lines, end.failure)))
            self._fail(ClusterError(f"the scheduler of this cluster {end.describe()}" + (f":\n{said}" if said else "")))
        else:
            log.debug("the cluster was shut down")
            self.set_worker_count(0)
            if self.fork_server is not None:
                self.fork_server.stop()

    async def _look_after_worker(self, member: Member) -> None:
        with member.scope:
            if self._layout.processes:
                await self._run_worker(member)
            else:
                await self._run_worker_here(member)
        member.address = None
        self.workers.pop(member.name, None)
        self._note_change()

    async def _run_worker(self, member: Member) -> None:
        """Look after one worker process, and those that follow it."""

        def changed() -> None:
            member.address, member.pid = nanny.worker_address or None, nanny.pid or member.pid
            self._note_change()

        label = f"{self._name}-worker-{member.name}"
        # A worker that does not start the first time will not start the second, and a user waits for it. Later crashes
        # are forgiven more often than elsewhere: to give up is to end the cluster, and with it the user's session.
        settings = NannySettings(
            **self._layout.nanny,
            worker=self._worker_settings(member),
            port_range=None,
            same_failures=1,
            max_restarts=MAX_RESTARTS,
            backoff_s=BACKOFF_S,
        )
        credentials = self._credentials("worker")
        log = ChildLog(origin=label, level=self._layout.log_level)
        nanny = Nanny.of(settings, credentials, label=label, log=log, changed=changed, start=self._start)
        try:
            await nanny.run()
        except (TrioDaskError, OSError) as exc:
            self._fail(ClusterError(f"{label}: {exc}"))

    def _worker_settings(self, member: Member) -> WorkerSettings:
        return WorkerSettings(
            **self._layout.worker,
            scheduler=self.scheduler_address,
            host=self._layout.host if self._layout.processes else "",
            name=member.name,
            nthreads=self._layout.threads_per_worker,
            memory_limit_bytes=self._layout.memory_limit_bytes,
            death_timeout_s=self._layout.death_timeout_s,
        )

    # ------------------------------------------------------------------------------------------- in this program

    async def _run_scheduler_here(
        self, scheduler: Scheduler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await scheduler.serve(task_status=task_status)
        self.set_worker_count(0)

    async def _run_worker_here(self, member: Member) -> None:
        async with trio.open_nursery() as nursery:
            member.worker = Worker.of(self._worker_settings(member))
            await nursery.start(member.worker.serve)
            member.address = member.worker.address
            self._note_change()
