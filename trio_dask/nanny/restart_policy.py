"""What a nanny decides: whether another process follows one that has ended, and when one has too much memory.

| how the process ended | what follows |
|---|---|
| the nanny was asked to stop | nothing; 0 |
| the nanny was asked for a restart, or the worker asks for one | another, at once |
| in good order, after its number of tasks | another, at once |
| in good order, at the end of its lifetime | another, at once, if the settings say so; else nothing; 0 |
| in good order, after a signal that the nanny did not get as well | another, at once |
| in good order, sent away by its scheduler | nothing; 0 |
| wrong usage, no scheduler (2, 3) | nothing; the same status |
| refused (4) | nothing; the same status; but after a registered one a crash: the scheduler may still know that one |
| a `--preload` module raises at its start | nothing; 1 |
| any other way, while tasks ran | another after a pause: the tasks are to blame |
| any other way | a crash of its own: another after a pause, unless there were too many; then nothing; 5 |

A task may end the process with any status. So 0 counts as good order only if the worker said why it leaves, and 2, 3
and 4 count only if it said what is wrong; else they are crashes.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from trio_dask.config import NannySettings
from trio_dask.exit_status import ExitStatus

MAX_DOUBLINGS_EXCUSED = 2

Asked = Literal["", "stop", "restart"]
"""What a nanny was asked for while its worker ran."""


class Restart(NamedTuple):
    """Start another process after this pause."""

    after_s: float


class Finish(NamedTuple):
    """Start no other process: the nanny's work is done."""


class GiveUp(NamedTuple):
    """Start no other process: the nanny ends with this status, and with this sentence."""

    status: int
    reason: str


Next = Restart | Finish | GiveUp


class ProcessExit(NamedTuple):
    """How a process ended.

    `status` is as `subprocess` has it, negative for a signal. `started`: it had begun to run its service, `registered`:
    a scheduler had taken it. `cause` says in words how it ended. `leaving` is the reason that it gave before it left in
    good order, `asked` what the nanny was asked for meanwhile. `hopeless`: another would fail in the same way.
    `excused`: it ended while tasks ran, which are to blame. `last_words` tell one failed start from another.
    `explained`: what went wrong is known from the worker itself, not from its status alone.
    """

    status: int
    started: bool
    cause: str
    registered: bool = False
    leaving: str = ""
    asked: Asked = ""
    excused: bool = False
    last_words: str = ""
    explained: bool = True
    hopeless: bool = False


class ExitDecision(NamedTuple):
    """What the end of a process means. `planned`: neither worker nor tasks are to blame."""

    planned: bool
    next: Next


class RestartWindow:
    """Counts crashes over a moving window of time."""

    def __init__(self, settings: NannySettings) -> None:
        self._settings = settings
        self._crashes: deque[tuple[float, str]] = deque()
        self._excused: deque[tuple[float, str]] = deque()
        self._last_failure = ""
        self._same = 0

    def excused(self, now: float) -> Restart:
        """Count a death that tasks caused. It is no crash, but tasks must not restart the worker all the time.

        The pause doubles as after a crash, in a window of its own, but only a few times: other tasks wait too.
        """
        deaths = self._excused
        self._forget_old(deaths, now)
        deaths.append((now, ""))
        return self._pause(min(len(deaths), MAX_DOUBLINGS_EXCUSED + 1))

    def crashed(self, cause: str, now: float, *, failed_start: str | None = None) -> Restart | GiveUp:
        """Count a crash. `failed_start` are the last words of a process that did not begin to run its service.

        The pause before the next process doubles with each crash in the window.
        """
        settings, crashes = self._settings, self._crashes
        self._forget_old(crashes, now)
        crashes.append((now, cause))
        self._same = self._same + 1 if failed_start is not None and failed_start == self._last_failure else 1
        self._last_failure = failed_start or ""
        if failed_start is not None and self._same >= settings.same_failures:
            return GiveUp(ExitStatus.KEPT_CRASHING, f"the worker cannot start: {cause}")
        if len(crashes) > settings.max_restarts:
            often = f"{len(crashes)} times within {settings.restart_window_s:g} s; first: " if len(crashes) > 1 else ""
            return GiveUp(
                ExitStatus.KEPT_CRASHING, f"the worker crashed {often or '(--max-restarts 0): '}{crashes[0][1]}"
            )
        return self._pause(len(crashes))

    def _forget_old(self, deaths: deque[tuple[float, str]], now: float) -> None:
        while deaths and deaths[0][0] <= now - self._settings.restart_window_s:
            deaths.popleft()

    def _pause(self, count: int) -> Restart:
        first_s, longest_s = self._settings.backoff_s
        # The exponent is bounded: the settings may allow a million restarts.
        return Restart(min(first_s * 2 ** min(count - 1, 60), longest_s))


class NannyCore:
    """Decides what follows the end of each process of one nanny."""

    def __init__(self, settings: NannySettings) -> None:
        self._window = RestartWindow(settings)
        self._is_replaced = {
            "max-tasks": True,
            "lifetime": settings.lifetime_restart,
            "signal": True,
        }
        self._had_registered = False

    def ended(self, end: ProcessExit, now: float) -> ExitDecision:
        """Decide what the end of a process means."""
        had_registered = self._had_registered
        self._had_registered = had_registered or end.registered
        if end.asked == "stop":
            return ExitDecision(planned=True, next=Finish())
        if end.asked == "restart" or (end.status == 0 and end.leaving == "restart"):
            return ExitDecision(planned=True, next=Restart(0.0))
        if end.status == 0 and end.started and end.leaving:
            another = self._is_replaced.get(end.leaving, False)
            return ExitDecision(planned=True, next=Restart(0.0) if another else Finish())
        if end.hopeless:
            return ExitDecision(planned=False, next=GiveUp(ExitStatus.INTERNAL_ERROR, end.cause))
        match end.status:
            case ExitStatus.WRONG_USAGE | ExitStatus.NO_SCHEDULER:
                is_permanent = end.explained
            case ExitStatus.REFUSED:
                is_permanent = end.explained and not had_registered
            case _:
                is_permanent = False
        if is_permanent:
            return ExitDecision(planned=False, next=GiveUp(end.status, end.cause))
        if end.excused:
            return ExitDecision(planned=False, next=self._window.excused(now))
        # Without digits, the last words of equal failures are equal: digits may be a process id or a time.
        failed_start = None if end.started else f"{end.status} {''.join(c for c in end.last_words if not c.isdigit())}"
        return ExitDecision(planned=False, next=self._window.crashed(end.cause, now, failed_start=failed_start))


def memory_excess(used_bytes: int, limit_bytes: int | None, fraction: float | None) -> str | None:
    """Why a nanny kills a process that uses this much; None if the process may go on."""
    if limit_bytes is None or fraction is None or used_bytes <= limit_bytes * fraction:
        return None
    used, limit = (f"{number / 2**20:.0f} MiB" for number in (used_bytes, limit_bytes))
    return f"killed by its nanny: it used {used}, more than {fraction:.0%} of its memory limit of {limit}"
