"""The core with hands: events come in, effects go out, and both meet here.

Every event ends in `_act`: the messages leave in one write, then what the core asks for is begun, then the slots are
woken. The engine lives as long as the worker, through all its sessions.
"""

from __future__ import annotations

import logging
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

import trio

from trio_dask.comm import Address, Connection, DataChannel, open_data_channel, parse_address
from trio_dask.config import WorkerSettings
from trio_dask.errors import TrioDaskError
from trio_dask.identity import Incarnation, Key
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Heartbeat, Message, Put, ToWorker
from trio_dask.worker.core.requests import (
    CancelFetch,
    CancelRun,
    EndSession,
    FetchId,
    ForgetFunctions,
    FreeKeys,
    Request,
    StartFetch,
)
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.executor import Begun, Executor, Failed, Finished, InputGone, Outcome
from trio_dask.worker.peers import Peers
from trio_dask.worker.serving import DataServer
from trio_dask.worker.store import Frames, Store
from trio_dask.worker.task_context import WorkerHandle

if TYPE_CHECKING:
    import psutil

__all__ = ["Engine"]

log = logging.getLogger("trio_dask.worker")

LONG_RUN_S = 0.5
"""A run that has taken so long is announced: should this worker die, the run may be what killed it."""


class Engine:
    """Core, slots, store and data plane of one worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._store = Store()
        self.handle = WorkerHandle(
            name=settings.name or "",
            nthreads=settings.nthreads,
            memory_limit_bytes=settings.memory_limit_bytes,
            resources=settings.resources,
            local_directory=settings.local_directory,
            data=self._store,
        )
        self._core = WorkerCore(settings.nthreads)
        self._executor = Executor(
            settings.nthreads,
            ready=self._core.ready,
            blobs=self._core.blobs.complete,
            values=self._store,
            worker=self.handle,
            inline_limit_bytes=settings.inline_limit_bytes,
        )
        self._peers = Peers(self._open_channel)
        self.server = DataServer(self._store, self._core.held, self._keep, self.handle)
        self._connection: Connection | None = None
        self._end: EndSession | None = None
        self._fetches: dict[FetchId, trio.CancelScope] = {}
        self._alarm = trio.CancelScope()
        self._tasks: trio.Nursery | None = None
        self._process: psutil.Process | None = None
        self._heartbeat_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run slots, fetches and timers until cancelled. Sessions begin after `task_status.started`."""
        try:
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._executor.run, self._take_outcomes)
                task_status.started()
                await self._tick()
        finally:
            self._peers.close()

    # ------------------------------------------------------------------------------------------ sessions

    def session_began(
        self, connection: Connection, address: Address, scheduler: Address, incarnation: Incarnation
    ) -> None:
        """This worker is registered, and peers reach it at `address`."""
        self._connection = connection
        self._end = None
        self.handle.name = self._settings.name or str(address)
        self.handle.address = str(address)
        self.handle.scheduler_address = str(scheduler)
        self.handle.incarnation = incarnation
        self._core.session_began(str(address))
        self._heartbeat_at = trio.current_time() + self._settings.heartbeat_interval_s
        self._act()

    def session_ended(self) -> None:
        """The scheduler is gone: drop what it gave us."""
        self._connection = None
        self.handle.address = self.handle.scheduler_address = self.handle.incarnation = ""
        self._core.session_ended(trio.current_time())
        self._act()

    async def close_client(self) -> None:
        """Close the client that tasks shared: its scheduler is gone. Tasks that wait for it hear so."""
        client = self.handle.take_client()
        if client is not None:
            try:
                await trio.to_thread.run_sync(client.close, abandon_on_cancel=True)
            except Exception as error:  # it is of no use any more, whatever is wrong with it
                log.debug("the client of this worker's tasks did not close well: %r", error)

    def receive(self, batch: list[Message]) -> EndSession | None:
        """Take what the scheduler sent; gives its wish to end the session, if that was in it.

        Raises:
          ProtocolError: something in it makes no sense.
        """
        now = trio.current_time()
        handle = self._core.handle
        for message in cast("list[ToWorker]", batch):  # the connection lets nothing else pass
            handle(message, now)
        self._act()
        return self._end

    # ------------------------------------------------------------------------------------------ events

    def _take_outcomes(self, outcomes: list[Outcome]) -> None:
        core = self._core
        waiting: list[SimpleQueue[None]] = []
        for outcome in outcomes:
            if isinstance(outcome, Finished):  # as nearly all are
                run, value, nbytes, type_name, inline, duration_s = outcome
                if core.is_current(run):
                    self._store.put(run.key, value)
                core.finished(run, nbytes, type_name, inline, duration_s)
            elif isinstance(outcome, Failed):
                core.failed(*outcome)
            elif isinstance(outcome, InputGone):
                core.input_gone(*outcome)
            elif isinstance(outcome, Begun):
                core.started((outcome.run,), trio.current_time())
                if outcome.go is not None:
                    waiting.append(outcome.go)
        self._act()
        for go in waiting:
            self._let_go(go)

    def _let_go(self, go: SimpleQueue[None]) -> None:
        """Have a slot begin its run, which was announced, as soon as the announcement has left this process."""
        if self._tasks is not None and self._connection is not None and self._connection.backlog_bytes:
            self._tasks.start_soon(_let_go_after, self._connection, go)
        else:
            go.put(None)

    def _keep(self, put: Put, frames: Frames) -> bool:
        if self._connection is None:
            return False
        self._store.put_frames(put.key, frames)
        self._core.stored(put.key, sum(put.sizes), put.type_name, put.client)
        self._act()
        return True

    def _take_value(self, fetch: FetchId, key: Key, frames: Frames | None) -> None:
        if frames is None:
            self._core.absent(fetch, key)
            self._act()
        elif self._core.expects(fetch, key):
            self._store.put_frames(key, frames)
            self._core.fetched(fetch, key, sum(map(len, frames)))
            if self._core.ready.offered:  # else it can wait for the next value, or the end of the fetch
                self._act()

    async def _fetch(self, start: StartFetch, scope: trio.CancelScope) -> None:
        unreachable = False
        with scope:
            try:
                await self._peers.fetch(start.address, start.keys, partial(self._take_value, start.fetch))
            except (OSError, TrioDaskError) as error:
                log.warning("Could not fetch %d keys from %s: %s", len(start.keys), start.address, error)
                unreachable = True
        if self._fetches.pop(start.fetch, None) is not None:  # else the core has cancelled and forgotten it
            self._core.fetch_ended(start.fetch, unreachable=unreachable)
            self._act()

    async def _open_channel(self, address: str) -> DataChannel:
        hello = Hello(role="data", name=self.handle.name, incarnation=Incarnation(self.handle.incarnation))
        return await open_data_channel(parse_address(address), hello, timeout_s=self._settings.connect_timeout_s)

    # ------------------------------------------------------------------------------------------ effects

    def _act(self) -> None:
        effects = self._core.drain()
        if effects.messages and self._connection is not None:
            self._connection.send_many_nowait(effects.messages)
            self._connection.flush_nowait()
        for request in effects.requests:
            self._carry_out(request)
        if effects.offered:
            self._executor.wake(effects.offered)
            self._call_at(trio.current_time() + LONG_RUN_S)
        self._call_at(self._core.next_deadline())

    def _carry_out(self, request: Request) -> None:
        match request:
            case CancelRun(run):
                self._executor.cancel(run)
            case StartFetch():
                assert self._tasks is not None, "a session began before the engine ran"
                scope = self._fetches[request.fetch] = trio.CancelScope()
                self._tasks.start_soon(self._fetch, request, scope)
            case CancelFetch(fetch):
                if fetch in self._fetches:
                    self._fetches.pop(fetch).cancel()
            case FreeKeys(keys):
                self._store.drop(keys)
            case ForgetFunctions(digests):
                self._executor.forget(digests)
            case EndSession():
                self._end = request

    # ------------------------------------------------------------------------------------------ time

    def _call_at(self, deadline: float) -> None:
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    async def _tick(self) -> None:
        """One timer for everything; it sleeps until the first thing is due, and others move it forward."""
        while True:
            now = trio.current_time()
            self._core.tick(now)
            if self._executor.busy:
                self._core.started(self._executor.running_for(LONG_RUN_S), now)
            if self._heartbeat_at <= now:
                self._heartbeat_at = now + self._settings.heartbeat_interval_s
                self._peers.close_idle(now)
                if self._connection is not None:
                    self._connection.send_nowait(self._heartbeat(), flush=True)
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = self._heartbeat_at
                if self._executor.busy:
                    self._call_at(now + LONG_RUN_S)
                self._call_at(self._core.next_deadline())
                self._act()
                await trio.sleep_forever()

    def _heartbeat(self) -> Heartbeat:
        import psutil  # slow to load, and of no use before a worker has run for a while

        core = self._core
        process = self._process = self._process or psutil.Process()
        with process.oneshot():
            return Heartbeat(
                {
                    "cpu_percent": process.cpu_percent(),
                    "memory_bytes": process.memory_info().rss,
                    "managed_bytes": core.held.nbytes,
                    "keys": len(core.held),
                    "executing": core.executing,
                    "ready": len(core.ready),
                    "waiting": len(core.waiting),
                    "fetching": len(core.fetches.active),
                }
            )


async def _let_go_after(connection: Connection, go: SimpleQueue[None]) -> None:
    try:
        await connection.wait_backlog()
    finally:
        go.put(None)
