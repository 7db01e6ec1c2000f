"""The worker as a service: it finds its scheduler, registers, and does so again whenever the scheduler was lost.

    DEATH        deadline: infinite while registered, `death_timeout_s` from now while not, at the start and later alike
    └ SLOTS      slots, store, data plane: they outlive a lost scheduler
      └ session loop    dial ─► session ─► lost ─► back off ─► dial, as a new incarnation

A new incarnation starts with nothing: what the old one held or ran was given away when the scheduler lost it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
from contextlib import aclosing, nullcontext
from typing import NamedTuple

import trio

from trio_dask.comm import Address, Connection, ConnectionLost, LinkSettings, open_connection, parse_address
from trio_dask.config import WorkerSettings
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, UsageError
from trio_dask.files import present, read_scheduler_file
from trio_dask.identity import Incarnation, new_incarnation
from trio_dask.protocol.hello import Hello
from trio_dask.worker.core.requests import EndSession
from trio_dask.worker.engine import Engine
from trio_dask.worker.listening import Listening
from trio_dask.worker.tuning import tuned_interpreter

__all__ = ["run_worker"]

log = logging.getLogger("trio_dask.worker")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 3.0
COMPLAINT_INTERVAL_S = 10.0


async def run_worker(
    settings: WorkerSettings, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a worker until it is cancelled, or its scheduler sends it away.

    `task_status.started` gives the address at which peers reach it, once it is registered for the first time.
    Cancelled, it says goodbye within `settings.grace_s`; tasks that run in threads cannot be stopped, but nothing waits
    for them: their threads are daemons.

    Raises:
      NoScheduler: there was none for `settings.death_timeout_s`.
      RefusedError: the scheduler does not take this worker.
      UsageError: a name, an address or a file in the settings is of no use.
      OSError: it cannot listen where it shall.
    """
    embedded = settings.scheduler is not None and settings.scheduler.startswith("inproc:")
    with present(settings.pid_file, f"{os.getpid()}\n"), nullcontext() if embedded else tuned_interpreter():
        await _Worker(settings).run(task_status)


class _Place(NamedTuple):
    """Who is registered where."""

    address: Address
    scheduler: Address
    incarnation: Incarnation


class _Lost(NamedTuple):
    """How a session ended that nobody wanted to end."""

    reason: str


class _Worker:
    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._engine = Engine(settings)
        self._death = trio.CancelScope()
        self._lost_at = trio.current_time()
        self._was_registered = False
        self._complained_at = -math.inf
        self._reason = "none was found"

    async def run(self, task_status: trio.TaskStatus[Address]) -> None:
        failure: Exception | None = None
        with self._death:
            self._start_dying()
            async with trio.open_nursery() as slots:
                await slots.start(self._engine.run)
                try:
                    await self._run_sessions(Listening(self._settings, self._engine.server.handle, slots), task_status)
                except (OSError, UsageError) as error:
                    failure = error  # raised outside of the nursery, which would wrap it
                slots.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._death.cancelled_caught:
            raise NoScheduler(f"no scheduler for {self._settings.death_timeout_s:g} s: {self._reason}")

    def _start_dying(self) -> None:
        self._lost_at = trio.current_time()
        self._death.deadline = self._lost_at + self._settings.death_timeout_s

    # ------------------------------------------------------------------------------------------ session loop

    async def _run_sessions(self, listening: Listening, task_status: trio.TaskStatus[Address]) -> None:
        """One session after the other, until the scheduler sends this worker away."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                connection, place = await self._dial(listening)
            except NoScheduler as error:
                self._reason = str(error)
            except RefusedError as error:
                if not self._may_pass():
                    raise
                self._reason = str(error)
            else:
                end = await self._session(connection, place, task_status)
                if isinstance(end, EndSession):
                    log.info("The scheduler ends the session: %s", end.reason)
                    if not end.restart:
                        return
                    continue
                log.warning("Scheduler lost: %s", end.reason)
                self._reason = end.reason
                backoff_s = FIRST_BACKOFF_S
            await self._back_off(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _may_pass(self) -> bool:
        """Whether a refusal may be due to our own last session, which the scheduler believes to be alive."""
        return self._was_registered and trio.current_time() < self._lost_at + 2 * self._settings.silence_s

    async def _back_off(self, limit_s: float) -> None:
        # At random, lest a thousand workers call a new scheduler all at once.
        delay_s = random.uniform(limit_s / 2, limit_s)
        now = trio.current_time()
        if now >= self._complained_at + COMPLAINT_INTERVAL_S:
            self._complained_at = now
            left_s = self._death.deadline - now
            until = "" if left_s == math.inf else f", leaving in {left_s:.0f} s"
            log.warning("Not connected: %s; next try in %.1f s%s", self._reason, delay_s, until)
        await trio.sleep(delay_s)

    # ------------------------------------------------------------------------------------------ one session

    async def _dial(self, listening: Listening) -> tuple[Connection, _Place]:
        """Find the scheduler and register with it."""
        settings = self._settings
        scheduler = parse_address(self._scheduler_address())
        address = await listening.towards(scheduler)
        place = _Place(address, scheduler, new_incarnation())
        hello = Hello(
            role="worker",
            incarnation=place.incarnation,
            name=settings.name or "",
            details={
                "address": str(address),
                "host": socket.gethostname(),
                "nthreads": settings.nthreads,
                "memory_limit": settings.memory_limit_bytes,
                "resources": dict(settings.resources),
                "pid": os.getpid(),
            },
        )
        link = LinkSettings(keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s)
        connection = await open_connection(scheduler, hello, timeout_s=settings.connect_timeout_s, settings=link)
        return connection, place

    def _scheduler_address(self) -> str:
        path = self._settings.scheduler_file
        if path is None:
            if self._settings.scheduler is None:
                raise UsageError("a worker needs the address of a scheduler, or a scheduler file")
            return self._settings.scheduler
        address = read_scheduler_file(path)
        if address is None:
            raise NoScheduler(f"the scheduler file {path} is not there")
        return address

    async def _session(
        self, connection: Connection, place: _Place, task_status: trio.TaskStatus[Address]
    ) -> EndSession | _Lost:
        """From registration to the end, whoever brings it about."""
        async with connection:
            self._engine.session_began(connection, place.address, place.scheduler, place.incarnation)
            self._death.deadline = math.inf
            self._complained_at = -math.inf
            log.info("Registered to: %s", place.scheduler)
            if not self._was_registered:
                self._was_registered = True
                task_status.started(place.address)
            try:
                return await self._converse(connection)
            except ConnectionLost as error:
                return _Lost(str(error))
            except ProtocolError as error:
                await connection.aclose(f"protocol error: {error}")
                return _Lost(str(error))
            except trio.Cancelled:
                with trio.move_on_after(self._settings.grace_s, shield=True):
                    await connection.aclose("the worker was stopped")
                raise
            finally:
                self._start_dying()
                self._engine.session_ended()
                with trio.move_on_after(self._settings.grace_s, shield=True):
                    await self._engine.close_client()

    async def _converse(self, connection: Connection) -> EndSession:
        async with aclosing(connection.batches()) as batches:
            async for batch in batches:
                end = self._engine.receive(batch)
                if end is not None:
                    await connection.aclose(end.reason)
                    return end
        return EndSession(connection.goodbye.reason if connection.goodbye is not None else "", restart=False)
