"""One worker process under a nanny: what the nanny knows and watches of it, and how it is brought to its end."""

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
from trio_dask.processes.procfs import memory_used
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


class Kill(NamedTuple):
    """Why a nanny killed its worker."""

    cause: Literal["memory", "no scheduler"]
    reason: str


class WorkerProcess:
    """One worker process, from its start to its end.

    `board` shows what it runs, `token` names it to the scheduler. `address` is where it is reached, once it has been
    registered, `leaving` why it is about to leave in good order. `at_rest`: its slots are free, and it takes no more
    tasks. `asked` is what the nanny was asked for meanwhile, `killed` why the nanny killed it.
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
        self.child: Child | None = None
        self.address: str | None = None
        self.leaving = ""
        self.at_rest = False
        self.asked: Asked = ""
        self.killed: Kill | None = None
        self.end: ChildEnd | None = None
        self.ended = trio.Event()
        self.successor_may_start = trio.Event()
        """It has ended, or hands its results over to its successor."""
        self._why = ""
        self._heeds_signals = False
        self._patience = trio.CancelScope()
        self._patience_ends_at = math.inf

    @property
    def pid(self) -> int:
        """Its number; 0 if it has not come so far."""
        return 0 if self.child is None else self.child.pid

    async def run(self) -> None:
        """Start it, and stay until it has ended; then there is an `end`."""
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._limit_patience)
                watching.start_soon(self._watch_memory)
                watching.start_soon(self._watch_scheduler)
                try:
                    self.end = await run_child(self._spec, self._heard, self._born)
                except ClusterError as error:  # there is not even an interpreter
                    self.end = ChildEnd(name=self._spec.name, status=1, started=False, failure=str(error))
                watching.cancel_scope.cancel()
        finally:
            if self.end is None:
                self.board.close()
        self.ended.set()
        self.successor_may_start.set()

    def _born(self, child: Child) -> None:
        self.child = child
        if self.asked:
            child.leave(self._why)

    def _heard(self, child: Child, report: Mapping[str, Any]) -> None:
        self.leaving = report.get("leaving", self.leaving)
        self.at_rest = report.get("at_rest", self.at_rest)
        if "running" in report:
            self._heeds_signals = True
            self._connection.worker_changed()
        if "address" in report:
            self.address = str(report["address"])
        self._changed()

    # ------------------------------------------------------------------------------------------ its end

    def stop(self, how: Stop, reason: str) -> None:
        """End it for good."""
        self.asked = "stop"
        self._why = reason
        if self.child is None:
            return
        if how is Stop.NOW or not self._heeds_signals:
            # One that is still starting has nothing to drain, and could not do so: it may not even know signals yet.
            self.child.leave(reason)
        elif how is Stop.TOLD and self.address is not None:
            self._expect_end(SIGINT_DRAIN_S + SIGINT_SLACK_S)
        elif how is Stop.DRAIN:
            self.child.stop(signal.SIGTERM, reason)
            self._expect_end(self._settings.worker.drain_timeout_s + SIGTERM_SLACK_S)
        else:
            self.child.stop(signal.SIGINT, reason)
            self._expect_end(SIGINT_DRAIN_S + SIGINT_SLACK_S)

    def replace(self, reason: str = "") -> None:
        """End it, so that another takes its place."""
        self.asked = self.asked or "restart"
        self._why = reason
        if self.child is not None:
            self.child.leave(reason)

    def _expect_end(self, seconds: float) -> None:
        self._patience_ends_at = min(self._patience_ends_at, trio.current_time() + seconds)
        self._patience.deadline = self._patience_ends_at

    async def _limit_patience(self) -> None:
        with self._patience:
            self._patience.deadline = self._patience_ends_at
            await trio.sleep_forever()
        if self.child is not None:
            self.child.leave(self._why)

    def _kill(self, kill: Kill) -> None:
        if self.child is not None and self.killed is None:
            self.killed = kill
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
