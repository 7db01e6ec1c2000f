"""The worker as a service: it connects to its scheduler, registers, and does so again after each loss.

    DEATH        deadline: infinite while registered; `death_timeout_s` after the start or the loss of the scheduler
    └ LEAVING    deadline: infinite until it drains, then the end of its time for that
      └ SLOTS        slots, store, data channels: they outlive a lost scheduler
        └ session loop    connect ─► session ─► lost ─► back off ─► connect, as a new incarnation

A new incarnation names the previous one. If the scheduler is the same and has kept the session, the worker goes on with
all that it holds and runs; otherwise it drops everything and starts afresh.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import trio

from trio_dask.comm import (
    SOON_S,
    Address,
    Connection,
    ConnectionLost,
    LinkLimits,
    connect_limit_s,
    scheduler_endpoint,
    scheduler_in_words,
)
from trio_dask.comm.connect import connect
from trio_dask.comm.rpc_server import serve_control
from trio_dask.config import LEAVING, WorkerSettings
from trio_dask.errors import NoScheduler, ProtocolError, ProvenRefusal, RefusedError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.owned_files import keep_file
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.retry_policy import WORKERS, RetryPolicy
from trio_dask.security.credentials import Credentials
from trio_dask.worker.core.effects import EndSession, Then
from trio_dask.worker.core_driver import CoreDriver, Registration
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.listener import Listener
from trio_dask.worker.rpc_handlers import worker_commands
from trio_dask.worker.task_context import WorkerHandle

log = logging.getLogger("trio_dask.worker")

COMPLAINT_INTERVAL_S = 10.0
CLEANUP_S = 0.5

SCHEDULER_SILENCE_S = 20.0
"""After this silence of the scheduler the worker connects again. That costs little, as the scheduler takes it back if
possible. A silently cut connection would hold the worker until TCP notices, long after the network is back."""

SHORTEST_SILENCE_S = 4.5
"""For workers with a short death timeout; a scheduler sends something every two seconds."""


def _ignore(*_: object) -> None:
    """For a caller of `run_worker` that does not want to know."""


async def run_worker(
    settings: WorkerSettings,
    *,
    credentials: Credentials | None = None,
    drain: DrainRequest | None = None,
    leaving: Callable[[str], None] | None = None,
    at_rest: Callable[[], None] | None = None,
    ends_in: Callable[[float, str], None] | None = None,
    around: Callable[[WorkerHandle], AbstractAsyncContextManager[None]] | None = None,
    owns_process: bool = False,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a worker until it is cancelled, has drained, or its scheduler dismisses it.

    `task_status.started` gives the address at which peers reach it, once it is registered for the first time.
    Cancelled, it says goodbye within `settings.grace_s`; tasks in threads cannot be stopped, but nothing waits for
    them: their threads are daemons.

    Asked to `drain`, it takes nothing new, finishes running tasks, waits until the results that it alone holds are
    copied, and leaves, within `settings.drain_timeout_s`; at once if it has no scheduler. It drains by itself after
    `settings.lifetime_s`, and when `settings.max_tasks` tasks have begun. Before it leaves in such a way, or is
    dismissed, `leaving` is called with the reason: `lifetime`, `max-tasks`, `scheduler`, `restart` (done by its nanny,
    if it has one), or that of the request. `at_rest` is called when it drains and its slots are free: only its results
    remain to be copied.

    The `credentials` of the cluster are looked for where the settings say, unless they are given.

    `ends_in` is called with the seconds in which this worker will have ended if nothing changes, and with the reason if
    that will be a failure. The caller can end the process then, should a task block the event loop.

    `around` makes a block from what tasks see of this worker; it is entered before anything else, and left when the
    worker has ended.

    With `owns_process` this process does nothing else: a restart ends the worker, as only a new process is one. Another
    one begins afresh, in the process that it shares.

    Raises:
      NoScheduler: there was none for `settings.death_timeout_s`, or it was lost and `settings.reconnect` is off.
      RefusedError: the scheduler does not take this worker.
      UsageError: a name, an address or a file in the settings cannot be used.
      OSError: it cannot listen at its address.
    """
    with keep_file(settings.pid_file, f"{os.getpid()}\n"):
        worker = _Worker(settings, credentials, drain or DrainRequest(), leaving, at_rest, ends_in, owns_process)
        async with nullcontext() if around is None else around(worker.handle):
            await worker.run(task_status)


class _Past(NamedTuple):
    """The previous session, if there was one: this worker's incarnation and the scheduler's."""

    incarnation: str = ""
    scheduler: str = ""


async def _after(wait: Callable[[], Awaitable[object]], act: Callable[[], object]) -> None:
    await wait()
    act()


class _Worker:
    def __init__(
        self,
        settings: WorkerSettings,
        given: Credentials | None,
        drain: DrainRequest,
        leaving: Callable[[str], None] | None,
        at_rest: Callable[[], None] | None,
        ends_in: Callable[[float, str], None] | None,
        owns_process: bool,
    ) -> None:
        self._settings = settings
        self._ends_at_restart = owns_process or bool(settings.process)
        self._given = given
        self._drain = drain
        self._tell_leaving: Callable[[str], None] = leaving or _ignore
        self._tell_rest: Callable[[], None] = at_rest or _ignore
        self._tell_end: Callable[[float, str], None] = ends_in or _ignore
        self._driver = CoreDriver(settings)
        self._death = trio.CancelScope()
        self._leaving = trio.CancelScope()
        self._draining = ""
        self._past = _Past()
        self._session_now: Connection | None = None
        """The connection of the session, until that ends or is to begin afresh."""
        self._retries = RetryPolicy(
            WORKERS,
            random.uniform,
            trio.current_time(),
            give_up_s=settings.death_timeout_s,
            # The scheduler may believe our last session to be alive, and refuse this one.
            refusal_may_pass_s=2 * settings.silence_s,
        )
        self._complained_at = -math.inf
        self._reason = ""
        self._said_refusal: str = ""
        """The last refusal that was logged and may be a stranger's: the same one is said once, until a session."""

    @property
    def handle(self) -> WorkerHandle:
        """What tasks see of this worker."""
        return self._driver.handle

    async def run(self, task_status: trio.TaskStatus[Address]) -> None:
        """Run it to its end, see `run_worker`."""
        failure: Exception | None = None
        try:
            with self._death, self._leaving:
                self._retries.lost_contact(trio.current_time())
                self._set_death()
                async with trio.open_nursery() as slots:
                    await slots.start(self._driver.run)
                    slots.start_soon(self._watch_drain_requests)
                    lifetime = partial(trio.sleep, self._settings.lifetime_s)
                    slots.start_soon(_after, lifetime, partial(self._drain_by_itself, "lifetime"))
                    slots.start_soon(_after, self._driver.spent.wait, partial(self._drain_by_itself, "max-tasks"))
                    slots.start_soon(_after, self._driver.at_rest.wait, self._tell_rest)
                    if not self._settings.process:  # else the launcher has said it already
                        slots.start_soon(_after, partial(trio.sleep, SOON_S), self._say_what_is_awaited)
                    listener = Listener(self._settings, self._driver.server.handle, self._serve_control, slots)
                    try:
                        await self._run_sessions(listener, slots, task_status)
                    except (OSError, UsageError) as error:
                        failure = error  # raised outside of the nursery, which would wrap it
                    slots.cancel_scope.cancel()
        finally:
            with trio.move_on_after(min(CLEANUP_S, self._settings.grace_s), shield=True):
                await self._driver.close_client()
        if failure is not None:
            raise failure
        if self._death.cancelled_caught:
            raise NoScheduler(f"no scheduler for {self._settings.death_timeout_s:g} s: {self._reason}")

    def _set_death(self) -> None:
        if self._draining:
            return  # draining has its own limit
        self._death.deadline = self._retries.deadline
        left_s = max(0.0, self._retries.deadline - trio.current_time())
        self._tell_end(left_s, f"no scheduler for {self._settings.death_timeout_s:g} s")

    # ------------------------------------------------------------------------------------------ leaving

    async def _watch_drain_requests(self) -> None:
        while True:
            await self._drain.wait()
            self._begin_draining(self._drain.reason, self._drain.limit_s)

    def _drain_by_itself(self, reason: str) -> None:
        if not self._draining:
            self._begin_draining(reason)

    def _begin_draining(self, reason: str, limit_s: float = math.inf) -> None:
        """Take nothing new, and leave within the limit; at once without a scheduler."""
        # A short loss of the connection is no reason to lose the results held here.
        may_return = self._settings.reconnect and self._retries.was_connected and self._driver.has_anything
        has_time = self._drain.is_possible or may_return
        limit_s = min(limit_s, self._settings.drain_timeout_s) if has_time else 0.0
        self._leaving.deadline = min(self._leaving.deadline, trio.current_time() + limit_s)
        if not self._draining:
            self._draining = reason
            self._death.deadline = math.inf
            if reason != "signal":  # the program has logged that
                log.info("Leaving: %s", LEAVING.get(reason, reason))
            self._tell_leaving(reason)
            self._driver.drain(reason)
        self._tell_end(self._leaving.deadline - trio.current_time() + CLEANUP_S, "")

    # ------------------------------------------------------------------------------------------ control

    async def _serve_control(self, connection: Connection) -> None:
        afresh = None if self._ends_at_restart else self._begin_afresh
        commands = worker_commands(self._settings, self._driver.handle, self._drain, afresh)
        await serve_control(connection, commands)

    async def _begin_afresh(self) -> None:
        """End the session; the next one starts without results and tasks."""
        if self._session_now is not None:
            connection, self._session_now = self._session_now, None
            await connection.aclose("restart requested")

    # ------------------------------------------------------------------------------------------ session loop

    async def _run_sessions(
        self, listener: Listener, nursery: trio.Nursery, task_status: trio.TaskStatus[Address]
    ) -> None:
        """One session after the other, until the scheduler sends this worker away."""
        while True:
            try:
                connection, registration = await self._dial(listener, nursery)
            except (OSError, UsageError) as error:
                is_refused_while_draining = self._draining and isinstance(error, RefusedError)
                if self._retries.is_final(error, trio.current_time()) and not is_refused_while_draining:
                    raise
                self._reason = str(error)
                is_unproven = isinstance(error, RefusedError) and not isinstance(error, ProvenRefusal)
            else:
                is_unproven, self._said_refusal = False, ""
                end = await self._session(connection, registration, listener, task_status)
                if isinstance(end, EndSession):
                    if self._leaves_after(end):
                        return
                    self._past = _Past()
                    self._driver.reset()
                    self._reason = end.reason
                    self._retries.begin_anew()
                    continue
                if self._retries.session_lost(trio.current_time()):
                    self._complained_at = -math.inf
                if self._may_complain():
                    log.warning("Lost the scheduler: %s", end)
                self._reason = end
                if not (self._settings.reconnect or self._draining):
                    raise NoScheduler(f"lost the scheduler, and --no-reconnect was given: {end}")
            if self._draining and not (self._settings.reconnect and self._driver.has_anything):
                return
            await self._back_off(is_unproven=is_unproven)

    def _leaves_after(self, end: EndSession) -> bool:
        """Whether this worker leaves, now that the scheduler has ended the session; else it is to begin afresh."""
        settings = self._settings
        waits = end.then is Then.SUCCESSOR and settings.on_scheduler_stop == "wait" and not self._draining
        if waits:
            self._complained_at = trio.current_time()  # the line below replaces complaints for a while
            limit_s = settings.death_timeout_s
            limit = "" if limit_s == math.inf else f"up to {limit_s:g} s "
            log.info("The scheduler stopped; dropping all results and waiting %sfor the next one", limit)
            return False
        if self._draining:
            return True
        restarts = end.then is Then.RESTART
        if restarts and self._ends_at_restart and not settings.process:
            log.info("Leaving: %s, and no nanny starts this worker again", end.reason)
        else:
            log.info("Starting again: %s" if restarts else "Leaving: %s", end.reason)
        if restarts and not self._ends_at_restart:
            return False
        self._tell_leaving("restart" if restarts else "scheduler")
        return True

    def _may_complain(self) -> bool:
        return trio.current_time() >= self._complained_at + COMPLAINT_INTERVAL_S

    def _say_what_is_awaited(self) -> None:
        """One try may take long, and all that follow it are announced."""
        if not self._retries.was_connected and self._complained_at == -math.inf:
            log.info("Waiting for %s: no answer so far", scheduler_in_words(self._settings))

    async def _back_off(self, *, is_unproven: bool) -> None:
        delay_s = self._retries.next_pause_s()
        is_said = is_unproven and self._reason == self._said_refusal
        if self._may_complain() and not is_said:
            self._said_refusal = self._reason if is_unproven else self._said_refusal
            self._complained_at = now = trio.current_time()
            left_s = min(self._death.deadline, self._leaving.deadline) - now
            until = "" if left_s == math.inf else f", leaving in {left_s:.0f} s"
            log.warning("Not connected: %s; next try in %.1f s%s", self._reason, delay_s, until)
        await trio.sleep(delay_s)

    # ------------------------------------------------------------------------------------------ one session

    async def _dial(self, listener: Listener, nursery: trio.Nursery) -> tuple[Connection, Registration]:
        """Find the scheduler and register with it."""
        settings = self._settings
        limits = LinkLimits(
            keepalive_s=settings.keepalive_s,
            silence_s=min(
                settings.silence_s, SCHEDULER_SILENCE_S, max(SHORTEST_SILENCE_S, settings.death_timeout_s / 2)
            ),
            cleanup_s=settings.grace_s,
        )
        endpoint = scheduler_endpoint(settings, "worker", limits, self._given)
        scheduler, credentials = endpoint.address, endpoint.credentials
        address = await listener.towards(scheduler, credentials)
        registration = Registration(address, scheduler, credentials, new_incarnation())
        hello = Hello(
            role="worker",
            incarnation=registration.incarnation,
            name=settings.name or "",
            details={
                "address": str(address),
                "host": socket.gethostname(),
                "nthreads": settings.nthreads,
                "memory_limit": settings.memory_limit_bytes,
                "resources": dict(settings.resources),
                "pid": os.getpid(),
                "previous": self._past.incarnation,
                "scheduler": self._past.scheduler,
                "reconnect": settings.reconnect,
                "process": settings.process,
                "nanny": settings.nanny_address,
                "plugins": self._driver.plugins.ids,
                "metrics": self._driver.figures(),
            },
        )
        if not self._reason:
            self._reason = f"no answer from {scheduler} so far"
        timeout_s = connect_limit_s(settings.connect_timeout_s, self._death.deadline - trio.current_time())
        connection = await connect(endpoint, hello, nursery=nursery, timeout_s=timeout_s)
        return connection, registration

    async def _session(
        self,
        connection: Connection,
        registration: Registration,
        listener: Listener,
        task_status: trio.TaskStatus[Address],
    ) -> EndSession | str:
        """From registration to the end of the session: how the scheduler ended it, or why it was lost."""
        welcome = connection.hello
        assert isinstance(welcome, Welcome)
        returned = welcome.details.get("returned") is True
        async with connection:
            self._session_now = connection
            if not returned:
                self._driver.reset()
            self._drain.is_possible = True
            self._past = _Past(registration.incarnation, welcome.incarnation)
            self._driver.session_began(connection, registration, returned=returned)
            is_first = not self._retries.was_connected
            self._retries.connected(trio.current_time())
            self._set_death()
            log.info("Registered to: %s", registration.scheduler)
            if is_first:
                task_status.started(registration.address)
            try:
                return await self._converse(connection, listener)
            except ConnectionLost as error:
                return str(error)
            except ProtocolError as error:
                await connection.aclose(f"protocol error: {error}")
                return str(error)
            except trio.Cancelled:
                with trio.move_on_after(self._settings.grace_s, shield=True):
                    await connection.aclose(self._draining or "the worker was stopped")
                raise
            finally:
                self._session_now = None
                self._drain.is_possible = False
                self._driver.session_lost()
                now = trio.current_time()
                silent_s = now - connection.link.heard_at
                # A connection that broke was a contact until then; one that fell silent only until the silence began.
                self._retries.lost_contact(now, silent_s if silent_s >= connection.link.silence_s else 0.0)
                self._set_death()

    async def _converse(self, connection: Connection, listener: Listener) -> EndSession:
        async for batch in connection.batches():
            end = self._driver.receive(batch)
            if end is not None:
                if end.then is Then.LEAVE and self._driver.handle.actors.have_moved:
                    listener.close()
                    await self._driver.handle.actors.wait_for_callers()
                await connection.aclose(end.reason)
                return end
        reason = connection.goodbye.reason if connection.goodbye is not None else ""
        if self._session_now is None:
            return EndSession(reason or "restart requested", Then.RESTART)
        return EndSession(reason, Then.LEAVE)
