"""A nanny's own connection with the scheduler, over which it reports that its worker is alive, or dead.

After a lost connection it connects again, and sends the reports that gathered meanwhile.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import trio

from trio_dask.comm import (
    Connection,
    ConnectionLost,
    LinkLimits,
    connect_limit_s,
    scheduler_endpoint,
)
from trio_dask.comm.connect import connect
from trio_dask.config import WorkerSettings
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, UnavailableError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.messages import NannyAnswer, PluginDone, ToNanny, WorkerAlive, WorkerExited
from trio_dask.retry_policy import WORKERS, RetryPolicy
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import Credentials, find_tls

log = logging.getLogger("trio_dask.nanny")

ALIVE_S = 2.0
MAX_UNSENT = 100
SILENCE_S = 20.0
"""After this long without a sign of the scheduler the nanny connects again: a network can fail silently."""


class SchedulerConnection:
    """Calls `details` for the hello, `alive` for the tokens of processes that live, `handle` with each message."""

    def __init__(
        self,
        settings: WorkerSettings,
        given: Credentials | None = None,
        *,
        details: Callable[[], Mapping[str, Any]],
        alive: Callable[[], Sequence[str]],
        handle: Callable[[ToNanny], object],
    ) -> None:
        self._settings = settings
        self._given = given
        # Until the cluster's key is known, as a scheduler file may still be missing, nobody has the right one.
        key = ClusterKey.draw() if settings.auth else None
        self.credentials = given or Credentials(key, find_tls(settings, "worker"))
        """Those of the cluster, as far as they are known."""
        self._details = details
        self._alive = alive
        self._handle = handle
        self._connection: Connection | None = None
        self._session_nursery: trio.Nursery | None = None
        self._unsent: deque[WorkerExited] = deque(maxlen=MAX_UNSENT)
        self._unsent_answers: list[PluginDone] = []
        self._changed = trio.Event()
        self.first_contact = trio.Event()
        """Set once all plugins with which the nanny begins have come, or there are none, or there is no scheduler."""
        self._retries = RetryPolicy(WORKERS, random.uniform, trio.current_time(), give_up_s=settings.death_timeout_s)
        self._why_away = "no answer so far"
        self._is_hopeless = False

    @property
    def away_since(self) -> float:
        """When the nanny's last contact with a scheduler ended; infinite while it is connected."""
        return self._retries.away_since

    @property
    def why_away(self) -> str:
        """Why the last attempt to connect failed, or how the last session ended."""
        return self._why_away

    def report_death(self, message: WorkerExited) -> None:
        """Report a death to the scheduler, now or as soon as the nanny is connected."""
        if self._connection is None:
            self._unsent.append(message)
        else:
            self._connection.send_nowait(message, flush=True)

    def tell(self, message: PluginDone) -> None:
        """Answer for a plugin, now or once the nanny is connected: the next hello may have been made before."""
        if self._connection is None:
            self._unsent_answers.append(message)
        else:
            self._connection.send_nowait(message, flush=True)

    def answer_later(self, compute: Callable[[], Awaitable[NannyAnswer]]) -> None:
        """Send an answer once it is computed, which the end of this session cancels."""
        if self._session_nursery is not None:
            self._session_nursery.start_soon(self._answer, compute)

    async def _answer(self, compute: Callable[[], Awaitable[NannyAnswer]]) -> None:
        answer = await compute()
        if self._connection is not None:
            self._connection.send_nowait(answer, flush=True)

    def worker_changed(self) -> None:
        """The nanny has another worker: say at once that it is alive."""
        self._changed.set()

    @property
    def is_hopeless(self) -> bool:
        """Whether the last try failed in such a way that the worker ends, which then says why."""
        return self._is_hopeless

    async def run(self) -> None:
        """Keep the connection until cancelled, then say goodbye."""
        async with trio.open_nursery() as nursery:
            await self._keep_connected(nursery)

    async def _keep_connected(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                connection = await self._connect(nursery)
            except (NoScheduler, UnavailableError, UsageError) as error:
                self._failed(error)
            except RefusedError as error:
                self._retries.lost_contact(trio.current_time())
                self._failed(error)
                log.debug("The scheduler refused this nanny: %s", error)
            else:
                welcome = connection.hello
                if not (isinstance(welcome, Welcome) and welcome.details.get("plugins")):
                    self.first_contact.set()
                await self._session(connection)
                self._retries.session_lost(trio.current_time())
            self.first_contact.set()
            await trio.sleep(self._retries.next_pause_s())

    def _failed(self, error: Exception) -> None:
        self._why_away, self._is_hopeless = str(error), self._retries.is_final(error, trio.current_time())

    async def _connect(self, nursery: trio.Nursery) -> Connection:
        settings = self._settings
        hello = Hello(
            role="nanny", incarnation=new_incarnation(), name=settings.name or "", details=dict(self._details())
        )
        limits = LinkLimits(
            keepalive_s=settings.keepalive_s, silence_s=min(settings.silence_s, SILENCE_S), cleanup_s=settings.grace_s
        )
        endpoint = scheduler_endpoint(settings, "worker", limits, self._given)
        self.credentials = endpoint.credentials
        left_s = self._retries.deadline - trio.current_time()
        timeout_s = connect_limit_s(settings.connect_timeout_s, left_s)
        return await connect(endpoint, hello, nursery=nursery, timeout_s=timeout_s)

    async def _session(self, connection: Connection) -> None:
        async with connection:
            self._connection = connection
            self._retries.connected(trio.current_time())
            connection.send_many_nowait(self._unsent)
            connection.send_many_nowait(self._unsent_answers)
            self._unsent.clear()
            self._unsent_answers.clear()
            connection.flush_nowait()
            over = False
            try:
                async with trio.open_nursery() as nursery:
                    self._session_nursery = nursery
                    nursery.start_soon(self._report_alive, connection)
                    self._why_away = await self._listen(connection)
                    over = True
                    nursery.cancel_scope.cancel()
            finally:
                self._connection = self._session_nursery = None
                self._retries.lost_contact(trio.current_time())
                if not over:
                    with trio.move_on_after(self._settings.grace_s, shield=True):
                        await connection.aclose("the nanny was stopped")

    async def _listen(self, connection: Connection) -> str:
        """Handle messages until the session ends; returns the reason for its end."""
        try:
            async for batch in connection.batches():
                for message in cast("list[ToNanny]", batch):  # the connection lets nothing else pass
                    self._handle(message)
        except ConnectionLost as error:
            return str(error)
        except ProtocolError as error:
            await connection.aclose(f"protocol error: {error}")
            return str(error)
        return connection.goodbye.reason if connection.goodbye is not None else ""

    async def _report_alive(self, connection: Connection) -> None:
        while True:
            self._changed = trio.Event()
            for process in self._alive():
                connection.send_nowait(WorkerAlive(process), flush=True)
            with trio.move_on_after(ALIVE_S):
                await self._changed.wait()
