"""Visit each host once: check whether it could run workers, or end what launchers that are gone have left there."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import trio

from trio_dask.deploy.ssh.hosts import HostSpec
from trio_dask.deploy.ssh.launched_host import LogIn, OnEvent
from trio_dask.deploy.ssh.launcher import OTHER_PYTHON
from trio_dask.deploy.ssh.options import LauncherSettings
from trio_dask.deploy.ssh.orders import Preparation
from trio_dask.deploy.ssh.remote_program import PythonMissing, RemoteProgram
from trio_dask.deploy.ssh.session import HostError, Session, one_host_error

EVERY_RUN = ""


class Survey(NamedTuple):
    """What was found: the hosts that cannot be used, and how many processes were left on all others, and ended."""

    failures: list[HostError]
    ended: int


async def survey(settings: LauncherSettings, log_in: LogIn, on_event: OnEvent, *, clean: bool) -> Survey:
    """Log in to all hosts, and have each say which Python and which trio_dask it has."""
    run = EVERY_RUN if clean else secrets.token_hex(8)  # nothing carries that name
    limiter = trio.CapacityLimiter(settings.max_connecting)
    failures: list[HostError] = []
    answers: list[int] = []

    async def visit(spec: HostSpec) -> None:
        step = partial(_step, on_event, spec.place)
        try:
            with one_host_error():
                async with limiter, log_in(spec, step) as session:
                    answers.append(await _ask(spec, settings, session, run, step))
        except HostError as error:
            failures.append(error)
            on_event(spec.place, "failed", str(error).removeprefix(f"{spec.place}: "))

    async with trio.open_nursery() as nursery:
        for spec in settings.hosts:
            nursery.start_soon(visit, spec)
    return Survey(failures, sum(answers))


def _step(on_event: OnEvent, place: str, step: str, text: str = "") -> None:
    on_event(place, step, text)


async def _ask(
    spec: HostSpec, settings: LauncherSettings, session: Session, run: str, on_step: Callable[[str, str], object]
) -> int:
    """How many processes of this run there were, which have been ended."""
    given = spec.python or settings.remote_python
    pythons = [sys.executable, OTHER_PYTHON] if given is None else [given]
    answer: dict[str, Any] = {}
    while True:
        program = RemoteProgram(
            spec.place,
            session,
            pythons.pop(0),
            spec.setup or settings.setup,
            Preparation("sweep", run),
            on_report=answer.update,
            on_step=on_step,
        )
        try:
            end = await program.run(None)
        except PythonMissing:
            if not pythons:
                raise
            continue
        if "found" not in answer:
            raise HostError(spec.place, "python", end.words)
        return int(answer["found"]) - int(answer["left"])
