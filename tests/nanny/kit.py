"""A nanny without processes: children that do what a test tells them, and a scheduler that takes notes."""

import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import trio

from trio_dask.comm import Address, Endpoint, serve
from trio_dask.config import NannySettings, WorkerSettings
from trio_dask.deploy import child_services
from trio_dask.ids import new_incarnation
from trio_dask.nanny import service, worker_process
from trio_dask.nanny.service import Nanny
from trio_dask.processes.exit_report import ChildEnd
from trio_dask.protocol.hello import Hello
from trio_dask.worker.running_table import RunningTable


class FakeChild:
    """A process as the nanny sees it. It stops on SIGTERM and SIGINT unless it is `stubborn`; until it has
    `become_ready` it has not said anything."""

    def __init__(self, spec, heard, pid) -> None:
        self.spec = spec
        self.pid = pid
        self.token = spec.settings["worker"]["process"]
        self.signals = []
        self.reasons = []
        self.stubborn = False
        self.board = RunningTable.attach(os.dup(spec.inherit[0]), spec.settings["worker"]["nthreads"])
        self.done = trio.Event()
        self._heard = heard

    def become_ready(self) -> None:
        self.report({"running": True})
        self.report({"address": f"tcp://127.0.0.1:{self.pid}"})

    def report(self, content) -> None:
        self._heard(self, content)

    def end(self, status, **more) -> None:
        self.ending = ChildEnd(name=self.spec.name, status=status, started=True, **more)
        self.done.set()

    def stop(self, number, reason) -> None:
        self.signals.append((number, trio.current_time()))
        self.reasons.append(reason)
        if not self.stubborn:
            self.report({"leaving": "signal"})
            self.end(0)

    def leave(self, reason) -> None:
        self.reasons.append(reason)
        self.end(-signal.SIGKILL if self.stubborn else 0)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)


class Nursing:
    """Everything that a test looks at."""

    def __init__(self, monkeypatch) -> None:
        self.children = []
        self.heard = []
        self.sessions = []
        self.stopped = set()
        self.memory = {}
        self.ready = True
        self._pids = count(1001)
        self._changed = trio.Event()
        monkeypatch.setattr(worker_process, "run_child", self._run_child)
        monkeypatch.setattr(worker_process, "memory_used", lambda pid, roughly_up_to=0: self.memory.get(pid, 0))
        monkeypatch.setattr(service, "is_runnable", lambda pid: pid not in self.stopped)

    async def _run_child(self, spec, heard, born):
        child = FakeChild(spec, heard, next(self._pids))
        self.children.append(child)
        born(child)
        if self.ready:
            child.become_ready()
        self._note()
        try:
            await child.done.wait()
        finally:
            child.board.close()
        return child.ending

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition) -> None:
        with trio.fail_after(10_000):
            while not condition():
                await self._changed.wait()

    async def child(self, number):
        """The child with this number, once there is one."""
        await self.until(lambda: len(self.children) > number)
        return self.children[number]

    async def message(self, kind, number=0):
        """What the scheduler heard of this kind."""
        await self.until(lambda: len(self.of(kind)) > number)
        return self.of(kind)[number][1]

    def of(self, kind):
        return [(at, message) for at, message in self.heard if isinstance(message, kind)]

    async def _session(self, connection) -> None:
        self.sessions.append(connection)
        self._note()
        async for batch in connection.batches():
            self.heard += [(trio.current_time(), message) for message in batch]
            self._note()
        self._note()

    async def scheduler(self, name, *, task_status) -> None:
        with self.scope:
            identity = Hello(role="scheduler", incarnation=new_incarnation())
            await serve(Endpoint(Address("inproc", name)), self._session, identity=identity, task_status=task_status)

    @asynccontextmanager
    async def nanny(self, *, scheduler=True, worker=None, **options):
        """A running nanny; `scope` ends the scheduler, and `end` is how the nanny ended."""
        name = f"nursery-{new_incarnation()}"
        settings = WorkerSettings(scheduler=f"inproc://{name}", name="bob", **(worker or {}))
        nanny = Nanny(NannySettings(worker=settings, port_range=None, **options), child_services.worker)
        self.scope = trio.CancelScope()
        self.end = None

        async def run() -> None:
            try:
                await nanny.run()
            except Exception as error:
                self.end = error
            else:
                self.end = "well"
            self._note()

        async with trio.open_nursery() as nursery:
            self.start_scheduler = partial(nursery.start, self.scheduler, name)
            if scheduler:
                await self.start_scheduler()
            nursery.start_soon(run)
            yield nanny
            nursery.cancel_scope.cancel()
