"""The nanny as a service: one worker process after the other, each watched, buried, and followed by the next.

    nanny      the control endpoint, the link with the scheduler
    └ CHILD    start under a limit ─► watch its memory ─► its end ─► obituary ─► pause ─► the next

It shares a Trio loop with other nannies, and runs no code of users: whatever the workers do, it can answer for them.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import trio

from trio_dask._version import __version__
from trio_dask.comm import Address
from trio_dask.config import LEAVING, NannySettings
from trio_dask.errors import ClusterError, KeptCrashing, NoScheduler, RefusedError, TrioDaskError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.nanny.death_report import cause_of_death, details_of_death, write_obituary
from trio_dask.nanny.restart_policy import KEPT_CRASHING, Again, End, NannyCore, Over, RestartPolicy
from trio_dask.nanny.rpc_handlers import run_control
from trio_dask.nanny.scheduler_connection import SchedulerLink
from trio_dask.nanny.worker_process import Life, Stop
from trio_dask.processes.child_process import ChildEnd, ChildSpec
from trio_dask.processes.environment import OomKills, child_environment
from trio_dask.processes.procfs import is_runnable, memory_used
from trio_dask.processes.spawn import Starter, start_by_exec
from trio_dask.protocol.messages import Leave, SchedulerStops, ToNanny
from trio_dask.settings_json import to_json
from trio_dask.worker.running_table import RunningTable

__all__ = ["Nanny", "Stop", "run_nanny"]

log = logging.getLogger("trio_dask.nanny")

PROGRAM = "trio_dask.deploy.child_services:worker"

ERRORS: Mapping[int, type[TrioDaskError]] = {
    2: UsageError,
    3: NoScheduler,
    4: RefusedError,
    5: KeptCrashing,
}


class _Term:
    """The time of one worker process in its office. There is `news` when it ends, or its successor may begin."""

    def __init__(self, slots: int) -> None:
        self.board = RunningTable.create(slots)
        self.end: ChildEnd | None = None
        self.news = trio.Event()
        self.over = trio.Event()

    async def serve(self, life: Life) -> None:
        """Live it."""
        try:
            self.end = await life.run()
        finally:
            if self.end is None:
                self.board.close()
        self.over.set()
        self.news.set()


class Nanny:
    """One nanny and its worker. Everything but `run` may be called at any time, in Trio's thread.

    Attributes: `address`, where the worker is reached while it is registered, and `pid`, its process, while there is
    one. `changed` is called when they change, `output` with what the worker writes to its stderr, `start` to have a
    process for it. `label`, `origin`, `quiet`, `debug` and `records` are about its log, see `ChildSpec`.
    """

    _oom_kills: OomKills | None = None  # one for all nannies of this program

    def __init__(
        self,
        settings: NannySettings,
        *,
        label: str = "worker",
        origin: str = "",
        quiet: bool = True,
        debug: bool = False,
        records: bool = False,
        changed: Callable[[], object] = lambda: None,
        output: Callable[[bytes], object] = lambda data: None,
        start: Starter = start_by_exec,
    ) -> None:
        worker = settings.worker
        self.settings = settings
        self.address: str | None = None
        self.pid: int | None = None
        self.control_address: Address | None = None
        self.incarnation = new_incarnation()
        self._label = label
        self._origin = origin or label
        self._records = records
        self._quiet = quiet
        self._debug = debug
        self.changed = changed
        self._output = output
        self._start = start
        policy = RestartPolicy(
            max_restarts=settings.max_restarts,
            window_s=settings.restart_window_s,
            first_backoff_s=settings.backoff_s[0],
            max_backoff_s=settings.backoff_s[1],
            same_failures=settings.same_failures,
        )
        self._core = NannyCore(
            policy, lifetime_restart=settings.lifetime_restart, signal_restart=settings.signal_restart
        )
        self._link = SchedulerLink(worker, details=self._details, vouch=self._vouch, handle=self._handle)
        self._life: Life | None = None
        self._draining: list[Life] = []
        """Those whose successor is there already."""
        self._stop: Stop | None = None
        self._no_pause = trio.Event()
        self.restarts = 0
        self._lasting_name = settings.worker.name
        """What all processes are called: without a name of its own, the first one's address."""
        if Nanny._oom_kills is None:
            Nanny._oom_kills = OomKills()

    @property
    def name(self) -> str:
        """The worker's name, or what stands for it."""
        return self._lasting_name or ""

    # ------------------------------------------------------------------------------------------ orders

    def stop(self, how: Stop = Stop.DRAIN, reason: str = "the nanny was asked to stop") -> None:
        """Have the worker end, and the nanny after it. Does not wait; a later call can only make it faster."""
        if self._stop is not None and how <= self._stop:
            return
        self._stop = how
        self._no_pause.set()
        for life in self._lives():
            life.stop(how, reason)

    def restart(self, reason: str = "the nanny was asked for a restart") -> None:
        """Have another worker process take the place of this one, at once. Does not wait."""
        self._no_pause.set()
        if self._life is not None:
            self._life.replace(reason)

    def suspend(self) -> None:
        """Stop the worker's processes for a while, however many there are. Safe in a signal handler."""
        for life in self._lives():
            if life.child is not None:
                life.child.suspend()

    def resume(self) -> None:
        """Have them go on. Safe in a signal handler."""
        for life in self._lives():
            if life.child is not None:
                life.child.resume()

    def _handle(self, message: ToNanny) -> None:
        self.HANDLERS[type(message)](self, message)

    def _leave(self, message: Leave) -> None:
        if message.restart:
            self.restart(message.reason)
        else:
            self.stop(Stop.TOLD, message.reason)

    def _scheduler_stops(self, message: SchedulerStops) -> None:
        # A worker that waits for the next scheduler says so itself.
        if self.settings.worker.on_scheduler_stop != "wait":
            self.stop(Stop.TOLD, "the scheduler stopped")

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, Any], None]]] = {
        Leave: _leave,
        SchedulerStops: _scheduler_stops,
    }

    # ------------------------------------------------------------------------------------------ what others are told

    def _details(self) -> Mapping[str, Any]:
        return {
            "process": "" if self._life is None else self._life.token,
            "address": "" if self.control_address is None else str(self.control_address),
            "name": self.name,
            "pid": os.getpid(),
        }

    def _lives(self) -> list[Life]:
        """Those that drain, and then the one that counts, if there is one."""
        return [*self._draining, *filter(None, (self._life,))]

    def _vouch(self) -> list[str]:
        return [life.token for life in self._lives() if life.child is not None and is_runnable(life.child.pid)]

    def identity(self) -> dict[str, Any]:
        """What this nanny says of itself to whoever asks."""
        return {
            "type": "nanny",
            "address": "" if self.control_address is None else str(self.control_address),
            "incarnation": self.incarnation,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "package": __version__,
            "name": self.name,
            "worker": self.address or "",
        }

    def status(self) -> dict[str, Any]:
        """How the worker is."""
        life = self._life
        running = life is not None and life.child is not None
        stopping = self._stop is not None
        return {
            "status": "stopping" if stopping else "running" if self.address else "starting" if running else "waiting",
            "worker": self.address or "",
            "worker_pid": self.pid or 0,
            "restarts": self.restarts,
            "memory_bytes": memory_used(self.pid) if self.pid else 0,
            "memory_limit_bytes": self.settings.worker.memory_limit_bytes or 0,
        }

    # ------------------------------------------------------------------------------------------ life

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run workers until one ends for good; see `run_nanny`."""
        over = Over(0, "")
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                if self.settings.port_range is not None:
                    self.control_address = await nursery.start(run_control, self)
                    log.info("Start nanny at: %s", self.control_address)
                nursery.start_soon(self._link.run)
                over = await self._run_workers(task_status)
            except (OSError, UsageError) as error:
                failure = error  # raised outside of the nursery, which would wrap it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if over.status:
            raise ERRORS.get(over.status, ClusterError)(over.reason)

    def _child_spec(self, token: str, board: RunningTable) -> ChildSpec:
        """What the next worker process is to be."""
        settings = self.settings
        worker = settings.worker
        lifetime_s = worker.lifetime_s + random.uniform(-1, 1) * settings.lifetime_stagger_s
        worker = worker._replace(
            name=self._lasting_name,
            process=token,
            nanny_address="" if self.control_address is None else str(self.control_address),
            board_fd=board.fd,
            lifetime_s=max(1.0, lifetime_s) if settings.lifetime_stagger_s else lifetime_s,
            pid_file=None,
        )
        return ChildSpec(
            name=self._label,
            program=PROGRAM,
            settings=to_json(settings._replace(worker=worker)),
            inherit=(board.fd,),
            environment=child_environment(settings.environment),
            guarded=True,
            quiet=self._quiet,
            debug=self._debug,
            origin=self._origin,
            records=self._records,
            start_timeout_s=settings.start_timeout_s,
            stderr=self._output,
            start=self._start,
        )

    async def _run_workers(self, task_status: trio.TaskStatus[str]) -> Over:
        """One worker after the other; where its end is foreseen, the next one while the one before it drains."""
        waiting: list[trio.TaskStatus[str]] = [task_status]
        over: Over | None = None
        async with trio.open_nursery() as predecessors:
            while over is None and self._stop is None:
                term = _Term(self.settings.worker.nthreads)
                life = self._begin_life(term, waiting)
                predecessors.start_soon(term.serve, life)
                await term.news.wait()
                if term.end is None:
                    self._draining.append(life)
                    predecessors.start_soon(self._see_off, term, life)
                    self.restarts += 1
                    continue
                self._life = None
                self.address = self.pid = None
                self.changed()
                with term.board:
                    following = self._bury(life, term.end, term.board)
                if isinstance(following, Over):
                    over = following
                    continue
                self._no_pause = trio.Event()
                with trio.move_on_after(following.after_s):
                    await self._no_pause.wait()
                self.restarts += 1
        return over or Over(0, "")

    def _begin_life(self, term: _Term, waiting: list[trio.TaskStatus[str]]) -> Life:
        def life_changed() -> None:
            if life.at_rest and self._has_successor(life):
                term.news.set()
            if self._life is not life:
                return
            self.pid = None if life.child is None else life.child.pid
            self.address = life.address
            self._lasting_name = self._lasting_name or life.address
            if self.address is not None and waiting:
                waiting.pop().started(self.address)
            self.changed()

        token = new_incarnation()
        spec = self._child_spec(token, term.board)
        life = self._life = Life(token, spec, self.settings, self._link, life_changed)
        return life

    def _has_successor(self, life: Life) -> bool:
        """Whether another worker follows this one, which is at rest, before it ends, to take its results over.

        Not where both would have to listen on one port. Nor before this one is at rest: two that compute would use
        processors and memory twice, and during a long last task the second could come to its own end, and so on.
        """
        first, last = self.settings.worker.port_range
        expected = life.leaving == "max-tasks" or (life.leaving == "lifetime" and self.settings.lifetime_restart)
        return expected and not life.asked and self._stop is None and (first == 0 or last > first)

    async def _see_off(self, term: _Term, life: Life) -> None:
        await term.over.wait()
        self._draining.remove(life)
        assert term.end is not None
        with term.board:
            self._bury(life, term.end, term.board)

    def _bury(self, life: Life, end: ChildEnd, board: RunningTable) -> Again | Over:
        """Tell the scheduler and the log of an end, and decide what follows."""
        assert Nanny._oom_kills is not None
        out_of_memory = end.status == -signal.SIGKILL and not life.killed_for and Nanny._oom_kills.claim()
        runs = board.running()
        of_memory = out_of_memory or life.has_too_much_memory
        cause = cause_of_death(end, killed_for=life.killed_for, out_of_memory=out_of_memory)
        if life.lonely:
            verdict_end = End(3, end.started, life.killed_for)
        else:
            verdict_end = End(
                end.status,
                end.started,
                end.failure or cause if end.hopeless or end.status in ERRORS else cause,
                registered=life.address is not None,
                leaving=life.leaving,
                asked=life.asked,
                hopeless=end.hopeless,
                excused=bool(runs) or (of_memory and life.address is not None),
                last_words=end.failure or end.words.last_line,
                told=bool(end.failure) or self._is_alone(),
            )
        verdict = self._core.ended(verdict_end, trio.current_time())
        pid = 0 if life.child is None else life.child.pid
        lived_s = trio.current_time() - life.began_at
        details = details_of_death(
            end,
            pid,
            lived_s,
            self.settings.worker.memory_limit_bytes,
            of_memory=of_memory,
        )
        planned = verdict.planned
        self._link.tell(write_obituary(life.token, cause, details, () if planned else runs, planned=planned))
        self._log_end(pid, life, cause, planned=planned, following=verdict.next)
        return verdict.next

    def _is_alone(self) -> bool:
        """Whether the worker may have left for want of a scheduler: if a task blocks it, it ends without a word."""
        return trio.current_time() >= self._link.away_since + self.settings.worker.death_timeout_s

    def _log_end(self, pid: int, life: Life, cause: str, *, planned: bool, following: Again | Over) -> None:
        # Not `_lasting_name`: without a name of its own, a worker that was restarted has the first one's port there.
        name = self.settings.worker.name or life.address
        who = " ".join(filter(None, ("Worker", name, f"(pid {pid})")))
        again = "; restarting it" if isinstance(following, Again) else ""
        if planned and life.asked:
            log.info("%s stopped%s", who, again)
        elif planned:
            log.info("%s left: %s%s", who, LEAVING.get(life.leaving, life.leaving), again)
        elif isinstance(following, Again):
            pause = f" in {following.after_s:g} s" if following.after_s else ""
            log.warning("%s died: %s%s%s", who, cause, again, pause)
        elif following.status == KEPT_CRASHING:
            log.warning("%s died: %s", who, cause)


async def run_nanny(settings: NannySettings, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Look after one worker until it ends for good; `task_status.started` gives its address once it is registered.

    Cancelled, it ends the worker, which says goodbye, within about a second.

    Raises:
      KeptCrashing: it crashed more often than the settings allow; the message has the cause of the first crash.
      NoScheduler: there was none for the worker's death-timeout.
      RefusedError: the scheduler does not take the worker.
      UsageError: the worker cannot use something in the settings.
      OSError: the control endpoint cannot listen where it shall.
    """
    await Nanny(settings).run(task_status=task_status)
