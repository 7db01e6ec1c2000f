"""What a launcher knows of one of its hosts, and when it calls a host again that it has lost."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Protocol

import trio

from trio_dask.comm.addresses import is_loopback
from trio_dask.deploy.ssh.child_command import LocalSession
from trio_dask.deploy.ssh.farewell import Answer, NoAnswer
from trio_dask.deploy.ssh.hosts import NO_WORKERS, HostSpec
from trio_dask.deploy.ssh.options import LOCALHOST, LauncherSettings, LocalScheduler, worker_arguments
from trio_dask.deploy.ssh.orders import Greeting
from trio_dask.deploy.ssh.remote_program import RemoteProgram
from trio_dask.deploy.ssh.session import HostError, Session
from trio_dask.retry_policy import Backoff

HOST_LENGTH = 4
"""How many digits at the end of a run's id name one of its hosts."""
MAX_LINES = 1000
AGAIN = Backoff(first_s=1.0, longest_s=30.0, spread=(0.5, 1.0))
OTHER_PYTHON = "python3"
"""Where this machine's own path of Python does not exist on a host."""
SOUND_S = 30.0
"""A host that was there for longer is called again after the first pause."""

OnEvent = Callable[[str, str, str], object]
"""Called with a host, a step (`resolve`, `login`, `python`, ...) and a text for people."""


def ignore_step(step: str, text: str) -> None:
    pass


def ignore_event(host: str, step: str, text: str) -> None:
    pass


class LogIn(Protocol):
    """Logs in to a host; see `login.Logins.log_in`."""

    def __call__(self, host: HostSpec, on_step: Callable[[str], object], /) -> AbstractAsyncContextManager[Session]: ...


class Phase(Enum):
    """How far a host is."""

    STARTING = auto()
    READY = auto()
    """All that was ordered there runs, and its workers are registered."""
    AGAIN = auto()
    """It was ready, and was lost; it is called again."""
    OVER = auto()
    """Its workers have ended in good order, or it was given up."""


@dataclass
class Host:
    """One host of the launcher, and what is known of it."""

    spec: HostSpec
    run: str
    arguments: Sequence[str]
    """What `dask-worker` is told there; empty if it has no workers."""
    pythons: list[str]
    """Where Python may be; the first counts."""
    log_in: LogIn
    phase: Phase = Phase.STARTING
    program: RemoteProgram | None = None
    """Its workers, while they run."""
    workers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The registered workers, by name, and their addresses."""
    each: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])
    """What each of its workers has: `nthreads` and `memory_limit`, None for no limit."""
    expected: int = 0
    """How many workers there should be; 0 until it is known."""
    lines: deque[str] = field(default_factory=partial(deque[str], maxlen=MAX_LINES))
    """What its programs have logged last."""
    failure: HostError | None = None
    is_wanted: bool = True
    life: int = 0
    """How often workers were wanted there again; those of an earlier life may still be ending."""
    is_looked_after: bool = False
    """Whether a task of the launcher serves it."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_silent: bool = False
    """Whether a program there was told to end, and no end of it was seen."""
    answer: Answer | NoAnswer | None = None
    """What it said, when it was asked, of processes that are left; None: nothing was started there."""

    def is_in(self, life: int) -> bool:
        """Whether the workers of this life are those that are wanted."""
        return self.is_wanted and self.life == life

    def is_wanted_after(self, life: int) -> bool:
        """Whether workers of a later life are wanted."""
        return self.is_wanted and self.life != life

    def end_life(self, life: int) -> None:
        """The workers of this life have ended; others may be wanted already."""
        self.phase = Phase.OVER if self.life == life else Phase.STARTING

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.spec.place


def pythons_of(spec: HostSpec, settings: LauncherSettings) -> list[str]:
    """Where Python may be on a host, the likeliest path first."""
    given = spec.python or settings.remote_python
    return [sys.executable, OTHER_PYTHON] if given is None else [given]


def contact_host(greeting: Greeting, hosts: Sequence[HostSpec]) -> str | None:
    """Where workers reach the scheduler: where the login reached it, unless that means this machine to them."""
    only_local = all(is_loopback(host.host) for host in hosts)
    usable = greeting.reached and (only_local or not is_loopback(greeting.reached))
    return greeting.reached if usable else None


def here() -> HostSpec:
    """This machine, for a scheduler that is a process of it."""
    return HostSpec(LOCALHOST, nworkers=NO_WORKERS, is_scheduler=True)


@asynccontextmanager
async def stay_here(host: HostSpec, on_step: Callable[[str], object]) -> AsyncGenerator[Session]:
    on_step("login")
    yield LocalSession()


def hosts_of(settings: LauncherSettings, run_id: str, log_in: LogIn) -> list[Host]:
    """The hosts of a launcher; this machine is the first if the scheduler is a process of it."""
    hosts = [
        Host(spec, "", worker_arguments(spec, settings), pythons_of(spec, settings), log_in) for spec in settings.hosts
    ]
    if isinstance(settings.scheduler, LocalScheduler):
        hosts.insert(0, Host(here(), "", [], [sys.executable], stay_here))
    for number, host in enumerate(hosts):
        host.run = f"{run_id}{number:0{HOST_LENGTH}x}"
    return hosts


class Hopeless(HostError):
    """The workers of a host failed in a way that another start does not mend."""


class Crashing(Hopeless):
    """The workers of a host kept crashing."""


class Pauses:
    """Pauses before a host, or its workers, are started again: they grow, and begin anew after a sound time."""

    def __init__(self) -> None:
        self._pause_s = AGAIN.first_s
        self._began_at = trio.current_time()

    def next_s(self) -> float:
        """The next pause."""
        now = trio.current_time()
        if now > self._began_at + SOUND_S:
            self._pause_s = AGAIN.first_s
        pause_s = random.uniform(*AGAIN.spread) * self._pause_s
        self._pause_s = min(2 * self._pause_s, AGAIN.longest_s)
        self._began_at = now + pause_s
        return pause_s
