"""The nanny as a service: it runs one worker process after another, watches each, and reports its death.

    nanny      its own listener, the connection with the scheduler
    └ CHILD    start under a limit ─► watch its memory ─► its end ─► death report ─► pause ─► the next

It shares a Trio loop with other nannies. Code of users, plugins and what `client.run` calls, runs in threads unless it
is `async def`: whatever the workers do, a nanny can answer for them.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple

import trio

from trio_dask._version import __version__
from trio_dask.comm import Address
from trio_dask.comm.rpc_server import Command
from trio_dask.config import LEAVING, NannySettings
from trio_dask.errors import ClusterError, KeptCrashing, NoScheduler, RefusedError, TrioDaskError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.ids import new_incarnation
from trio_dask.nanny.client_calls import ClientCalls
from trio_dask.nanny.death_report import OomKills, cause_of_death
from trio_dask.nanny.handle import NannyHandle
from trio_dask.nanny.restart_policy import (
    ExitDecision,
    Finish,
    GiveUp,
    NannyCore,
    ProcessExit,
    Restart,
)
from trio_dask.nanny.rpc_handlers import run_control
from trio_dask.nanny.scheduler_connection import SchedulerConnection
from trio_dask.nanny.worker_process import Ended, Kill, Leaving, Stop, WorkerProcess
from trio_dask.plugins.host import PluginHost
from trio_dask.processes.child_context import ChildLog, Entry
from trio_dask.processes.child_process import ChildSpec
from trio_dask.processes.environment import child_environment
from trio_dask.processes.recent_lines import recent_lines
from trio_dask.processes.spawn import Starter, start_by_exec
from trio_dask.procfs import is_runnable, memory_used
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import (
    Leave,
    NannyCall,
    PluginsSent,
    SchedulerStops,
    SetUpPlugin,
    TearDownPlugin,
    ToNanny,
    WorkerExited,
)
from trio_dask.security.credentials import Credentials
from trio_dask.settings_json import to_json
from trio_dask.worker.running_table import RunningTable

log = logging.getLogger("trio_dask.nanny")

ERRORS: Mapping[int, type[TrioDaskError]] = {
    ExitStatus.WRONG_USAGE: UsageError,
    ExitStatus.NO_SCHEDULER: NoScheduler,
    ExitStatus.REFUSED: RefusedError,
    ExitStatus.KEPT_CRASHING: KeptCrashing,
}


FIRST_CONTACT_S = 3.0
"""How long a nanny waits for a scheduler that may have plugins for it, before it starts its worker."""

LONGEST_RESTART_S = 60.0
"""How long a plugin that wants a new process waits until that is registered."""


class Pause(NamedTuple):
    """There is no worker process now: the first one is yet to come, or the next one follows after a pause."""

    over: trio.Event


class Nanny:
    """One nanny and its worker. Everything but `run` may be called at any time, in Trio's thread.

    It calls `changed` when `address` or `pid` change, and `output` with what the worker writes to its stderr. A worker
    process runs `program`, with the `credentials` that are given, if any; `start` starts it. `label` names the program
    in lines about the worker; for `log` see `ChildLog`.
    `around` makes a block from what the operator's modules see of this nanny, in which its workers run.
    """

    _oom_kills: OomKills | None = None  # one for all nannies of this program

    def __init__(
        self,
        settings: NannySettings,
        program: Entry,
        *,
        credentials: Credentials | None = None,
        label: str = "worker",
        log: ChildLog | None = None,
        changed: Callable[[], object] = lambda: None,
        output: Callable[[bytes], object] = lambda data: None,
        start: Starter = start_by_exec,
        around: Callable[[NannyHandle], AbstractAsyncContextManager[None]] | None = None,
    ) -> None:
        self.settings = settings
        self.control_address: Address | None = None
        self.incarnation = new_incarnation()
        self._program = program
        self._given = credentials
        self._label = label
        self._log = log or ChildLog(origin=label)
        self.changed = changed
        self._output = output
        self._start = start
        self._around = around
        self._core = NannyCore(settings)
        self._connection = SchedulerConnection(
            settings.worker, credentials, details=self._details, alive=self._alive, handle=self._handle
        )
        self.env: dict[str, str] = {}
        """What plugins add to the environment of its processes."""
        self._plugins: PluginHost
        self._calls: ClientCalls
        self._preparing = trio.CancelScope()
        """In which the plugins are awaited with which it begins."""
        self._moved = trio.Event()
        """Set, and replaced, when a process is registered or ends."""
        self._current: WorkerProcess | Pause = Pause(trio.Event())
        self._predecessors: list[WorkerProcess] = []
        """Those that hand their results over to a successor."""
        self._stop: Stop | None = None
        self.restarts = 0
        self._lasting_name = settings.worker.name
        """The name of every process: the configured one, else the address of the first process."""
        if Nanny._oom_kills is None:
            Nanny._oom_kills = OomKills()

    @property
    def name(self) -> str:
        """The worker's name, or the address that stands for it; empty before there is one."""
        return self._lasting_name or ""

    @property
    def address(self) -> str | None:
        """The worker's address, while it is registered."""
        return self._current.address if isinstance(self._current, WorkerProcess) else None

    @property
    def why_waiting(self) -> str:
        """Why this nanny waits for the scheduler; empty while it has a connection, or where waiting is useless."""
        connection = self._connection
        return "" if connection.away_since == math.inf or connection.is_hopeless else connection.why_away

    @property
    def pid(self) -> int:
        """The worker's process, 0 while there is none."""
        return self._current.pid if isinstance(self._current, WorkerProcess) else 0

    # ------------------------------------------------------------------------------------------ orders

    def stop(self, how: Stop = Stop.DRAIN, reason: str = "the nanny was asked to stop") -> None:
        """Have the worker end, and the nanny after it. Does not wait; a later call can only make it faster."""
        if self._stop is not None and how <= self._stop:
            return
        self._stop = how
        self._preparing.cancel()
        self._end_pause()
        for process in self._processes():
            process.stop(how, reason)

    def restart(self, reason: str = "the nanny was asked for a restart") -> None:
        """Replace the worker's process at once. Does not wait."""
        self._end_pause()
        if isinstance(self._current, WorkerProcess):
            self._current.replace(reason)

    def _end_pause(self) -> None:
        if isinstance(self._current, Pause):
            self._current.over.set()

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

    def _set_up_plugin(self, message: SetUpPlugin) -> None:
        self._plugins.ask(message)

    def _tear_down_plugin(self, message: TearDownPlugin) -> None:
        self._plugins.ask(message)

    def _plugins_sent(self, message: PluginsSent) -> None:
        self._connection.first_contact.set()

    def _call(self, message: NannyCall) -> None:
        self._connection.answer_later(partial(self._calls.answer, message))

    async def _plugin_changed(self, plugin: Any, is_set_up: bool) -> None:
        """Give a worker that runs already a new process, if the plugin wants that, and wait until it is registered."""
        before = self._current
        if not (is_set_up and getattr(plugin, "restart", False)) or not isinstance(before, WorkerProcess):
            await trio.lowlevel.checkpoint()
            return
        self.restart("a plugin was registered")
        with trio.move_on_after(LONGEST_RESTART_S):
            while self._current is before or self.address is None:
                await self._moved.wait()

    async def _set_up_plugins(self) -> None:
        """Set up the plugins with which it begins, if a scheduler answers soon."""
        with self._preparing:
            with trio.move_on_after(FIRST_CONTACT_S):
                await self._connection.first_contact.wait()
            await self._plugins.wait_at_rest()

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, Any], None]]] = {
        Leave: _leave,
        SchedulerStops: _scheduler_stops,
        SetUpPlugin: _set_up_plugin,
        TearDownPlugin: _tear_down_plugin,
        PluginsSent: _plugins_sent,
        NannyCall: _call,
    }

    # ------------------------------------------------------------------------------------------ what it reports

    def _details(self) -> Mapping[str, Any]:
        return {
            "process": self._current.token if isinstance(self._current, WorkerProcess) else "",
            "address": "" if self.control_address is None else str(self.control_address),
            "name": self.name,
            "pid": os.getpid(),
            "plugins": self._plugins.ids,
        }

    def _processes(self) -> list[WorkerProcess]:
        """The predecessors, then the current one, if there is one."""
        return [*self._predecessors, *([self._current] if isinstance(self._current, WorkerProcess) else [])]

    def _alive(self) -> list[str]:
        return [one.token for one in self._processes() if one.child is not None and is_runnable(one.pid)]

    def _commands(self) -> Mapping[str, Command]:
        return {
            "identity": lambda arguments: self.identity(),
            "status": lambda arguments: self.status(),
            "logs": lambda arguments: recent_lines(arguments.get("n")),
            "restart": lambda arguments: self.restart("rpc to its nanny: restart"),
            "terminate": lambda arguments: self.stop(Stop.DRAIN, "rpc to its nanny: terminate"),
        }

    def identity(self) -> dict[str, Any]:
        """What this nanny is."""
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
        has_process = isinstance(self._current, WorkerProcess) and self._current.child is not None
        status = "running" if self.address else "starting" if has_process else "waiting"
        return {
            "status": status if self._stop is None else "stopping",
            "worker": self.address or "",
            "worker_pid": self.pid,
            "restarts": self.restarts,
            "memory_bytes": memory_used(self.pid) if self.pid else 0,
            "memory_limit_bytes": self.settings.worker.memory_limit_bytes or 0,
        }

    # ------------------------------------------------------------------------------------------ its processes

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after one worker until it ends for good; `task_status.started` gives its address once it is registered.

        Cancelled, it ends the worker, which says goodbye, within about a second.

        Raises:
          KeptCrashing: it crashed more often than the settings allow; the message has the cause of the first crash.
          NoScheduler: there was none for the worker's death-timeout.
          RefusedError: the scheduler does not take the worker.
          UsageError: the worker cannot use something in the settings.
          OSError: it cannot listen where the settings say.
          TrioDaskError: `around` raised it.
        """
        outcome: Finish | GiveUp = Finish()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                if self.settings.port_range is not None:
                    identity = Hello(role="nanny", incarnation=self.incarnation, name=self.name)
                    serving = partial(run_control, credentials=lambda: self._connection.credentials)
                    self.control_address = await nursery.start(serving, self.settings, identity, self._commands())
                    log.info("Start nanny at: %s", self.control_address)
                handle = NannyHandle(self)
                self._plugins = PluginHost(handle, self._connection.tell, log, changed=self._plugin_changed)
                self._calls = ClientCalls(handle)
                nursery.start_soon(self._connection.run)
                async with nullcontext() if self._around is None else self._around(handle):
                    nursery.start_soon(self._plugins.run)
                    await self._set_up_plugins()
                    outcome = await self._run_workers(task_status)
            except (OSError, TrioDaskError) as error:
                failure = error  # raised outside of the nursery, which would wrap it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if isinstance(outcome, GiveUp):
            raise ERRORS.get(outcome.status, ClusterError)(outcome.reason)

    def _child_spec(self, token: str, board: RunningTable) -> ChildSpec:
        """How to start the next worker process."""
        settings = self.settings
        worker = settings.worker._replace(
            name=self._lasting_name,
            process=token,
            nanny_address="" if self.control_address is None else str(self.control_address),
            board_fd=board.fd,
            lifetime_s=settings.draw_lifetime_s(random.uniform),
            pid_file=None,
        )
        return ChildSpec(
            name=self._label,
            program=self._program,
            settings=to_json(settings._replace(worker=worker)),
            credentials=self._given,
            inherit=(board.fd,),
            environment=child_environment({**settings.environment, **self.env}, defaults=settings.default_environment),
            guarded=True,
            log=self._log,
            start_timeout_s=settings.start_timeout_s,
            stderr=self._output,
            start=self._start,
        )

    async def _run_workers(self, task_status: trio.TaskStatus[str]) -> Finish | GiveUp:
        """Run one worker after another; if the end of one is planned, the next one starts while it drains."""
        waiting: list[trio.TaskStatus[str]] = [task_status]
        outcome: Finish | GiveUp = Finish()
        async with trio.open_nursery() as predecessors:
            while self._stop is None:
                process = self._new_process(waiting)
                predecessors.start_soon(self._run_one, process)
                await process.successor_may_start.wait()
                if isinstance(process.phase, Ended):
                    pause = self._current = Pause(trio.Event())
                    self.changed()
                    following = self._report_exit(process, process.phase)
                    if not isinstance(following, Restart):
                        outcome = following
                        break
                    with trio.move_on_after(following.after_s):
                        await pause.over.wait()
                else:
                    self._predecessors.append(process)
                self.restarts += 1
        return outcome

    async def _run_one(self, process: WorkerProcess) -> None:
        await process.run()
        if process in self._predecessors and isinstance(process.phase, Ended):
            self._predecessors.remove(process)
            self._report_exit(process, process.phase)

    def _new_process(self, waiting: list[trio.TaskStatus[str]]) -> WorkerProcess:
        def process_changed() -> None:
            if self._is_time_for_successor(process):
                process.successor_may_start.set()
            if self._current is not process:
                return
            self._lasting_name = self._lasting_name or process.address
            if process.address is not None and waiting:
                waiting.pop().started(process.address)
            self._moved.set()
            self._moved = trio.Event()
            self.changed()

        token = new_incarnation()
        board = RunningTable.create(self.settings.worker.nthreads)
        spec = self._child_spec(token, board)
        process = self._current = WorkerProcess(token, board, spec, self.settings, self._connection, process_changed)
        return process

    def _is_time_for_successor(self, process: WorkerProcess) -> bool:
        """Whether another worker starts now, before this one ends, to take over the results of this one.

        Not if both would have to listen on one port, and not before this one is at rest: two that compute would use
        processors and memory twice, and during a long last task the second could reach its own end, and so on.
        """
        first, last = self.settings.worker.port_range
        match process.phase:
            case Leaving(reason=reason, at_rest=True):
                expected = reason == "max-tasks" or (reason == "lifetime" and self.settings.lifetime_restart)
                return expected and process.ended_for is None and self._stop is None and (first == 0 or last > first)
            case _:
                return False

    def _report_exit(self, process: WorkerProcess, ended: Ended) -> Restart | Finish | GiveUp:
        """Report an end to the scheduler and in the log, and decide what follows."""
        end = ended.end
        killed = process.ended_for if isinstance(process.ended_for, Kill) else None
        with process.board as board:
            runs = board.running()
        out_of_memory = end.status == -signal.SIGKILL and killed is None and self._claim_oom_kill()
        of_memory = out_of_memory or (killed is not None and killed.cause == "memory")
        cause = cause_of_death(end, killed_for=killed.reason if killed else "", out_of_memory=out_of_memory)
        if killed is not None and killed.cause == "no scheduler":
            seen = ProcessExit(ExitStatus.NO_SCHEDULER, end.started, killed.reason)
        else:
            seen = ProcessExit(
                end.status,
                end.started,
                end.failure or cause if end.hopeless or end.status in ERRORS else cause,
                registered=process.address is not None,
                leaving=ended.leaving,
                asked=process.asked,
                hopeless=end.hopeless,
                excused=bool(runs) or (of_memory and process.address is not None),
                last_words=end.failure or end.words.last_line,
                explained=bool(end.failure) or self._death_timeout_is_over(),
            )
        decision = self._core.ended(seen, trio.current_time())
        lived_s = trio.current_time() - process.began_at
        details = {  # for people; for the scheduler, whether memory was the cause
            "pid": ended.pid,
            "status": end.status,
            "lived_s": round(lived_s, 3),
            "peak_bytes": end.peak_bytes,
            "limit_bytes": self.settings.worker.memory_limit_bytes or 0,
            "of_memory": of_memory,
            "last_lines": end.words.lines,
            "stack": end.words.stack,
        }
        planned = decision.planned
        self._connection.report_death(
            WorkerExited(process.token, planned, cause, exact=True, runs=() if planned else runs, details=details)
        )
        self._log_end(process, cause, decision)
        return decision.next

    @staticmethod
    def _claim_oom_kill() -> bool:
        return Nanny._oom_kills is not None and Nanny._oom_kills.claim()

    def _death_timeout_is_over(self) -> bool:
        """Whether the worker may have left for lack of a scheduler; it cannot report that while a task blocks it."""
        return trio.current_time() >= self._connection.away_since + self.settings.worker.death_timeout_s

    def _log_end(self, process: WorkerProcess, cause: str, decision: ExitDecision) -> None:
        # Not `_lasting_name`: without a name of its own, a worker that was restarted has the first one's port there.
        name = self.settings.worker.name or process.address
        worker = " ".join(filter(None, ("Worker", name, f"(pid {process.pid})" if process.pid else "")))
        following = decision.next
        again = "; restarting it" if isinstance(following, Restart) else ""
        if decision.planned and process.asked:
            log.info("%s stopped%s", worker, again)
        elif decision.planned:
            log.info("%s left: %s%s", worker, LEAVING.get(process.leaving, process.leaving), again)
        elif isinstance(following, Restart):
            pause = f" in {following.after_s:g} s" if following.after_s else ""
            log.warning("%s died: %s%s%s", worker, cause, again, pause)
        elif isinstance(following, GiveUp) and following.status == ExitStatus.KEPT_CRASHING:
            log.warning("%s died: %s", worker, cause)
