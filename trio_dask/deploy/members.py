"""The members of a local cluster, a scheduler and its workers, each with a task that starts it and minds it.

As processes: the scheduler's port is bound here and handed down, so that workers can be started in the same moment and
find somebody to knock at. A worker that dies is started again; one that cannot be started `MAX_FAILED_STARTS` times in
a row, or a scheduler that dies, ends the cluster with that program's own last words.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any

import trio

from trio_dask.comm.addresses import Address, choose_advertised_host
from trio_dask.config import SchedulerSettings, WorkerSettings
from trio_dask.deploy.layout import Layout
from trio_dask.deploy.process import ChildReady, ChildSpec, describe_end, run_child
from trio_dask.errors import ClusterError

__all__ = ["Member", "Members"]

MAX_FAILED_STARTS = 5
FIRST_BACKOFF_S = 0.5
DEATH_TIMEOUT_S = 60.0
BACKLOG = 4096
# One thread of numerical libraries per task, unless the user says otherwise: tasks side by side keep a machine busy.
LIBRARY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

log = logging.getLogger("trio_dask.deploy")


class Member:
    """One worker of the cluster: its name, and, while it is there, where it listens and which process it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address: str | None = None
        self.pid: int | None = None
        self.scope = trio.CancelScope()
        self.failed_starts = 0

    def __repr__(self) -> str:
        return f"<worker {self.name} {self.address or 'starting'}>"


class Members:
    """What runs in the nursery of a local cluster."""

    def __init__(self, layout: Layout, name: str, nursery: trio.Nursery) -> None:
        self._layout = layout
        self._name = name
        self._nursery = nursery
        self._numbers = count()
        self._changed = trio.Event()
        self._over = False
        self.workers: dict[str, Member] = {}
        self.scheduler_address = ""
        self.scheduler_pid: int | None = None
        self.failure: ClusterError | None = None
        """Why the cluster ended by itself; its nursery is cancelled then."""

    async def start(self) -> None:
        """Start the scheduler and the workers, and wait until all of them are there."""
        layout = self._layout
        if layout.processes:
            with self._bind() as listener:
                host, port = listener.getsockname()[:2]
                self.scheduler_address = str(Address("tcp", choose_advertised_host(host), port))
                self._nursery.start_soon(self._mind_scheduler, listener.fileno())
                self.set_worker_count(layout.n_workers)
                # From then on the scheduler alone holds its port: when it is gone, so is the port.
                await self._until(lambda: self.scheduler_pid is not None)
        else:
            await self._nursery.start(self._run_scheduler_here)
            self.set_worker_count(layout.n_workers)
        await self.wait_for_workers(layout.n_workers)

    def _bind(self) -> socket.socket:
        host, port = self._layout.host, self._layout.scheduler_port
        try:
            family, *_, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except socket.gaierror:
            reason = "the name of the host is not known"
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
        self._fail(error := ClusterError(f"the scheduler cannot listen on {host}:{port}: {reason}"))
        raise error

    def set_worker_count(self, number: int) -> None:
        """Have this many workers: start new ones, or let the newest go. Does not wait."""
        while len(self.workers) < number:
            member = Member(str(next(self._numbers)))
            self.workers[member.name] = member
            self._nursery.start_soon(self._mind_worker, member)
        for name in list(self.workers)[number:]:
            self.workers.pop(name).scope.cancel()

    async def wait_for_workers(self, number: int) -> None:
        """Wait until at least this many workers are registered."""
        await self._until(lambda: sum(member.address is not None for member in self.workers.values()) >= number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._over:
                raise self.failure or ClusterError("this cluster was closed while it was waited for")
            await self._changed.wait()

    def note_end(self) -> None:
        """Nothing is left; who still waits for a worker is told so."""
        self._over = True
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

    # ------------------------------------------------------------------------------------------- as processes

    def _spec(self, name: str, program: str, settings: Any, **options: Any) -> ChildSpec:
        return ChildSpec(
            name=f"{self._name}-{name}",
            program=f"trio_dask.deploy.services:{program}",
            settings=asdict(settings),
            stderr=_pass_on,
            **options,
        )

    async def _mind_scheduler(self, listen_fd: int) -> None:
        def ready(child: ChildReady) -> None:
            self.scheduler_pid = child.pid
            self._note_change()

        settings = SchedulerSettings(listen_fd=listen_fd)
        try:
            status, words = await run_child(self._spec("scheduler", "scheduler", settings, inherit=(listen_fd,)), ready)
        except ClusterError as exc:
            self._fail(exc)
            return
        if status:
            said = f":\n{words}" if words else ""
            self._fail(ClusterError(f"the scheduler of this cluster {describe_end(status)}{said}"))
        else:
            log.debug("the cluster was shut down")
            self.set_worker_count(0)

    async def _mind_worker(self, member: Member) -> None:
        with member.scope:
            if not self._layout.processes:
                await self._run_worker_here(member)
            while self._layout.processes and await self._run_worker(member):
                pass
        member.address = None
        self.workers.pop(member.name, None)

    async def _run_worker(self, member: Member) -> bool:
        """Start one worker process and wait for its end; returns whether it is to be started again."""

        def ready(child: ChildReady) -> None:
            member.pid = child.pid
            member.address = str(child.report["address"])
            member.failed_starts = 0
            self._note_change()

        environment = dict.fromkeys(LIBRARY_THREADS, "1")
        environment = {name: value for name, value in environment.items() if name not in os.environ}
        spec = self._spec(f"worker-{member.name}", "worker", self._worker_settings(member), environment=environment)
        try:
            status, _ = await run_child(spec, ready)
        except ClusterError as exc:
            member.failed_starts += 1
            # What does not start the first time will not start the second; later the machine may be short of something.
            if member.pid is None or member.failed_starts == MAX_FAILED_STARTS:
                self._fail(exc)
                return False
            log.warning("%s; trying again", str(exc).splitlines()[0])
            await trio.sleep(FIRST_BACKOFF_S * 2**member.failed_starts)
            return True
        member.address = None
        if status == 0:
            return False
        how = describe_end(status)
        log.warning("worker %s of %s (pid %s) %s; starting it again", member.name, self._name, member.pid, how)
        return True

    def _worker_settings(self, member: Member) -> WorkerSettings:
        return WorkerSettings(
            scheduler=self.scheduler_address,
            host=self._layout.host if self._layout.processes else "",
            name=member.name,
            nthreads=self._layout.threads_per_worker,
            memory_limit_bytes=self._layout.memory_limit_bytes,
            resources=self._layout.resources,
            local_directory=self._layout.local_directory,
            death_timeout_s=DEATH_TIMEOUT_S,
        )

    # ------------------------------------------------------------------------------------------- in this program

    async def _run_scheduler_here(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        from trio_dask.scheduler.service import run_scheduler

        async with trio.open_nursery() as nursery:
            settings = SchedulerSettings(address=f"inproc://{self._name}-{next(_programs)}")
            self.scheduler_address = str(await nursery.start(run_scheduler, settings))
            task_status.started()
        self.set_worker_count(0)

    async def _run_worker_here(self, member: Member) -> None:
        from trio_dask.worker.service import run_worker

        async with trio.open_nursery() as nursery:
            member.address = str(await nursery.start(run_worker, self._worker_settings(member)))
            self._note_change()


_programs = count()


def _pass_on(data: bytes) -> None:
    """What a child writes to its stderr appears on ours, wherever that goes (a notebook's is not a descriptor)."""
    try:
        sys.stderr.write(data.decode(errors="replace"))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # our own stderr is closed; the last words are kept all the same
