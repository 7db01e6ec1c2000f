"""The scheduler as a service: it carries events to the core, and the core's messages to their peers.

    a stop is asked for (by cancelling from outside, by the core from inside)
    SESSIONS                        shielded; has a deadline once the stop begins
      |- ticker                     sleeps until the core wants to be called
      |- one session per peer       reads; its connection hosts the writer
      `- ACCEPTING                  cancelled first

What arrives together is decided together: all messages of a batch, then placement once, then every outbox that was
touched leaves at once. Nothing is unpickled here, and nothing that could unpickle is imported.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from itertools import count

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
from trio_dask.ids import Incarnation, PeerId, new_incarnation
from trio_dask.owned_files import keep_file
from trio_dask.parsing import counted
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import Leave, Restart, SchedulerStops
from trio_dask.scheduler.client_resume import Returns
from trio_dask.scheduler.core import ClosePeer, CoreSettings, Notice, SchedulerCore, Stop
from trio_dask.scheduler.registration import nanny_process, previous_session, worker_info
from trio_dask.scheduler.rpc_handlers import scheduler_commands
from trio_dask.scheduler_file import scheduler_file_text

__all__ = ["run_scheduler"]

log = logging.getLogger("trio_dask.scheduler")
deaths = logging.getLogger("trio_dask.scheduler.deaths")


async def run_scheduler(
    settings: SchedulerSettings, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a scheduler until it is cancelled, or a client ends the cluster; `task_status.started` gives its address.

    Cancelled, it takes nobody in any more, tells workers and clients that it stops, and ends within `settings.grace_s`.
    Workers then leave, or wait for its successor; where a client ends the cluster, all of them leave.

    Raises:
      OSError: it cannot listen where it shall.
      UsageError: a file cannot be written, or there is no such interface.
    """
    service = _Service(settings)
    with keep_file(settings.pid_file, f"{os.getpid()}\n"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.heed_cancellation)
            # A loop of its own inside the shield: what outlives the request to stop must not be cancelled by it.
            with trio.CancelScope(shield=True):
                await service.run(task_status)
            nursery.cancel_scope.cancel()


class _Service:
    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._core = SchedulerCore(
            CoreSettings(
                allowed_failures=settings.allowed_failures,
                reconnect_grace_s=settings.reconnect_grace_s,
                worker_ttl_s=settings.worker_ttl_s,
                lone_worker_ttl_s=settings.lone_worker_ttl_s,
                idle_timeout_s=settings.idle_timeout_s,
                stuck_after_s=settings.stuck_after_s,
            )
        )
        self._identity = Hello(role="scheduler", incarnation=new_incarnation())
        self._connections: dict[PeerId, Connection] = {}
        self._welcomed_back: set[Incarnation] = set()
        """Earlier sessions of workers that were told that they can go on where these ended."""
        self._clients = Returns(self._core, self._identity.incarnation)
        self._peer_ids = count(1)  # 0 is taken: the core means `fire_and_forget` by it
        self._busy_poll = BusyPoll(settings.busy_poll_s)
        self._alarm = trio.CancelScope()
        self._stopping = trio.Event()
        self._farewell: Leave | SchedulerStops = SchedulerStops()
        """Whether the whole cluster ends, or only this scheduler."""
        self._address = ""
        self._commands = scheduler_commands(
            self._core, self._identity, address=lambda: self._address, restart=self._restart, stop=self._stop
        )

    async def heed_cancellation(self) -> None:
        """Turn the cancellation of the whole service into an orderly stop."""
        try:
            await trio.sleep_forever()
        finally:
            self._stopping.set()

    async def run(self, task_status: trio.TaskStatus[Address]) -> None:
        """Serve until a stop is asked for, then end in good order."""
        self._core.begin(trio.current_time())
        with self._busy_poll.running():
            await self._serve(task_status)
        log.info("Scheduler stopped%s", f": {self._farewell.reason}" if isinstance(self._farewell, Leave) else "")

    async def _serve(self, task_status: trio.TaskStatus[Address]) -> None:
        async with trio.open_nursery() as sessions:
            sessions.start_soon(self._tick)
            accepting = trio.CancelScope()
            bound: list[Address] = await sessions.start(self._accept, accepting, sessions)
            address, *others = self._advertised(bound[0])
            self._address = str(address)
            with keep_file(self._settings.scheduler_file, self._scheduler_file(address)):
                self._announce(address, others, bound)
                task_status.started(address)
                await self._stopping.wait()
            accepting.cancel()
            sessions.cancel_scope.deadline = trio.current_time() + self._settings.grace_s
            await self._dismiss()
            sessions.cancel_scope.cancel()

    # ------------------------------------------------------------------------------------------------- listening

    async def _accept(
        self,
        scope: trio.CancelScope,
        sessions: trio.Nursery,
        *,
        task_status: trio.TaskStatus[list[Address]],
    ) -> None:
        settings = self._settings
        address, listening = self._where_to_listen()
        limits = LinkLimits(keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s)
        with scope:
            await serve(
                Endpoint(address, limits),
                self._session,
                identity=self._identity,
                admit=self._admit,
                listening=listening,
                handler_nursery=sessions,
                task_status=task_status,
            )

    def _where_to_listen(self) -> tuple[Address, socket.socket | None]:
        settings = self._settings
        if settings.listen_fd is not None:
            return Address(settings.protocol, ""), socket.socket(fileno=settings.listen_fd)
        if settings.address is not None:
            return parse_address(settings.address), None
        host = addresses_of_interface(settings.interface)[0] if settings.interface else settings.host
        return Address(settings.protocol, host, settings.port), None

    def _advertised(self, bound: Address) -> list[Address]:
        """Where others reach us, best first; several if only those who operate us can know which it is."""
        if bound.is_in_process:
            return [bound]
        contact = self._settings.contact_host
        hosts = advertised_hosts(bound.host) if contact is None else [contact]
        return [Address(bound.scheme, host, bound.port) for host in hosts]

    def _announce(self, address: Address, others: list[Address], bound: list[Address]) -> None:
        log.info("Scheduler at:   %s", address)
        if others:
            log.warning(
                "No default route, and several addresses: workers that cannot reach %s may reach %s; "
                "choose one with --interface or --host",
                address,
                ", ".join(map(str, others)),
            )
        if any(not where.is_in_process and not is_loopback(where.host) for where in bound):
            log.warning(
                "Not secured: anyone who can reach port %d can run programs as this user; "
                "--host 127.0.0.1 keeps it local",
                address.port,
            )

    def _scheduler_file(self, address: Address) -> str:
        mine = self._identity
        return scheduler_file_text(str(address), incarnation=mine.incarnation, package=mine.package, python=mine.python)

    # -------------------------------------------------------------------------------------------------- sessions

    def _admit(self, hello: Hello, transport: Transport) -> Welcome | Refusal:
        if hello.role == "client":
            details, former = self._clients.greet(hello, trio.current_time())
            connection = self._connections.pop(former, None) if former is not None else None
            if connection is not None:
                connection.abort("its client has begun another session")
            return Welcome(incarnation=self._identity.incarnation, details=details)
        if hello.role == "worker":
            info = worker_info(hello)
            previous = previous_session(hello, self._identity.incarnation)
            if self._core.may_return(previous, info):
                self._welcomed_back.add(previous)
                return Welcome(incarnation=self._identity.incarnation, details={"returned": True})
            refused = self._core.refusal(info)
            if refused is not None:
                return Refusal(refused, "name")
        return Welcome(incarnation=self._identity.incarnation)

    async def _session(self, connection: Connection) -> None:
        """One peer, from its welcome to its end. What it does wrong ends this session and no other."""
        hello = connection.hello
        assert isinstance(hello, Hello)
        if hello.role == "control":
            await serve_control(connection, self._commands)
            return
        peer = self._peer_of(hello)
        if peer is None:
            connection.abort("its client must connect again")
            return
        refused = self._register(peer, connection, hello)
        if refused is not None:  # somebody else took the name between our welcome and now
            await connection.aclose(refused)
            return
        self._connections[peer] = connection
        error: ProtocolError | ConnectionLost | None = None
        try:
            self._settle()
            with self._busy_poll.watching(connection.fd):
                async for batch in connection.batches():
                    if self._connections.get(peer) is not connection:
                        break  # its client goes on with another one
                    now = connection.heard_at
                    for message in batch:
                        self._core.handle(peer, message, now)
                    self._settle(now)
        except (ProtocolError, ConnectionLost) as exc:
            error = exc
        finally:
            self._remove(peer, connection, error)
        if isinstance(error, ProtocolError):
            await connection.aclose(str(error))

    def _remove(self, peer: PeerId, connection: Connection, error: Exception | None) -> None:
        if self._connections.get(peer) is not connection:
            return
        goodbye = connection.goodbye
        reason = goodbye.reason if goodbye is not None else str(error or "the session was ended by the scheduler")
        worker = self._core.state.workers.get(peer)
        if worker is not None:
            reason = reason.replace(str(connection.remote), "it")  # its port of the moment says nothing to anybody
        hello = connection.hello
        assert isinstance(hello, Hello)
        if isinstance(error, ProtocolError):
            log.warning("Closed the connection to the %s at %s: %s", hello, connection.remote, reason)
        elif hello.role == "client" and goodbye is None and not self._stopping.is_set():
            log.info("Lost the client at %s: %s", connection.remote, reason)
        elif worker is not None and goodbye is not None and not self._stopping.is_set():
            log.info("Worker %s left: %s", worker.info.title, LEAVING.get(reason, reason))
        del self._connections[peer]
        # A client that said what cannot be would say it again.
        expected = goodbye is not None or (worker is None and isinstance(error, ProtocolError))
        self._core.remove_peer(peer, reason, trio.current_time(), expected=expected)
        self._settle()

    def _peer_of(self, hello: Hello) -> PeerId | None:
        """The peer that a session belongs to: a new one, or, for a client that is back, the one it was."""
        if hello.role == "client":
            return self._clients.enter(hello, lambda: PeerId(next(self._peer_ids)), trio.current_time())
        return PeerId(next(self._peer_ids))

    def _register(self, peer: PeerId, connection: Connection, hello: Hello) -> str | None:
        now = trio.current_time()
        if hello.role == "client":
            return None
        if hello.role == "nanny":
            self._core.add_nanny(peer, hello.name, nanny_process(hello), now)
            return None
        # The core watches whether workers live: a task may keep one from saying so itself for minutes.
        connection.silence_s = math.inf
        info = worker_info(hello)
        previous = previous_session(hello, self._identity.incarnation)
        if previous in self._welcomed_back:
            self._welcomed_back.discard(previous)
            if not self._core.come_back(peer, previous, info, now):
                connection.abort("it can no longer continue its session")  # so it calls again, and begins afresh
                return "it came back too late to continue its session"
            return None
        refused = self._core.add_worker(peer, info, now)
        if refused is None:
            at = f"{info.own_name} at {info.address}" if info.own_name else info.address
            log.info("Registered worker %s (%s)", at, counted(info.nthreads, "thread"))
        return refused

    def _restart(self, reason: str) -> None:
        """Have all workers begin afresh, as for a client that is here for nothing else."""
        now = trio.current_time()
        peer = PeerId(next(self._peer_ids))
        self._core.add_client(peer, new_incarnation(), reason, now)
        self._core.handle(peer, Restart(1), now)
        self._core.remove_peer(peer, reason, now, expected=True)
        self._settle()

    def _stop(self, reason: str) -> None:
        """End the cluster, workers and all."""
        self._farewell = Leave(reason, restart=False)
        self._stopping.set()

    # ---------------------------------------------------------------------------------------------- carrying out

    def _settle(self, now: float | None = None) -> None:
        """Have the core decide on what has come, send what it says, and do what it asks."""
        core = self._core
        core.place(trio.current_time() if now is None else now)
        self._deliver()
        requests = core.requests
        while requests:
            match requests.pop(0):
                case ClosePeer(peer, reason):
                    connection = self._connections.get(peer)
                    if connection is not None:
                        connection.abort(reason)
                case Notice(text, serious):
                    if serious:
                        deaths.warning("%s", text)
                    else:
                        log.info("%s", text)
                case Stop(reason):
                    self._stop(reason)
        deadline = core.next_deadline()
        if deadline < self._alarm.deadline:  # one that comes too early finds nothing to do: cheaper than to move it
            self._alarm.deadline = deadline

    def _deliver(self) -> None:
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
            if self._core.looks_for_signs(now):
                for peer, connection in self._connections.items():
                    self._core.heard(peer, connection.heard_at)
            self._core.tick(now)
            self._settle()

    async def _dismiss(self) -> None:
        """Tell every peer that this is the end, all at once, and give each the time to hear it."""
        state, farewell = self._core.state, self._farewell
        reason = farewell.reason if isinstance(farewell, Leave) else "it was stopped"
        async with trio.open_nursery() as nursery:
            for peer, connection in self._connections.items():
                # A nanny too: it may be just about to start a worker, which would look for us for ever.
                if peer in state.workers or peer in state.nannies:
                    connection.send_nowait(farewell)
                nursery.start_soon(connection.aclose, reason)
