"""One worker process under a nanny: what the nanny knows of it, watches, and does to end it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import trio

from trio_dask.config import NannySettings
from trio_dask.errors import ClusterError
from trio_dask.nanny.restart_policy import Asked, memory_excess
from trio_dask.nanny.scheduler_connection import SchedulerConnection
from trio_dask.processes.child_process import Child, ChildSpec, run_child
from trio_dask.processes.exit_report import ChildEnd
from trio_dask.procfs import memory_used
from trio_dask.worker.running_table import RunningTable

WATCH_INTERVAL_S = 0.2
SIGINT_DRAIN_S = 2.0
SIGINT_SLACK_S = 0.5
SIGTERM_SLACK_S = 3.0
"""For what the worker does at the end, whatever its tasks do: save results, say goodbye."""
DEATH_SLACK_S = 1.5


class Stop(IntEnum):
    """How urgently a nanny is to end: its worker may drain, or drain for two seconds, or is killed.

    `TOLD`: the scheduler has told the worker too, if it is registered; then it leaves by itself, as fast as for `SOON`.
    """

    DRAIN = 0
    TOLD = 1
    SOON = 2
    NOW = 3


class Order(NamedTuple):
    """What the nanny was asked for while its worker ran, and why."""

    asked: Asked
    reason: str


class Kill(NamedTuple):
    """Why a nanny killed its worker."""

    cause: Literal["memory", "no scheduler"]
    reason: str


class Spawning(NamedTuple):
    """There is no process yet."""


class Starting(NamedTuple):
    """The process loads what it needs. It has nothing to drain, and may not even handle signals yet."""

    child: Child


class Running(NamedTuple):
    """The process runs its service."""

    child: Child


class Leaving(NamedTuple):
    """The worker leaves in good order. `at_rest`: its slots are free, and it takes no more tasks."""

    child: Child
    reason: str
    at_rest: bool


class Ended(NamedTuple):
    """There is no process any more. `leaving` is the reason that the worker gave before."""

    end: ChildEnd
    pid: int
    leaving: str


Phase = Spawning | Starting | Running | Leaving | Ended


class WorkerProcess:
    """One worker process, from its start to its end.

    `phase` says how far it is. `board` shows what it runs, `token` names it to the scheduler. `address` is there once
    it has been registered. `ended_for` is why the nanny ends it, if the nanny does.
    """

    def __init__(
        self,
        token: str,
        board: RunningTable,
        spec: ChildSpec,
        settings: NannySettings,
        connection: SchedulerConnection,
        changed: Callable[[], object],
    ) -> None:
        self.token = token
        self.board = board
        self._spec = spec
        self._settings = settings
        self._connection = connection
        self._changed = changed
        self.began_at = trio.current_time()
        self.phase: Phase = Spawning()
        self.address: str | None = None
        self.ended_for: Order | Kill | None = None
        self.successor_may_start = trio.Event()
        """It has ended, or hands its results over to its successor."""
        self._deadline_scope = trio.CancelScope()

    @property
    def child(self) -> Child | None:
        """The process, while there is one."""
        return None if isinstance(self.phase, Spawning | Ended) else self.phase.child

    @property
    def pid(self) -> int:
        """The number of the process; 0 before the process has told it."""
        match self.phase:
            case Spawning():
                return 0
            case Ended(pid=pid):
                return pid
            case Starting(child) | Running(child) | Leaving(child):
                return child.pid

    @property
    def leaving(self) -> str:
        """Why it leaves, or left, in good order; empty if it does not."""
        match self.phase:
            case Leaving(reason=reason) | Ended(leaving=reason):
                return reason
            case _:
                return ""

    @property
    def asked(self) -> Asked:
        """What the nanny was asked for, if it ends the process for that."""
        return self.ended_for.asked if isinstance(self.ended_for, Order) else ""

    async def run(self) -> None:
        """Start it, and stay until it has ended."""
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._enforce_deadline)
                watching.start_soon(self._watch_memory)
                watching.start_soon(self._watch_scheduler)
                try:
                    end = await run_child(self._spec, self._handle_report, self._process_started)
                except ClusterError as error:  # there is not even an interpreter
                    end = ChildEnd(name=self._spec.name, status=1, started=False, failure=str(error))
                self.phase = Ended(end, self.pid, self.leaving)
                watching.cancel_scope.cancel()
        finally:
            if not isinstance(self.phase, Ended):
                self.board.close()
        self.successor_may_start.set()

    def _process_started(self, child: Child) -> None:
        self.phase = Starting(child)
        if self.ended_for is not None:
            child.leave(self.ended_for.reason)

    def _handle_report(self, child: Child, report: Mapping[str, Any]) -> None:
        if "address" in report:
            self.address = str(report["address"])
        if "running" in report:
            self.phase = Running(child)
            self._connection.worker_changed()
        elif "leaving" in report or "at_rest" in report:
            at_rest = "at_rest" in report or (isinstance(self.phase, Leaving) and self.phase.at_rest)
            self.phase = Leaving(child, report.get("leaving", self.leaving), at_rest)
        self._changed()

    # ------------------------------------------------------------------------------------------ its end

    def stop(self, how: Stop, reason: str) -> None:
        """End it for good."""
        self.ended_for = Order("stop", reason)
        match self.phase:
            case Starting(child):
                child.leave(reason)
            case Running(child) | Leaving(child):
                if how is Stop.NOW:
                    child.leave(reason)
                elif how is Stop.DRAIN:
                    child.stop(signal.SIGTERM, reason)
                    self._expect_end(self._settings.worker.drain_timeout_s + SIGTERM_SLACK_S)
                else:
                    if how is not Stop.TOLD or self.address is None:
                        child.stop(signal.SIGINT, reason)
                    self._expect_end(SIGINT_DRAIN_S + SIGINT_SLACK_S)
            case Spawning() | Ended():
                pass  # it ends as soon as there is a process

    def replace(self, reason: str = "") -> None:
        """End it, so that another takes its place."""
        if self.asked != "stop":
            self.ended_for = Order("restart", reason)
        if self.child is not None:
            self.child.leave(reason)

    def _expect_end(self, seconds: float) -> None:
        self._deadline_scope.deadline = min(self._deadline_scope.deadline, trio.current_time() + seconds)

    async def _enforce_deadline(self) -> None:
        with self._deadline_scope:
            await trio.sleep_forever()
        if self.child is not None and self.ended_for is not None:
            self.child.leave(self.ended_for.reason)

    def _kill(self, kill: Kill) -> None:
        if self.child is not None:
            self.ended_for = self.ended_for or kill
            self.child.kill()

    async def _watch_memory(self) -> None:
        limit, fraction = self._settings.worker.memory_limit_bytes, self._settings.memory_terminate
        while limit is not None and fraction is not None:  # the kernel has no event for this
            await trio.sleep(WATCH_INTERVAL_S)
            if self.pid:
                used = memory_used(self.pid, roughly_up_to=limit * fraction)
                excess = memory_excess(used, limit, fraction)
                if excess is not None:
                    self._kill(Kill("memory", excess))

    async def _watch_scheduler(self) -> None:
        """The worker counts this time itself, but cannot act while a task holds its interpreter."""
        limit_s = self._settings.worker.death_timeout_s
        connection = self._connection
        while limit_s < math.inf:
            due_at = connection.away_since + limit_s + DEATH_SLACK_S
            if trio.current_time() >= due_at:
                self._kill(Kill("no scheduler", f"no scheduler for {limit_s:g} s: {connection.why_away}"))
                return
            await trio.sleep_until(min(due_at, trio.current_time() + limit_s + DEATH_SLACK_S))
