"""A nanny without processes: children that do what a test tells them, and a scheduler that takes notes."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeVar

import pytest
import trio

from tests.fake_scheduler import FakeScheduler, PeerSession
from trio_dask.comm.connection import Connection
from trio_dask.config import NannySettings, WorkerSettings
from trio_dask.deploy import child_services
from trio_dask.ids import new_incarnation
from trio_dask.nanny import service, worker_process
from trio_dask.nanny.service import Nanny
from trio_dask.processes.child_process import ChildSpec
from trio_dask.processes.exit_report import ChildEnd
from trio_dask.protocol.messages import Message
from trio_dask.worker.running_table import RunningTable

_M = TypeVar("_M")


class FakeChild:
    """A process as the nanny sees it. It stops on SIGTERM and SIGINT unless it is `stubborn`; until it has
    `become_ready` it has not said anything."""

    def __init__(self, spec: ChildSpec, heard: Callable[[Any, Any], object], pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.token = spec.settings["worker"]["process"]
        self.signals: list[tuple[int, float]] = []
        self.reasons: list[str] = []
        self.stubborn = False
        self.board = RunningTable.attach(os.dup(spec.inherit[0]), spec.settings["worker"]["nthreads"])
        self.done = trio.Event()
        self._heard = heard

    def become_ready(self) -> None:
        self.report({"running": True})
        self.report({"address": f"tcp://127.0.0.1:{self.pid}"})

    def report(self, content: dict[str, Any]) -> None:
        self._heard(self, content)

    def end(self, status: int, **more: Any) -> None:
        self.ending = ChildEnd(name=self.spec.name, status=status, started=True, **more)
        self.done.set()

    def stop(self, number: int, reason: str) -> None:
        self.signals.append((number, trio.current_time()))
        self.reasons.append(reason)
        if not self.stubborn:
            self.report({"leaving": "signal"})
            self.end(0)

    def leave(self, reason: str) -> None:
        self.reasons.append(reason)
        self.end(-signal.SIGKILL if self.stubborn else 0)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)


class Nursing:
    """Everything that a test looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[FakeChild] = []
        self.heard: list[tuple[float, Any]] = []
        self.sessions: list[Connection] = []
        self.stopped: set[int] = set()
        self.memory: dict[int, int] = {}
        self.ready = True
        self._pids = count(1001)
        self._changed = trio.Event()
        monkeypatch.setattr(worker_process, "run_child", self._run_child)
        monkeypatch.setattr(worker_process, "memory_used", lambda pid, roughly_up_to=0: self.memory.get(pid, 0))
        monkeypatch.setattr(service, "is_runnable", lambda pid: pid not in self.stopped)

    async def _run_child(
        self, spec: ChildSpec, heard: Callable[[Any, Any], object], born: Callable[[Any], object]
    ) -> ChildEnd:
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

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(10_000):
            while not condition():
                await self._changed.wait()

    async def child(self, number: int) -> FakeChild:
        """The child with this number, once there is one."""
        await self.until(lambda: len(self.children) > number)
        return self.children[number]

    async def session(self, number: int) -> Connection:
        """The session with this number, once there is one."""
        await self.until(lambda: len(self.sessions) > number)
        return self.sessions[number]

    async def message(self, kind: type[_M], number: int = 0) -> _M:
        """What the scheduler heard of this kind."""
        await self.until(lambda: len(self.of(kind)) > number)
        return self.of(kind)[number][1]

    def of(self, kind: type[_M]) -> list[tuple[float, _M]]:
        return [(at, message) for at, message in self.heard if isinstance(message, kind)]

    def _open_session(self, connection: Connection) -> PeerSession:
        self.sessions.append(connection)
        self._note()
        return PeerSession(connection, self._hear)

    def _hear(self, message: Message) -> None:
        self.heard.append((trio.current_time(), message))
        self._note()

    async def scheduler(self, name: str, *, task_status: trio.TaskStatus[Any]) -> None:
        with self.scope:
            await FakeScheduler(self._open_session, name=name).run(task_status=task_status)

    @asynccontextmanager
    async def nanny(
        self, *, scheduler: bool = True, worker: dict[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[Nanny]:
        """A running nanny; `scope` ends the scheduler, and `end` is how the nanny ended."""
        name = f"nursery-{new_incarnation()}"
        settings = WorkerSettings(scheduler=f"inproc://{name}", name="bob", **(worker or {}))
        nanny = Nanny(NannySettings(worker=settings, port_range=None, **options), child_services.worker)
        self.scope = trio.CancelScope()
        self.end: str | Exception | None = None

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
