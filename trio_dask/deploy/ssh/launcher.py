"""The launcher: a nursery of programs on hosts. Leaving it, in whatever way, leaves nothing on any host.

    HOSTS                         one task a host: log in, run its programs, ask it what is left
      ├ host 1 ─ session ┬ scheduler     the first to be ready
      │                  └ workers       wait for the scheduler's address, not for each other
      └ host 2 ─ session ─ workers

Every host's task ends its programs itself, whether it was cancelled, failed, or lost its connection: their stdin ends,
and with it they end. Then it asks its host, over the same connection, how many processes of the run are left there.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import trio

from trio_dask._version import __version__
from trio_dask.comm.addresses import parse_address
from trio_dask.deploy.ssh.farewell import Answer, NoAnswer, processes, tell_end
from trio_dask.deploy.ssh.launched_host import (
    Crashing,
    Hopeless,
    Host,
    LogIn,
    OnEvent,
    Pauses,
    Phase,
    contact_host,
    hosts_of,
    ignore_event,
    ignore_step,
)
from trio_dask.deploy.ssh.options import (
    LauncherSettings,
    Output,
    RunningScheduler,
    scheduler_arguments,
)
from trio_dask.deploy.ssh.orders import Greeting, Order, Preparation
from trio_dask.deploy.ssh.remote_program import ProgramEnd, PythonMissing, RemoteProgram, ask_for_leftovers
from trio_dask.deploy.ssh.session import HostError, HostLost, Session, one_host_error
from trio_dask.errors import KeptCrashing, NoScheduler, TrioDaskError
from trio_dask.exit_status import ExitStatus
from trio_dask.owned_files import keep_file
from trio_dask.parsing import counted
from trio_dask.scheduler_file import scheduler_file_text
from trio_dask.security.credentials import Credentials

if TYPE_CHECKING:
    from trio_dask.security.security import Security, TlsRole

RUN_LENGTH = 7
DRAIN_S = 3.0
"""For how long workers may drain before everything is ended."""
SWEEP_S = 2.5
PATIENT_SWEEP_S = 15.0
"""For a host whose programs have ended when told to: there a Python must start for the answer, and it may be busy."""
LEVELS: Mapping[Output, int] = {"quiet": logging.ERROR, "warnings": logging.WARNING, "all": logging.DEBUG}
FAILURES: Mapping[int, type[HostError]] = {
    ExitStatus.WRONG_USAGE: Hopeless,
    ExitStatus.REFUSED: Hopeless,
    ExitStatus.KEPT_CRASHING: Crashing,
}
"""What the status of workers means; after any other they are started again."""

log = logging.getLogger("trio_dask.ssh")


class Launcher:
    """A scheduler and workers on hosts, as these settings say. `log_in` is how to log in to one.

    It calls `on_event` with each step of each host. With `security` all speak TLS, each role with
    its certificate. With `stays` it does not end when all workers have ended.
    """

    def __init__(
        self,
        settings: LauncherSettings,
        credentials: Credentials,
        log_in: LogIn,
        on_event: OnEvent = ignore_event,
        *,
        security: Security | None = None,
        stays: bool = False,
    ) -> None:
        self.run_id = secrets.token_hex(4)[:RUN_LENGTH]
        self.scheduler_address = ""
        """Where workers connect."""
        self.client_address = ""
        """Where clients on this machine connect: the same, or this machine's end of a tunnel."""
        self.failure: TrioDaskError | None = None
        """Why everything was ended, if not because somebody asked."""
        self._settings = settings
        self._credentials = credentials
        self._security = security
        self._on_event = on_event
        self._stays = stays
        self._hosts = hosts_of(settings, self.run_id, log_in)
        self._limiter = trio.CapacityLimiter(settings.max_connecting)
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        self._is_ready = False
        self._stopping_since = math.inf

    @property
    def hosts(self) -> Sequence[Host]:
        """All hosts."""
        return self._hosts

    # ------------------------------------------------------------------------------------------ from start to end

    async def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Start everything, and look after it until `stop`, or until all workers have ended; then end everything.

        It calls `on_ready` when all are ready.

        Raises:
          HostError: a host failed at the start.
          NoScheduler: the scheduler was lost.
          KeptCrashing: workers kept crashing, and none is left.
        """
        log.info("Run %s on %s", self.run_id, counted(len(self._hosts), "host"))
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if isinstance(self._settings.scheduler, RunningScheduler):
                    self._note_scheduler(self._settings.scheduler.address)
                for host in self._hosts:
                    host.is_looked_after = True
                    nursery.start_soon(self._look_after, host)
                await self._until(self._all_ready)
                with self._scheduler_file():
                    self._is_ready = True
                    on_ready()
                    await self._until(self._all_over)
                self._end()
        finally:
            tell_end([(host.place, host.answer) for host in self._hosts])
        if self.failure is not None:
            raise self.failure

    def stop(self, reason: str, number: int = signal.SIGINT) -> None:
        """Have the workers drain, for `DRAIN_S` at most, and everything end; called again, end everything at once."""
        if self._nursery is None:
            return
        if self._stopping_since < math.inf:
            log.info("Ending everything at once")
            self._end()
        else:
            self._stopping_since = trio.current_time()
            self._nursery.start_soon(self._drain, reason, number)

    async def _drain(self, reason: str, number: int) -> None:
        for host in self._hosts:
            if host.program is not None:
                host.program.signal(number, reason)
            elif not host.spec.is_scheduler:  # workers that drain still need the scheduler
                host.scope.cancel()
        with trio.move_on_after(DRAIN_S):
            await self._until(lambda: all(host.program is None for host in self._hosts))
        self._end()

    def _end(self) -> None:
        """End everything now."""
        assert self._nursery is not None
        self._stopping_since = min(self._stopping_since, trio.current_time())
        self._nursery.cancel_scope.cancel()

    def _fail(self, error: TrioDaskError) -> None:
        if self._stopping_since == math.inf:
            self.failure = error
            self._end()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition():
            await self._changed.wait()
            await trio.lowlevel.checkpoint()  # what has ended everything may have made the condition true

    def _all_ready(self) -> bool:
        return all(host.phase is not Phase.STARTING for host in self._hosts)

    def _all_over(self) -> bool:
        return not self._stays and all(host.phase is Phase.OVER for host in self._hosts if host.arguments)

    # ------------------------------------------------------------------------------------------ its size

    @property
    def worker_hosts(self) -> list[Host]:
        """The hosts that have workers, or are to have some."""
        return [host for host in self._hosts if host.arguments and host.is_wanted]

    def set_host_count(self, number: int) -> None:
        """Have workers on this many hosts: start some on others, in the settings' order, or let the last drain."""
        able = [host for host in self._hosts if host.arguments]
        wanted = [host for host in able if host.is_wanted]
        unwanted = [host for host in able if not host.is_wanted]
        unwanted.sort(key=lambda host: host.failure is not None)
        for host in unwanted[: max(0, number - len(wanted))]:
            self._want(host)
        self.retire(wanted[number:])

    def _want(self, host: Host) -> None:
        """Have workers there; if it is still ending others, afterwards."""
        assert self._nursery is not None
        host.is_wanted, host.failure, host.phase = True, None, Phase.STARTING
        host.life += 1
        if not host.is_looked_after:
            host.is_looked_after = True
            self._nursery.start_soon(self._look_after, host)
        self._note_change()

    def retire(self, hosts: Sequence[Host]) -> None:
        """Let the workers of these hosts drain, and end; what they hold goes to the others. Does not wait."""
        for host in hosts:
            host.is_wanted = False
            if host.program is not None:
                host.program.signal(signal.SIGTERM, "the cluster was made smaller")
            elif not host.spec.is_scheduler:
                host.scope.cancel()
        self._note_change()

    def add_hosts(self, number: int) -> None:
        """Have workers on so many more hosts, of those where the last ones have ended."""
        idle = [host for host in self._hosts if host.arguments and not host.is_wanted and host.phase is Phase.OVER]
        for host in idle[:number]:
            self._want(host)

    def note_release(self, place: str) -> None:
        """The workers of this host have been told to leave."""
        next(host for host in self._hosts if host.place == place).is_wanted = False

    async def wait_for_workers(self, number: int) -> None:
        """Wait until at least this many workers are registered."""
        await self._until(lambda: sum(len(host.workers) for host in self._hosts) >= number)

    def _note_scheduler(self, address: str) -> None:
        self.scheduler_address = address
        self.client_address = self.client_address or address
        self._note_change()

    @contextmanager
    def _scheduler_file(self) -> Generator[None]:
        if self._settings.scheduler_file is None:
            yield
            return
        text = scheduler_file_text(
            self.client_address,
            incarnation=self.run_id,
            package=__version__,
            python=sys.version.split()[0],
            key=self._credentials.key,
        )
        with keep_file(self._settings.scheduler_file, text):
            yield

    # ------------------------------------------------------------------------------------------ one host

    async def _look_after(self, host: Host) -> None:
        """Serve a host until what runs there has ended, and again if it is wanted again meanwhile."""
        while True:
            life = host.life
            with trio.CancelScope() as host.scope:
                await self._serve_life(host, life)
            host.end_life(life)
            if not host.is_wanted_after(life):
                break
        host.is_looked_after = False
        self._note_change()

    async def _serve_life(self, host: Host, life: int) -> None:
        """Serve a host until what runs there has ended; call it again when it is lost after it was ready."""
        pause = Pauses()
        while True:
            try:
                with one_host_error():
                    await self._serve(host)
                return
            except HostError as exc:
                if host.spec.is_scheduler or (host.is_in(life) and host.phase is Phase.STARTING):
                    self._give_up(host, exc)
                    return
                if not host.is_in(life):
                    log.warning("%s", exc)
                    return
                self._lose(host, exc)
            await trio.sleep(pause.next_s())

    async def _serve(self, host: Host) -> None:
        step = partial(self._step, host)
        async with AsyncExitStack() as stack:
            host.is_silent = False
            async with self._limiter:
                session = await stack.enter_async_context(host.log_in(host.spec, step))
            try:
                if host.phase is Phase.AGAIN:
                    await self._sweep(host, session)
                async with trio.open_nursery() as programs:
                    if host.spec.is_scheduler:
                        programs.start_soon(self._run_scheduler, host, session)
                    if host.arguments:
                        programs.start_soon(self._keep_workers, host, session)
            finally:
                since = min(self._stopping_since, trio.current_time())
                await self._sweep(host, session, since)  # noqa: ASYNC102 - it shields itself, with a limit
                if isinstance(host.answer, Answer):
                    self._on_event(host.place, "ended", f"in {host.answer.seconds:.1f} s")

    async def _sweep(self, host: Host, session: Session, since: float = math.inf) -> None:
        """End what is left of the run there, and note the answer."""
        host.answer = NoAnswer("the launcher was cancelled")
        setup = host.spec.setup or self._settings.setup
        limit_s = SWEEP_S if host.is_silent else PATIENT_SWEEP_S
        asked_at = trio.current_time()
        try:
            before, left = await ask_for_leftovers(host.place, session, host.pythons[0], setup, host.run, limit_s)
        except HostError as exc:
            host.answer = NoAnswer(exc.words)
            return
        host.answer = Answer(max(0.0, asked_at - since), trio.current_time() - asked_at, left)
        if before:
            log.warning("%s: %s had to be killed", host.place, processes(before))

    def _step(self, host: Host, step: str, text: str = "") -> None:
        self._on_event(host.place, step, text)

    def _lose(self, host: Host, error: HostError) -> None:
        host.phase, host.workers = Phase.AGAIN, {}
        log.warning("%s; starting its workers again", error)
        self._on_event(host.place, "lost", error.words)
        self._note_change()

    def _give_up(self, host: Host, error: HostError) -> None:
        """A host failed as a whole: go on without it, or end everything."""
        if host.spec.is_scheduler and self._is_ready:
            self._fail(NoScheduler(f"the scheduler's host is lost: {error}"))
        else:
            self._give_up_workers(host, error)

    def _give_up_workers(self, host: Host, error: HostError) -> None:
        """Go on without the workers of this host, or end everything."""
        if self._stopping_since < math.inf:
            return
        host.failure, host.phase, host.is_wanted = error, Phase.OVER, False
        self._on_event(host.place, "failed", f"{error.step}: {error.words}")
        missing = sum(each.failure is not None for each in self._hosts)
        is_needed = host.spec.is_scheduler or missing > self._settings.allow_missing
        nothing_left = all(each.failure is not None for each in self._hosts if each.arguments)
        if self._is_ready and nothing_left and isinstance(error, Crashing):
            self._fail(KeptCrashing(str(error)))
        elif nothing_left or (is_needed and not self._is_ready):
            self._fail(error)
        else:
            log.warning("%s; going on without it", error)
        self._note_change()

    # ------------------------------------------------------------------------------------------ its programs

    async def _run_program(
        self,
        host: Host,
        session: Session,
        role: Literal["scheduler", "workers"],
        order: Callable[[Greeting], Awaitable[Order]],
        on_report: Callable[[Mapping[str, Any]], object],
    ) -> ProgramEnd:
        while True:
            program = RemoteProgram(
                host.place,
                session,
                host.pythons[0],
                host.spec.setup or self._settings.setup,
                Preparation(role, host.run, self._settings.death_timeout_s),
                on_report=on_report,
                on_step=partial(self._step, host) if role == "workers" or not host.arguments else ignore_step,
                level=LEVELS[self._settings.output],
                lines=host.lines,
                credentials=self.credentials_of(role),
            )
            if role == "workers":
                host.program = program
            try:
                return await program.run(order)
            except PythonMissing:
                if len(host.pythons) == 1:
                    raise
                del host.pythons[0]
            finally:
                host.is_silent |= program.is_silent
                if role == "workers":
                    host.program = None
                    self._note_change()

    async def _run_scheduler(self, host: Host, session: Session) -> None:
        def on_report(report: Mapping[str, Any]) -> None:
            if "address" in report:
                if not host.arguments:
                    host.phase = Phase.READY
                    self._step(host, "started")
                    self._step(host, "joined", "the scheduler")
                nursery.start_soon(self._open_tunnel, session, str(report["address"]))

        async def order(greeting: Greeting) -> Order:  # noqa: ASYNC124 - as workers wait for it, others may
            reached = contact_host(greeting, [each.spec for each in self._hosts])
            return self._order(host, "scheduler", scheduler_arguments(self._settings), reached)

        async with trio.open_nursery() as nursery:
            end = await self._run_program(host, session, "scheduler", order, on_report)
            nursery.cancel_scope.cancel()
        if end.status:
            raise HostError(host.place, "scheduler", end.words)
        self.stop("the scheduler has ended")  # it has told the workers to leave

    async def _open_tunnel(self, session: Session, address: str) -> None:
        """Note where the scheduler is, and keep a tunnel to it, if one is wanted."""
        if self._settings.tunnel:
            there = parse_address(address)
            async with session.forward(there.host, there.port) as port:
                self.client_address = str(there._replace(host="127.0.0.1", port=port))
                self._note_scheduler(address)
                await trio.sleep_forever()
        self._note_scheduler(address)

    async def _keep_workers(self, host: Host, session: Session) -> None:
        """Run the workers; where the scheduler is, over the same connection again when they are wanted again."""
        while True:
            life = host.life
            await self._run_life(host, session, life)
            host.end_life(life)
            self._note_change()
            if not host.spec.is_scheduler:
                return
            await self._until(partial(host.is_wanted_after, life))

    async def _run_life(self, host: Host, session: Session, life: int) -> None:
        """Run the workers of one life, and start them again when all have failed after they were ready."""
        pause = Pauses()
        while host.is_in(life):
            try:
                await self._run_workers(host, session, life)
                return
            except HostLost:
                raise
            except HostError as exc:
                if not host.is_in(life):
                    log.warning("%s", exc)
                    return
                if host.phase is Phase.STARTING or isinstance(exc, Hopeless):
                    self._give_up_workers(host, exc)
                    return
                self._lose(host, exc)
            await trio.sleep(pause.next_s())

    async def _run_workers(self, host: Host, session: Session, life: int) -> None:
        def on_report(report: Mapping[str, Any]) -> None:
            host.workers, host.expected, host.each = report["workers"], report["of"], report["each"]
            if len(host.workers) == report["of"] and host.phase is not Phase.READY and host.is_in(life):
                host.phase = Phase.READY
                self._step(host, "joined", counted(report["of"], "worker"))
            self._note_change()

        async def order(greeting: Greeting) -> Order:
            self._step(host, "started", "")
            await self._until(lambda: self.scheduler_address != "")
            return self._order(host, "workers", [self.scheduler_address, *host.arguments])

        end = await self._run_program(host, session, "workers", order, on_report)
        host.workers = {}
        if end.status:
            raise FAILURES.get(end.status, HostError)(host.place, "workers", end.words)

    def credentials_of(self, role: TlsRole | Literal["workers"]) -> Credentials:
        """What a program of this role shows to the others."""
        if self._security is None:
            return self._credentials
        return Credentials(self._credentials.key, self._security.for_role("worker" if role == "workers" else role))

    def _order(self, host: Host, role: str, arguments: Sequence[str], contact_host: str | None = None) -> Order:
        return Order(
            arguments=tuple(arguments),
            label=f"{role}-{re.sub(r'[^A-Za-z0-9.-]+', '-', host.place)}",
            contact_host=contact_host,
            log_directory=self._settings.log_directory,
            environment=self._settings.remote_env,
        )
