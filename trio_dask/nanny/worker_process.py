"""One worker process under a nanny: what is watched of it while it lives, and how it is brought to its end."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import trio

from trio_dask.config import NannySettings
from trio_dask.errors import ClusterError
from trio_dask.nanny.restart_policy import memory_verdict
from trio_dask.nanny.scheduler_connection import SchedulerLink
from trio_dask.processes.child_process import Child, ChildEnd, ChildSpec, run_child
from trio_dask.processes.procfs import memory_used

__all__ = ["Life", "Stop"]

WATCH_INTERVAL_S = 0.2
SIGINT_DRAIN_S = 2.0
SIGINT_SLACK_S = 0.5
SIGTERM_SLACK_S = 3.0
"""For what the worker does at the end, whatever its tasks do: save results, say goodbye."""
DEATH_SLACK_S = 1.5


class Stop(IntEnum):
    """How urgently a nanny is to end: its worker may drain, or drain for two seconds, or is killed.

    `TOLD`: the scheduler has told the worker too, if it is registered, which leaves by itself, as soon as that.
    """

    DRAIN = 0
    TOLD = 1
    SOON = 2
    NOW = 3


class Life:
    """One worker process, from its start to its end."""

    def __init__(
        self, token: str, spec: ChildSpec, settings: NannySettings, link: SchedulerLink, changed: Callable[[], object]
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._link = link
        self._changed = changed
        self.token = token
        self.child: Child | None = None
        self.address: str | None = None
        self.asked = ""
        self._why = ""
        self.leaving = ""
        self.at_rest = False
        """Its slots are free, and it takes no more tasks."""
        self.killed_for = ""
        self.has_too_much_memory = False
        """It was killed for that."""
        self._heeds_signals = False
        self.lonely = False
        """It was killed because there was no scheduler for too long."""
        self.began_at = trio.current_time()
        self._patience = trio.CancelScope()
        self._patience_ends_at = math.inf

    async def run(self) -> ChildEnd:
        """Start it, and stay until it has ended."""
        async with trio.open_nursery() as watching:
            watching.start_soon(self._limit_patience)
            watching.start_soon(self._watch_memory)
            watching.start_soon(self._watch_scheduler)
            try:
                end = await run_child(self._spec, self._heard, self._born)
            except ClusterError as error:  # there is not even an interpreter
                end = ChildEnd(name=self._spec.name, status=1, started=False, failure=str(error))
            watching.cancel_scope.cancel()
        return end

    def _born(self, child: Child) -> None:
        self.child = child
        if self.asked:
            child.leave(self._why)

    def _heard(self, child: Child, report: Mapping[str, Any]) -> None:
        self.leaving = report.get("leaving", self.leaving)
        self.at_rest = report.get("at_rest", self.at_rest)
        if "running" in report:
            self._heeds_signals = True
            self._link.worker_changed()
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
        """End it, to have another take its place."""
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

    def _kill(self, reason: str) -> None:
        if self.child is not None and not self.killed_for:
            self.killed_for = reason
            self.child.kill()

    async def _watch_memory(self) -> None:
        limit, fraction = self._settings.worker.memory_limit_bytes, self._settings.memory_terminate
        while limit is not None and fraction is not None:  # the kernel has no event for this
            await trio.sleep(WATCH_INTERVAL_S)
            if self.child is not None and self.child.pid:
                used = memory_used(self.child.pid, roughly_up_to=limit * fraction)
                too_much = memory_verdict(used, limit, fraction)
                if too_much is not None:
                    self.has_too_much_memory = not self.killed_for
                    self._kill(too_much)

    async def _watch_scheduler(self) -> None:
        """The worker counts this time itself, but cannot act while a task holds its interpreter."""
        limit_s = self._settings.worker.death_timeout_s
        link = self._link
        while limit_s < math.inf:
            due_at = link.away_since + limit_s + DEATH_SLACK_S
            if trio.current_time() >= due_at:
                self.lonely = True
                self._kill(f"no scheduler for {limit_s:g} s: {link.why_away}")
                return
            await trio.sleep_until(min(due_at, trio.current_time() + limit_s + DEATH_SLACK_S))
