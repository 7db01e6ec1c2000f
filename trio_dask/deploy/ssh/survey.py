"""Visit each host once: check whether it could run workers, or end what launchers that are gone have left there."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple

import trio

from trio_dask.deploy.ssh.hosts import HostSpec
from trio_dask.deploy.ssh.launched_host import LogIn, OnEvent, contact_host, here, pythons_of, stay_here
from trio_dask.deploy.ssh.options import LauncherSettings, LocalScheduler, RunningScheduler
from trio_dask.deploy.ssh.orders import Greeting, Order, Preparation, Role
from trio_dask.deploy.ssh.remote_program import ProgramEnd, PythonMissing, RemoteProgram
from trio_dask.deploy.ssh.session import HostError, Session, one_host_error

EVERY_RUN = ""
UNKNOWN = "nobody listens at the scheduler's address"


class Survey(NamedTuple):
    """What was found: the hosts that cannot be used, and how many processes were left on all others, and ended."""

    failures: list[HostError]
    ended: int


async def clean(settings: LauncherSettings, log_in: LogIn, on_event: OnEvent) -> Survey:
    """End what is left on all hosts of launchers that are gone."""
    visits = _Visits(settings, on_event, EVERY_RUN)
    async with trio.open_nursery() as nursery:
        for spec in settings.hosts:
            nursery.start_soon(visits.visit, spec, log_in, visits.sweep)
    return Survey(visits.failures, visits.ended)


async def check(settings: LauncherSettings, log_in: LogIn, on_event: OnEvent) -> Survey:
    """Have all hosts say which Python and which trio_dask they have, and connect to where the scheduler would be.

    The scheduler's host listens there meanwhile.
    """
    visits = _Visits(settings, on_event, secrets.token_hex(8))
    scheduler = settings.scheduler
    listening = trio.CancelScope()

    async def listen(spec: HostSpec, log_in: LogIn) -> None:
        with listening:
            await visits.visit(spec, log_in, visits.listen)
        visits.note_scheduler(None)

    async with trio.open_nursery() as nursery:
        if isinstance(scheduler, LocalScheduler):
            nursery.start_soon(listen, here(), stay_here)
        elif isinstance(scheduler, RunningScheduler):
            visits.note_scheduler(scheduler.address)
        else:
            nursery.start_soon(listen, scheduler, log_in)
        async with trio.open_nursery() as others:
            for spec in settings.hosts:
                if not spec.is_scheduler:
                    others.start_soon(visits.visit, spec, log_in, visits.reach)
        await visits.scheduler_known.wait()
        listening.cancel()
    return Survey(visits.failures, visits.ended)


Work = Callable[[HostSpec, Session, Callable[[str, str], object]], Awaitable[None]]


class _Visits:
    """All visits of one survey."""

    def __init__(self, settings: LauncherSettings, on_event: OnEvent, run: str) -> None:
        self.failures: list[HostError] = []
        self.ended = 0
        self.scheduler_known = trio.Event()
        self._scheduler: str | None = None
        self._settings = settings
        self._on_event = on_event
        self._run = run
        self._limiter = trio.CapacityLimiter(settings.max_connecting)

    def note_scheduler(self, address: str | None) -> None:
        """Somebody listens at the scheduler's address, or nobody will."""
        self._scheduler = self._scheduler or address
        self.scheduler_known.set()

    async def visit(self, spec: HostSpec, log_in: LogIn, work: Work) -> None:
        """Log in to a host, and do something there."""

        def step(step: str, text: str = "") -> None:
            self._on_event(spec.place, step, text)

        try:
            with one_host_error():
                async with AsyncExitStack() as stack:
                    async with self._limiter:
                        session = await stack.enter_async_context(log_in(spec, step))
                    await work(spec, session, step)
        except HostError as error:
            self.failures.append(error)
            step("failed", str(error).removeprefix(f"{spec.place}: "))

    async def sweep(self, spec: HostSpec, session: Session, step: Callable[[str, str], object]) -> None:
        """End what is left there."""
        answer: dict[str, Any] = {}
        end = await self._ask(spec, session, "sweep", None, answer.update, step)
        if "found" not in answer:
            raise HostError(spec.place, "python", end.words)
        self.ended += int(answer["found"]) - int(answer["left"])

    async def listen(self, spec: HostSpec, session: Session, step: Callable[[str, str], object]) -> None:
        """Have the host listen where the scheduler would."""

        async def order(greeting: Greeting) -> Order:  # noqa: ASYNC124 - as the others wait
            reached = contact_host(greeting, [*self._settings.hosts, spec])
            return Order((str(self._settings.scheduler_port),), "check", reached)

        def on_report(report: Mapping[str, Any]) -> None:
            step("reach", f"listens at {report['address']}")
            self.note_scheduler(report["address"])

        end = await self._ask(spec, session, "listen", order, on_report, step)
        raise HostError(spec.place, "scheduler", end.words, "give --scheduler-port, or --scheduler for another host")

    async def reach(self, spec: HostSpec, session: Session, step: Callable[[str, str], object]) -> None:
        """Have the host connect to where the scheduler would be."""
        addresses: list[str] = []

        async def order(greeting: Greeting) -> Order:
            await self.scheduler_known.wait()
            addresses.extend(filter(None, [self._scheduler]))
            return Order(tuple(addresses), "check")

        end = await self._ask(spec, session, "reach", order, lambda report: None, step)
        if end.status:
            raise HostError(spec.place, "reach", end.words, "open the scheduler's port, or give --scheduler-port")
        step("reach", f"reaches {addresses[0]}" if addresses else UNKNOWN)

    async def _ask(
        self,
        spec: HostSpec,
        session: Session,
        role: Role,
        order: Callable[[Greeting], Awaitable[Order]] | None,
        on_report: Callable[[Mapping[str, Any]], object],
        on_step: Callable[[str, str], object],
    ) -> ProgramEnd:
        """Run one program there, with the first Python that the host has."""
        pythons = pythons_of(spec, self._settings)
        setup = spec.setup or self._settings.setup
        prepare = partial(RemoteProgram, spec.place, session, on_report=on_report, on_step=on_step)
        while True:
            try:
                return await prepare(pythons.pop(0), setup, Preparation(role, self._run)).run(order)
            except PythonMissing:
                if not pythons:
                    raise
