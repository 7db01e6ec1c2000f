"""Drives the worker's core: passes events in, and carries its effects out.

Every event ends in `_act`: messages leave in one write, then the core's requests are carried out, then slots are woken.
The driver lives as long as the worker, through all its sessions.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import trio

from trio_dask.comm import Address, Connection, DataChannel, Endpoint, PeerSilent, parse_address
from trio_dask.comm.connect import connect_data
from trio_dask.comm.joining import remember_joined
from trio_dask.config import WorkerSettings
from trio_dask.errors import TrioDaskError
from trio_dask.ids import Incarnation, Key, given_name
from trio_dask.parsing import counted
from trio_dask.plugins.host import PluginHost
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import (
    HandOverActor,
    Heartbeat,
    Message,
    PluginDone,
    Put,
    SettleActor,
    SetUpPlugin,
    TakeActor,
    TearDownPlugin,
    ToWorker,
)
from trio_dask.protocol.raw_memory import shared_memory, whole_of
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.worker.actor_moves import ActorMoves
from trio_dask.worker.call_stacks import call_stacks
from trio_dask.worker.core.blobs import BlobTable
from trio_dask.worker.core.effects import (
    CancelFetch,
    CancelRun,
    EndSession,
    FetchId,
    ForgetFunctions,
    FreeKeys,
    Request,
    StartFetch,
)
from trio_dask.worker.core.memory_policy import MemoryLimits
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.data_server import DataServer
from trio_dask.worker.event_log import EventLog
from trio_dask.worker.executor import Begun, Declined, Executor, Failed, Finished, InputGone, Outcome, Rescheduled
from trio_dask.worker.hosted_actors import HostedActors
from trio_dask.worker.memory_monitor import MemoryMonitor, WorkerCallbacks, keep_nothing_unwatched
from trio_dask.worker.peer_channels import PeerChannels
from trio_dask.worker.process_memory import ProcessMemory
from trio_dask.worker.profiler import TaskProfiler
from trio_dask.worker.result_store import Frames, ResultStore
from trio_dask.worker.running_table import RunningTable
from trio_dask.worker.secede import Rejoined, Seceded
from trio_dask.worker.spill_directory import check_base
from trio_dask.worker.tables import tables
from trio_dask.worker.task_context import WorkerHandle
from trio_dask.worker.transitions import Transitions

log = logging.getLogger("trio_dask.worker")

LONG_RUN_S = 0.5
"""A run that has taken this long is announced: if this worker dies, the run may have killed it."""


class Registration(NamedTuple):
    """The addresses, credentials and incarnation of one session; peers reach the worker at `address`."""

    address: Address
    scheduler: Address
    credentials: Credentials
    incarnation: Incarnation


class CoreDriver:
    """Core, slots, store and data plane of one worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._memory = self._watch_memory(settings)
        self._store = ResultStore() if self._memory is None else self._memory.store
        self._events = EventLog(self._send_events)
        self.handle = WorkerHandle(
            name=settings.name or "",
            nthreads=settings.nthreads,
            memory_limit_bytes=settings.memory_limit_bytes,
            resources=settings.resources,
            local_directory=settings.local_directory,
            data=self._store,
            log=self._events.add,
            call_stacks=call_stacks,
        )
        self._actors = self.handle.actors = HostedActors()
        self._core = WorkerCore(settings.nthreads, blobs=BlobTable(shared_memory, whole_of))
        self._running_table = (
            None if settings.board_fd is None else RunningTable.attach(settings.board_fd, settings.nthreads)
        )
        self._executor = Executor(
            settings.nthreads,
            ready=self._core.ready,
            blobs=self._core.blobs.complete,
            values=self._store,
            worker=self.handle,
            inline_limit_bytes=settings.inline_limit_bytes,
            max_tasks=settings.max_tasks,
            host_actor=self._actors.host,
            running_table=self._running_table,
            reservations=None if self._memory is None else self._memory.reservations,
            reserve_from=sys.maxsize if self._memory is None else self._memory.large_bytes,
        )
        self.handle.forget_functions = self._executor.forget_all
        self.handle.figures = self.figures
        self.handle.fetch_and_drop = self._fetch_and_drop
        self.handle.tables = lambda: tables(self._core, self.figures())
        self._profiler = self.handle.profiler = self._make_profiler(settings)
        self.plugins = PluginHost(self.handle, self._send_done, log, changed=self._plugin_changed)
        self._unsent_answers: list[PluginDone] = []
        """What plugins came to without a connection: the hello of the next session may have been made before."""
        self._transitions = Transitions()
        self._peers = PeerChannels(self._open_channel, None if self._memory is None else self._memory.room)
        context_of, limit = self._executor.context_of, settings.inline_limit_bytes
        self._moves = ActorMoves(self._core, self._store, self._actors, self._peers, context_of, limit, self._act)
        self.server = DataServer(self._store, self._core.held, self._keep, self.handle, self._memory, self._actors)
        self._connection: Connection | None = None
        self._credentials = NO_CREDENTIALS  # until there was a session
        self._end: EndSession | None = None
        self._fetches: dict[FetchId, trio.CancelScope] = {}
        self._alarm = trio.CancelScope()
        self._tasks: trio.Nursery  # in `run`
        self._process = ProcessMemory()
        self._cpu_read = time.monotonic(), time.process_time()
        self._heartbeat_at = trio.current_time()
        self.spent = trio.Event()
        """Set once `max_tasks` tasks have begun."""
        self.at_rest = trio.Event()
        """Set once the worker drains and its slots are free."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run slots, fetches and the timer until cancelled. Sessions begin after `task_status.started`."""
        self._events.attach()
        try:
            with nullcontext() if self._profiler is None else self._profiler.running():
                await self._run(task_status)
        finally:
            self._actors.close()
            self._transitions.close()
            self.handle.remove_directory()
            self._process.close()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self._tasks:
            self._tasks.start_soon(self._executor.run, self._take_outcomes)
            self._tasks.start_soon(self.plugins.run)
            if self._memory is not None:
                self._tasks.start_soon(self._memory.run)
            task_status.started()
            try:
                await self._tick()
            finally:
                self._peers.close()

    def _send_done(self, message: PluginDone) -> None:
        if self._connection is None:
            self._unsent_answers.append(message)
        else:
            self._connection.send_nowait(message, flush=True)

    async def _plugin_changed(self, plugin: Any, is_set_up: bool) -> None:
        self.handle.plugins = self.plugins.by_name
        await self._transitions.changed(plugin, is_set_up=is_set_up)
        self._executor.watch(self._transitions.started if self._transitions.are_heard else None)

    # ------------------------------------------------------------------------------------------ sessions

    def session_began(self, connection: Connection, registration: Registration, *, returned: bool) -> None:
        """This worker is registered, or taken back (else `reset` came before)."""
        self._connection = connection
        self._credentials = registration.credentials
        remember_joined(str(registration.scheduler), registration.credentials)  # for clients that tasks make
        self._end = None
        address = str(registration.address)
        self.handle.name = given_name(self._settings.name or address)
        self.handle.address = self._actors.address = address
        self.handle.scheduler_address = str(registration.scheduler)
        self.handle.incarnation = registration.incarnation
        self._core.session_began(address, returned)
        if self._unsent_answers:
            connection.send_many_nowait(self._unsent_answers)
            connection.flush_nowait()
            self._unsent_answers.clear()
        self._heartbeat_at = trio.current_time() + self._settings.heartbeat_interval_s
        self._send_events()
        self._act()

    def session_lost(self) -> None:
        """The connection to the scheduler is lost; keep everything."""
        self._connection = None
        self.handle.address = self.handle.scheduler_address = self.handle.incarnation = ""
        self._core.session_lost(trio.current_time())
        self._act()

    def reset(self) -> None:
        """The scheduler does not take this worker back: drop everything of it, and the client that tasks shared."""
        self._core.reset(trio.current_time())
        self._moves.reset()
        self._act()
        self._tasks.start_soon(self.close_client)

    async def close_client(self) -> None:
        """Close the client that tasks shared. Tasks that wait for its results fail."""
        client = self.handle.take_client()
        if client is not None:
            try:
                await trio.to_thread.run_sync(client.close, abandon_on_cancel=True)
            except Exception as error:  # it is of no use any more, whatever is wrong with it
                log.debug("could not close the client of this worker's tasks properly: %r", error)

    def receive(self, batch: list[Message]) -> EndSession | None:
        """Take what the scheduler sent; returns how it ends the session, if it does.

        Raises:
          ProtocolError: a message makes no sense.
        """
        now = trio.current_time()
        handle = self._core.handle
        if self._transitions.are_heard:
            self._transitions.received(batch)
        for message in cast("list[ToWorker]", batch):  # the connection admits nothing else
            handle(message, now)
        self._act()
        return self._end

    # ------------------------------------------------------------------------------------------ open or not

    @property
    def has_anything(self) -> bool:
        """Whether this worker has runs or values, which would be lost with it."""
        return bool(self._core.runs or self._core.held)

    def drain(self, reason: str) -> None:
        """Take no more runs, hand back those that have not started, and tell the scheduler."""
        self._core.drain_began(reason)
        self._act()
        self._check_slots_free()

    def _check_slots_free(self) -> None:
        core = self._core
        # Only the core knows of a run that a slot has just taken, only the executor of a cancelled one that goes on.
        outside = sum(map(core.is_current, core.slots.outside.values()))
        if core.table.executing == outside and self._executor.slots_are_free:
            self.at_rest.set()

    def set_paused(self, paused: bool) -> None:
        """Take no more runs for now, and hand back those that have not started; or take runs again."""
        self._core.set_paused(paused)
        self._act()

    def _watch_memory(self, settings: WorkerSettings) -> MemoryMonitor | None:
        limits = MemoryLimits.of(settings)
        if limits is None:
            keep_nothing_unwatched(settings)
            return None
        if settings.local_directory is not None:
            check_base(settings.local_directory)
        hooks = WorkerCallbacks(
            held_bytes=lambda: self._core.held.nbytes,
            busy=lambda: bool(self._core.runs or self._core.fetches.active or self._executor.busy),
            waits_for_itself=lambda: self.handle.client is not None,
            set_paused=self.set_paused,
            report_lost=self._report_lost,
        )
        return MemoryMonitor(limits, settings, hooks)

    def _make_profiler(self, settings: WorkerSettings) -> TaskProfiler | None:
        if not settings.profile_enabled:
            return None
        return TaskProfiler(
            self._executor.threads,
            self._executor.trio_tasks,
            lambda: self._executor.busy,
            interval_s=settings.profile_interval_s,
            cycle_s=settings.profile_cycle_s,
        )

    def _report_lost(self) -> None:
        """Tell the scheduler which values were lost on disk."""
        lost = self._store.take_lost()
        if lost:
            self._core.lost_values(lost)
            self._act()

    # ------------------------------------------------------------------------------------------ events

    def _send_events(self) -> None:
        """Send what tasks have logged; between sessions it waits for the next one."""
        if self._connection is not None and self._events.waiting:
            self._connection.send_many_nowait(self._events.take())
            self._connection.flush_nowait()

    def _take_outcomes(self, outcomes: list[Outcome]) -> None:
        core = self._core
        if self._transitions.are_heard:
            self._transitions.ended(outcomes)
        if self._events.waiting:  # clients hear of events before they hear of the result
            self._send_events()
        waiting: list[SimpleQueue[None]] = []
        for outcome in outcomes:
            if isinstance(outcome, Finished):  # the usual case
                run, value, nbytes, type_name, inline, duration_s, copied_bytes = outcome
                if core.is_current(run):
                    self._store.put(run.key, value, nbytes, copied_bytes)
                elif run.extra:
                    self._actors.drop_unwanted(run)
                core.finished(run, nbytes, type_name, inline, duration_s)
            elif isinstance(outcome, Failed):
                core.failed(*outcome)
                if outcome.run.extra:
                    self._actors.drop_unwanted(outcome.run)
            elif isinstance(outcome, InputGone):
                self._report_lost()
                core.input_gone(*outcome)
            elif isinstance(outcome, Declined):
                core.declined(outcome.run)
            elif isinstance(outcome, Rescheduled):
                core.rescheduled(*outcome)
            elif isinstance(outcome, Begun):
                core.started((outcome.run,), trio.current_time())
                if outcome.go is not None:
                    waiting.append(outcome.go)
            elif isinstance(outcome, Seceded):
                core.seceded(outcome.run)
            elif isinstance(outcome, Rejoined):
                core.rejoined(outcome.run)
        if self._executor.spent:
            self.spent.set()
        self._act()
        if core.draining:
            self._check_slots_free()
        for go in waiting:  # their announcements have to leave this process first
            if self._connection is not None and self._connection.backlog_bytes:
                self._tasks.start_soon(_start_run_after, self._connection, go)
            else:
                go.put(None)

    def _keep(self, put: Put, frames: Frames) -> bool:
        if self._connection is None:
            return False
        self._store.put_frames(put.key, frames, sum(put.sizes))
        self._core.stored(put.key, sum(put.sizes), put.type_name, put.client, trio.current_time())
        self._act()
        return True

    def _take_value(self, fetch: FetchId, key: Key, frames: Frames | None) -> None:
        if frames is None:
            self._core.absent(fetch, key)
            self._act()
        elif self._core.fetches.expects(fetch, key):
            nbytes = sum(map(len, frames))
            self._store.put_frames(key, frames, nbytes)
            self._core.fetched(fetch, key, nbytes)

    def _start_ready(self) -> None:
        """Have runs begun that a fetch has made ready. What is to be told of its values can wait for its end."""
        if self._core.ready.offered:
            self._act()

    async def _fetch(self, start: StartFetch, scope: trio.CancelScope) -> None:
        unreachable = is_silent = False
        with scope:
            try:
                take = partial(self._take_value, start.fetch)
                await self._peers.fetch(start.address, start.keys, take, self._start_ready)
            except (OSError, TrioDaskError) as error:
                log.warning("Could not fetch %s from %s: %s", counted(len(start.keys), "key"), start.address, error)
                unreachable, is_silent = True, isinstance(error, PeerSilent)
        if self._fetches.pop(start.fetch, None) is not None:  # else the core has cancelled and forgotten it
            self._core.fetch_ended(start.fetch, unreachable=unreachable, is_silent=is_silent)
            self._act()

    async def _fetch_and_drop(self, address: str, key: Key) -> None:
        got: list[bool] = []
        await self._peers.fetch(address, (key,), lambda _, frames: got.append(frames is not None))
        if got != [True]:
            raise LookupError(f"{address} does not have {key!r}")

    async def _open_channel(self, address: str) -> DataChannel:
        hello = Hello(role="data", name=str(self.handle.name), incarnation=Incarnation(self.handle.incarnation))
        endpoint = Endpoint(parse_address(address), credentials=self._credentials)
        return await connect_data(endpoint, hello, nursery=self._tasks, timeout_s=self._settings.connect_timeout_s)

    # ------------------------------------------------------------------------------------------ effects

    def _act(self) -> None:
        effects = self._core.take_effects()
        if effects.messages and self._connection is not None:
            self._connection.send_many_nowait(effects.messages)
            self._connection.flush_nowait()
        for request in effects.requests:
            self._carry_out(request)
        if effects.offered:
            self._executor.wake(effects.offered)
            if self._memory is not None:
                self._memory.wake()
            self._call_at(trio.current_time() + LONG_RUN_S)
        self._call_at(self._core.slots.next_deadline())

    def _carry_out(self, request: Request) -> None:
        match request:
            case CancelRun(run):
                self._executor.cancel(run)
            case StartFetch():
                scope = self._fetches[request.fetch] = trio.CancelScope()
                self._tasks.start_soon(self._fetch, request, scope)
            case CancelFetch(fetch):
                if fetch in self._fetches:
                    self._fetches.pop(fetch).cancel()
            case FreeKeys(keys):
                self._store.drop(keys)
                if self._transitions.are_heard:
                    self._transitions.freed(keys)
                self._actors.drop(keys)
            case ForgetFunctions(digests):
                self._executor.forget(digests)
            case SetUpPlugin() | TearDownPlugin():
                self.plugins.ask(request)
            case HandOverActor() | TakeActor() | SettleActor():
                self._moves.carry_out(request, self._tasks)
            case EndSession():
                self._end = request

    # ------------------------------------------------------------------------------------------ time

    def _call_at(self, deadline: float) -> None:
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    async def _tick(self) -> None:
        """One timer for all deadlines: it sleeps until the first, and `_call_at` moves it forward."""
        while True:
            now = trio.current_time()
            self._core.tick(now)
            if self._executor.busy:
                self._core.started(self._executor.running_for(LONG_RUN_S), now)
            if self._heartbeat_at <= now:
                self._heartbeat_at = now + self._settings.heartbeat_interval_s
                self._peers.close_idle(now)
                if self._connection is not None:
                    self._connection.send_nowait(Heartbeat(self.figures()), flush=True)
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = self._heartbeat_at
                if self._executor.busy:
                    self._call_at(now + LONG_RUN_S)
                self._call_at(self._core.slots.next_deadline())
                self._act()
                await trio.sleep_forever()

    def figures(self) -> dict[str, float]:
        """Figures for people: what the worker holds and does, and what its process uses."""
        core = self._core
        before, self._cpu_read = self._cpu_read, (time.monotonic(), time.process_time())
        passed_s, used_s = (now - then for now, then in zip(self._cpu_read, before, strict=True))
        return {
            "cpu_percent": round(100 * used_s / max(passed_s, 1e-3), 1),
            "memory_bytes": self._process.used_bytes(),
            "managed_bytes": core.held.nbytes,
            "keys": len(core.held),
            "executing": core.table.executing,
            "ready": len(core.ready),
            "waiting": len(core.table.waiting),
            "fetching": len(core.fetches.active),
            **({} if self._peers.bytes_per_s is None else {"bandwidth_bytes_per_s": round(self._peers.bytes_per_s)}),
            **(self._memory.metrics() if self._memory is not None else {}),
        }


async def _start_run_after(connection: Connection, go: SimpleQueue[None]) -> None:
    try:
        await connection.wait_backlog()
    finally:
        go.put(None)
