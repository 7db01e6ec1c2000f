"""Run a service as a program: signals, limits, log lines, and what its end means as an exit status.

| status | meaning |
|---|---|
| 0 | asked to stop: by a signal, by the end of its lifeline, or by the cluster |
| 1 | internal error |
| 2 | wrong usage |
| 3 | no scheduler: it could not be reached, or was away for longer than the death-timeout |
| 4 | refused (versions, credentials, name taken), or something the machine should have is missing (port in use) |
| 5 | the worker kept crashing |

The first signal asks the service to stop in good order, a second one ends the program at once.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from enum import IntEnum
from types import FrameType
from typing import cast

from trio_dask.deploy.lines import StderrLines
from trio_dask.errors import NoScheduler, RefusedError, TrioDaskError, UsageError

__all__ = ["ExitStatus", "Stopper", "explain", "leaves", "raise_file_limit", "run_program", "spare_garbage_collection"]

EXIT_GRACE_S = 1.0
OPEN_FILES = 65536


class ExitStatus(IntEnum):
    """What the end of a program tells those who started it."""

    STOPPED = 0
    INTERNAL_ERROR = 1
    WRONG_USAGE = 2
    NO_SCHEDULER = 3
    REFUSED = 4
    KEPT_CRASHING = 5


class Stopper:
    """Turns signals into one request to stop, from the first moment of the program on."""

    def __init__(self) -> None:
        self._stop: Callable[[str], None] | None = None
        self._asked: str | None = None

    def install(self) -> None:
        """Handle SIGINT, SIGTERM and SIGHUP from here on, save those that whoever started us wants ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def bind(self, stop: Callable[[str], None] | None) -> None:
        """From now on call `stop` with the reason of a request, one made already too; with None the program ends."""
        self._stop = stop
        if stop is not None and self._asked is not None:
            stop(self._asked)

    def ask(self, reason: str) -> None:
        """Ask the program to stop; only the first request counts."""
        if self._asked is None:
            self._asked = reason
            if self._stop is not None:
                self._stop(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.ask(f"received {signal.Signals(number).name}")
        if self._stop is None:
            raise SystemExit(ExitStatus.STOPPED)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


def _status(error: BaseException) -> ExitStatus:
    match error:
        case UsageError():
            return ExitStatus.WRONG_USAGE
        case NoScheduler():
            return ExitStatus.NO_SCHEDULER
        case RefusedError():
            return ExitStatus.REFUSED
        case TrioDaskError():
            return ExitStatus.INTERNAL_ERROR
        case OSError():
            return ExitStatus.REFUSED
        case _:
            return ExitStatus.INTERNAL_ERROR


def explain(error: BaseException) -> tuple[ExitStatus, str]:
    """The exit status for an error that ended a service, and one line that says what it was."""
    found = list(leaves(error))
    # What we know by name says more about the cause than what happened on the way out.
    worst = next((leaf for leaf in found if _status(leaf) is not ExitStatus.INTERNAL_ERROR), found[0])
    status = _status(worst)
    text = " ".join(str(worst).split())
    if isinstance(worst, OSError) and not isinstance(worst, TrioDaskError):
        text = " ".join((worst.strerror or str(worst)).split())
        if worst.filename is not None:
            text = f"{text}: {worst.filename}"
    elif not isinstance(worst, TrioDaskError):
        text = f"internal error, {type(worst).__name__}: {text} (--debug shows where)"
    return status, text or type(worst).__name__


def run_program(
    label: str, service: Callable[[], Awaitable[None]], stopper: Stopper, *, debug: bool = False, quiet: bool = False
) -> int:
    """Run a service to its end under Trio and give the exit status; nothing is raised.

    A request to stop cancels the service, which then ends in good order within its own grace. `label` stands before
    what went wrong, `quiet` keeps back everything below warnings, and `debug` adds times and tracebacks.
    """
    lines = _log_to_stderr(debug=debug, quiet=quiet)
    log = logging.getLogger("trio_dask.program")
    try:
        _run(service, stopper, log)
    except KeyboardInterrupt:
        status = ExitStatus.STOPPED  # Trio's own handler, where ours could not be installed
    except (Exception, BaseExceptionGroup) as exc:
        # The last line of defence: whatever it is becomes one line and a status.
        status, text = explain(exc)
        log.error("%s: %s", label, text, exc_info=exc if debug else None)
    else:
        status = ExitStatus.STOPPED
    lines.drain(EXIT_GRACE_S)
    _limit_exit(status)
    return status


def _run(service: Callable[[], Awaitable[None]], stopper: Stopper, log: logging.Logger) -> None:
    import trio

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:

            def stop(reason: str) -> None:
                log.info("Stopping: %s", reason)
                scope.cancel()

            def stop_from_anywhere(reason: str) -> None:
                try:
                    token.run_sync_soon(stop, reason)
                except trio.RunFinishedError:
                    pass  # it has just stopped by itself

            stopper.bind(stop_from_anywhere)
            await service()

    try:
        trio.run(main)
    finally:
        stopper.bind(None)


def _log_to_stderr(*, debug: bool, quiet: bool) -> StderrLines:
    lines = StderrLines(debug=debug)
    logger = logging.getLogger("trio_dask")
    logger.addHandler(lines)
    logger.propagate = False  # else a task that configures the root logger would have every line printed twice
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    return lines


def _limit_exit(status: int) -> None:
    """Threads of tasks that never end must not keep the process: give them and exit handlers a moment, no more."""

    def end() -> None:
        sys.stdout.flush()
        os._exit(status)

    timer = threading.Timer(EXIT_GRACE_S, end)
    timer.daemon = True
    timer.start()


def raise_file_limit() -> None:
    """Allow as many open files as the system grants us: each peer is one."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spare_garbage_collection() -> None:
    """Collect cycles rarely: a scheduler holds millions of objects for long and makes hardly any cycles."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
