"""The scheduler as a service: it carries events to the core, and the core's messages to their peers.

    SESSIONS                        cancelled from outside, or from inside by the core or an operator
      |- ticker                     sleeps until the core wants to be called
      |- one session per peer       reads; its connection hosts the writer; once cancelled, it says goodbye
      `- a listener per protocol

What arrives together is decided together: all messages of a batch, then placement once, then each outbox with
messages leaves as one frame. Nothing is unpickled here, and nothing that could unpickle is imported.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import trio

from trio_dask.comm.addresses import Address, addresses_of_interface, advertised_hosts, is_loopback, parse_address
from trio_dask.comm.busy_poll import BusyPoll
from trio_dask.comm.connection import Connection
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.listen import serve
from trio_dask.comm.rpc_server import serve_control
from trio_dask.comm.transport import ConnectionLost, Transport
from trio_dask.config import LEAVING, SchedulerSettings
from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId, new_incarnation
from trio_dask.owned_files import keep_file
from trio_dask.processes.profiler import Profiler
from trio_dask.processes.recent_lines import recent_lines
from trio_dask.processes.versions import versions
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import Leave, SchedulerStops
from trio_dask.scheduler.core import (
    Admit,
    CallAgain,
    ClosePeer,
    CoreSettings,
    LogLine,
    Refuse,
    Resume,
    SchedulerCore,
    ServiceQuestion,
    Stop,
)
from trio_dask.scheduler.plugins import OperatorPlugins, SchedulerHandle
from trio_dask.scheduler.rpc_handlers import scheduler_commands, scheduler_identity
from trio_dask.scheduler_file import scheduler_file_text
from trio_dask.security.cluster_key import user_name
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials, find_credentials

log = logging.getLogger("trio_dask.scheduler")
deaths = logging.getLogger("trio_dask.scheduler.deaths")


async def run_scheduler(
    settings: SchedulerSettings,
    *,
    credentials: Credentials | None = None,
    around: Callable[[SchedulerHandle], AbstractAsyncContextManager[None]] | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a scheduler until it is cancelled, or a client ends the cluster; `task_status.started` gives its address.

    Once cancelled it admits no peer, tells workers and clients that it stops, and ends within `settings.grace_s`.
    Workers then leave, or wait for its successor; when a client ends the cluster, all of them leave.
    The `credentials` of the cluster are looked for where the settings say, unless they are given.

    `around` makes a block from what the operator's modules see of this scheduler. It is entered once the address is
    known and before any peer joins, and left when the scheduler is to end.

    Raises:
      OSError: it cannot listen at its address.
      UsageError: a file cannot be written, or there is no such interface.
    """
    service = _Service(settings, credentials, around)
    with keep_file(settings.pid_file, f"{os.getpid()}\n"):
        await service.run(task_status)


class _Place(NamedTuple):
    """Where the scheduler listens with one protocol: `bound`. Its peers use `address`, or one of the others."""

    address: Address
    others: list[Address]
    bound: list[Address]


class _Service:
    def __init__(
        self,
        settings: SchedulerSettings,
        given: Credentials | None,
        around: Callable[[SchedulerHandle], AbstractAsyncContextManager[None]] | None,
    ) -> None:
        self._settings = settings
        self._around = around
        self._credentials = self._find_credentials(given)
        self._identity = Hello(role="scheduler", incarnation=new_incarnation())
        self._core = SchedulerCore(
            CoreSettings(
                allowed_failures=settings.allowed_failures,
                reconnect_grace_s=settings.reconnect_grace_s,
                worker_ttl_s=settings.worker_ttl_s,
                lone_worker_ttl_s=settings.lone_worker_ttl_s,
                idle_timeout_s=settings.idle_timeout_s,
                stuck_after_s=settings.stuck_after_s,
                memory_manager_starts=settings.memory_manager,
                memory_manager_interval_s=settings.memory_manager_interval_s,
                unix_offset_s=time.time() - trio.current_time(),
            ),
            self._identity.incarnation,
        )
        self._connections: dict[PeerId, Connection] = {}
        self._busy_poll = BusyPoll(settings.busy_poll_s)
        self._profiler = (
            Profiler(interval_s=settings.profile_interval_s, cycle_s=settings.profile_cycle_s)
            if settings.profile_enabled
            else None
        )
        self._alarm = trio.CancelScope()
        self._stopping = trio.Event()
        self._farewell: Leave | SchedulerStops | None = SchedulerStops()
        """Whether the whole cluster ends, or only this scheduler; None: a fault of ours ends it, so peers lose it."""
        self._addresses: list[str] = [""]
        """One for each protocol; most peers are told the first."""
        self._commands = scheduler_commands(
            self._core,
            self._identity,
            address=lambda: self._addresses[0],
            restart=self._restart,
            retire_idle=self._retire_idle,
            stop=self._stop,
        )
        self._plugins = OperatorPlugins(
            self._core, lambda: scheduler_identity(self._core, self._identity, self._addresses[0]), self._settle
        )
        self._events = self._plugins.ring.events
        self._set_up = trio.Event()
        """The operator's modules have been set up, so that they can be told of every peer."""

    async def run(self, task_status: trio.TaskStatus[Address]) -> None:
        """Serve until cancelled, or until a stop is asked for."""
        self._core.begin(trio.current_time())
        try:
            with self._busy_poll.running(), nullcontext() if self._profiler is None else self._profiler.running():
                async with trio.open_nursery() as sessions:
                    try:
                        await self._serve(sessions, task_status)
                    finally:
                        self._stopping.set()
                        sessions.cancel_scope.cancel()
        finally:
            if self._set_up.is_set():
                reason = f": {self._farewell.reason}" if isinstance(self._farewell, Leave) else ""
                log.info("Scheduler stopped%s", reason)

    async def _serve(self, sessions: trio.Nursery, task_status: trio.TaskStatus[Address]) -> None:
        sessions.start_soon(self._tick)
        places = [await self._listen(sessions, *place) for place in self._where_to_listen()]
        self._addresses, mine = [str(place.address) for place in places], self._identity
        text = scheduler_file_text(
            *self._addresses,
            incarnation=mine.incarnation,
            package=mine.package,
            python=mine.python,
            key=self._credentials.key,
        )
        async with self._with_plugins(sessions):
            with keep_file(self._settings.scheduler_file, text):
                self._announce(places)
                self._set_up.set()
                task_status.started(places[0].address)
                await self._stopping.wait()

    @asynccontextmanager
    async def _with_plugins(self, sessions: trio.Nursery) -> AsyncGenerator[None]:
        if self._around is None:
            yield
            return
        sessions.start_soon(self._plugins.run)
        async with self._around(self._plugins.handle(self._addresses, self._identity.incarnation)):
            try:
                yield
            finally:
                await self._plugins.close()  # noqa: ASYNC102 - it shields itself, with a limit

    def _find_credentials(self, given: Credentials | None) -> Credentials:
        address = self._settings.address
        if given is None and address is not None and parse_address(address).is_in_process:
            return NO_CREDENTIALS
        return given or find_credentials(self._settings, "scheduler")

    # ------------------------------------------------------------------------------------------------- listening

    async def _listen(self, sessions: trio.Nursery, address: Address, listening: socket.socket | None) -> _Place:
        settings = self._settings
        limits = LinkLimits(keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s)
        run = partial(
            serve,
            Endpoint(address, limits, self._credentials),
            self._session,
            identity=self._identity,
            admit=self._greet,
            listening=listening,
            handler_nursery=sessions,  # the listener closes at once, and the sessions may still say goodbye
        )
        bound: list[Address] = await sessions.start(run)
        address, *others = self._advertised(bound[0])
        return _Place(address, others, bound)

    def _where_to_listen(self) -> list[tuple[Address, socket.socket | None]]:
        settings = self._settings
        if settings.listen_fd is not None:
            return [(Address(settings.protocols[0], ""), socket.socket(fileno=settings.listen_fd))]
        if settings.address is not None:
            return [(parse_address(settings.address), None)]
        host = addresses_of_interface(settings.interface)[0] if settings.interface else settings.host
        return [(Address(protocol, host, port), None) for protocol, port in settings.listeners()]

    def _advertised(self, bound: Address) -> list[Address]:
        """Where other processes reach this one, best first; several if only the operator can know which it is."""
        if bound.is_in_process:
            return [bound]
        contact = self._settings.contact_host
        hosts = advertised_hosts(bound.host) if contact is None else [contact]
        return [Address(bound.scheme, host, bound.port) for host in hosts]

    def _announce(self, places: list[_Place]) -> None:
        for place in places:
            log.info("Scheduler at:   %s", place.address)
        address, others = places[0].address, places[0].others
        if others:
            log.warning(
                "No default route, and several addresses: workers that cannot reach %s may reach %s; "
                "choose one with --interface or --host",
                address,
                ", ".join(map(str, others)),
            )
        if self._credentials.key is None and not address.is_in_process:
            is_local = all(is_loopback(where.host) for place in places for where in place.bound)
            log.warning(
                "Not secured (--no-auth): %s can run programs as %s, by port %s",
                "everybody on this machine" if is_local else "everybody",
                user_name(),
                ", ".join(str(place.address.port) for place in places),
            )

    # -------------------------------------------------------------------------------------------------- sessions

    def _greet(self, hello: Hello, transport: Transport) -> Welcome | Refusal:
        answer = self._core.greet(hello, trio.current_time())
        self._settle()
        return answer

    async def _session(self, connection: Connection) -> None:
        """One peer, from its welcome to its end. What it does wrong ends this session and no other."""
        hello = connection.hello
        assert isinstance(hello, Hello)
        if hello.role == "control":
            await serve_control(connection, self._commands)
            return
        if not self._set_up.is_set():
            await self._set_up.wait()
        if hello.role == "worker":
            # The core watches whether workers live: a task may keep one from saying so itself for minutes.
            connection.link.silence_s = math.inf
        match self._core.begin_session(hello, trio.current_time()):
            case CallAgain(reason):
                connection.abort(reason)
            case Refuse(reason):  # another worker took the name between our welcome and now
                await connection.aclose(reason)
            case Admit(peer) | Resume(peer):
                await self._serve_peer(peer, connection)

    async def _serve_peer(self, peer: PeerId, connection: Connection) -> None:
        self._connections[peer] = connection
        error: ProtocolError | ConnectionLost | None = None
        try:
            self._settle()
            with self._busy_poll.watching(connection.fd):
                async for batch in connection.batches():
                    if self._connections.get(peer) is not connection:
                        break  # its client goes on with another one
                    now = connection.link.heard_at
                    for message in batch:
                        self._core.handle(peer, message, now)
                    self._settle(now)
        except (ProtocolError, ConnectionLost) as exc:
            error = exc
        except trio.Cancelled:
            with trio.move_on_after(self._settings.grace_s, shield=True):
                await self._dismiss(connection)
            raise
        except Exception:  # a fault of ours, raised again
            self._farewell = None
            raise
        self._end_session(peer, connection, error)
        if isinstance(error, ProtocolError):
            await connection.aclose(str(error))

    def _end_session(self, peer: PeerId, connection: Connection, error: Exception | None) -> None:
        if self._connections.get(peer) is not connection:
            return
        goodbye = connection.goodbye
        reason = goodbye.reason if goodbye is not None else str(error or "the session was ended by the scheduler")
        worker = self._core.worker_title(peer)
        reason = reason.replace(str(connection.remote), "it")  # the line names the peer
        hello = connection.hello
        assert isinstance(hello, Hello)
        if isinstance(error, ProtocolError):
            log.warning("Closed the connection to the %s at %s: %s", hello, connection.remote, reason)
        elif hello.role == "client" and goodbye is None and not self._stopping.is_set():
            log.info("Lost the client at %s: %s", connection.remote, reason)
        elif worker and goodbye is not None and not self._stopping.is_set():
            log.info("Worker %s left: %s", worker, LEAVING.get(reason, reason))
        del self._connections[peer]
        # A client that broke the protocol would break it again.
        expected = goodbye is not None or (not worker and isinstance(error, ProtocolError))
        self._core.end_session(peer, reason, trio.current_time(), expected=expected)
        self._settle()

    def _restart(self, reason: str) -> None:
        self._core.restart(reason, trio.current_time())
        self._settle()

    def _retire_idle(self, addresses: Sequence[str]) -> bool:
        leave = self._core.retire_idle(addresses, trio.current_time())
        self._settle()
        return leave

    def _stop(self, reason: str) -> None:
        """End the cluster, workers and all."""
        self._farewell = Leave(reason, restart=False)
        self._stopping.set()

    # ---------------------------------------------------------------------------------------------- carrying out

    def _settle(self, now: float | None = None) -> None:
        """Have the core decide on what has arrived, send its messages, and carry out its requests."""
        core = self._core
        core.place(trio.current_time() if now is None else now)
        connections = self._connections
        self._send_all()
        requests = core.requests
        while requests:
            match requests.pop(0):
                case ClosePeer(peer, reason):
                    connection = connections.pop(peer, None)
                    if connection is not None:
                        connection.abort(reason)
                case LogLine(text, serious):
                    if serious:
                        deaths.warning("%s", text)
                    else:
                        log.info("%s", text)
                case Stop(reason):
                    self._stop(reason)
                case ServiceQuestion() as question:
                    core.reply(question, self._answer(question.what, question.arguments))
                    self._send_all()
        if self._events:
            self._plugins.wake()
        deadline = core.next_deadline()
        if deadline < self._alarm.deadline:  # one that comes too early finds nothing to do: cheaper than to move it
            self._alarm.deadline = deadline

    def _answer(self, what: str, arguments: tuple[str, ...]) -> object:
        """The answer to a question of a client about this program."""
        if what == "versions":
            return versions(arguments)
        if what == "profile":
            return self._profile(arguments)
        number = int(arguments[0]) if arguments and arguments[0].isdecimal() else None
        return recent_lines(number)

    def _profile(self, arguments: tuple[str, ...]) -> object:
        try:
            start, stop = map(float, arguments)
        except ValueError:  # only a client of another release can ask so
            return None
        if self._profiler is None:
            return None
        calls, counts = self._profiler.loop_between(start, stop)
        return calls, list(counts.items())

    def _send_all(self) -> None:
        connections = self._connections
        for peer, messages in self._core.drain().items():
            connection = connections.get(peer)
            if connection is not None:
                connection.send_many_nowait(messages)
                connection.flush_nowait()

    async def _tick(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._core.next_deadline()) as self._alarm:
                await trio.sleep_forever()
            now = trio.current_time()
            try:
                if self._core.checks_heartbeats(now):
                    for peer, connection in self._connections.items():
                        self._core.heard(peer, connection.link.heard_at)
                self._core.tick(now)
                self._settle()
            except Exception:  # as in `_serve_peer`
                self._farewell = None
                raise

    async def _dismiss(self, connection: Connection) -> None:
        """Tell a peer that the scheduler stops, and give it the time to receive that."""
        farewell, hello = self._farewell, connection.hello
        if farewell is None:
            return
        # A nanny too: it may be just about to start a worker, which would try to connect for ever.
        if isinstance(hello, Hello) and hello.role in ("worker", "nanny"):
            connection.send_nowait(farewell)
        await connection.aclose(farewell.reason if isinstance(farewell, Leave) else "it was stopped")
