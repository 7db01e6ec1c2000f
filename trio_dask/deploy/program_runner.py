"""Run a service as a program: signals, limits, log lines and exit status.

The first signal asks the service to stop in order. A second one ends the program at once, with all processes that it
has started, and with the status of that signal. When the program's parent has ended, the service stops without
draining.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal, NamedTuple, cast

from trio_dask.deploy.log_formats import JsonFormatter, TextFormatter, is_dump
from trio_dask.deploy.log_handler import LogLines
from trio_dask.errors import KeptCrashing, NoScheduler, RefusedError, TrioDaskError, UnavailableError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.owned_files import remove_kept_files
from trio_dask.processes.exit_watchdog import ExitWatchdog, end_descendants, flush_stdout
from trio_dask.processes.recent_lines import RecentLines

SAME_REQUEST_S = 0.1
"""`timeout`, `srun` and the like signal a process and its group: two equal signals within this time are one request."""
EXIT_GRACE_S = 1.0
LINES_GRACE_S = 0.5


LogFormat = Literal["text", "json", "records"]
"""Lines for people, one JSON object per line, or records that a parent reads with `processes.stderr_records`."""


class StopRequest(NamedTuple):
    """Why the program is to stop, and the signal that asked for it, if one did."""

    reason: str
    signal: int | None


class Stopper:
    """Turns signals into requests to stop, from the first moment of the program on.

    With `patient` a second signal is only another request: for a child whose parent passes signals on and kills it in
    the end. (A batch system may signal every process of a job, so that the same signal comes twice.)
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self._stop: Callable[[StopRequest], None] | None = None
        self._stop_by_itself: Callable[[int], bool] | None = None
        self._request: StopRequest | None = None
        self._last_signal = (0, -math.inf)

    def install(self) -> None:
        """Handle SIGINT, SIGTERM and SIGHUP from here on, except those that our parent had us ignore."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def bind(self, stop: Callable[[StopRequest], None] | None) -> None:
        """From now on call `stop` with each request, and with an earlier one; with None a request ends the program."""
        self._stop = stop
        if stop is not None and self._request is not None:
            stop(self._request)

    @contextmanager
    def stopping_by(self, on_signal: Callable[[int], bool], *, patient: bool = False) -> Generator[None]:
        """For the block: a signal does not cancel the service if `on_signal(number)`, in Trio's thread, returns True.

        Then the service has begun to stop, and ends by itself. With `patient` it gets a second signal too.
        """
        was_patient, self._patient = self._patient, self._patient or patient
        self._stop_by_itself = on_signal
        try:
            yield
        finally:
            self._stop_by_itself = None
            self._patient = was_patient

    def stops_by_itself(self, request: StopRequest) -> bool:
        """Ask the service to stop by itself; False if it does not, and has to be cancelled."""
        return request.signal is not None and self._stop_by_itself is not None and self._stop_by_itself(request.signal)

    def ask(self, reason: str, number: int | None = None) -> None:
        """Ask the program to stop; without a signal number, at once."""
        self._request = StopRequest(reason, number)
        if self._stop is not None:
            self._stop(self._request)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        (last_number, last_at), now = self._last_signal, time.monotonic()
        if number == last_number and now - last_at < SAME_REQUEST_S:
            return
        self._last_signal = number, now
        if self._request is not None and not self._patient:
            end_descendants(os.getpid())
            remove_kept_files()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.ask(f"received {signal.Signals(number).name}", number)
        if self._stop is None:
            raise SystemExit(ExitStatus.STOPPED)


def flattened(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from flattened(inner)
    else:
        yield error


def _status(error: BaseException) -> ExitStatus:
    match error:
        case UsageError():
            return ExitStatus.WRONG_USAGE
        case NoScheduler():
            return ExitStatus.NO_SCHEDULER
        case RefusedError() | UnavailableError():
            return ExitStatus.REFUSED
        case KeptCrashing():
            return ExitStatus.KEPT_CRASHING
        case TrioDaskError():
            return ExitStatus.INTERNAL_ERROR
        case OSError():
            return ExitStatus.REFUSED
        case _:
            return ExitStatus.INTERNAL_ERROR


def explain(error: BaseException) -> tuple[ExitStatus, str]:
    """The exit status for an error that ended a service, and one line that explains it."""
    found = list(flattened(error))
    # Errors of ours say more about the cause than those that followed from it.
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
    label: str,
    service: Callable[[], Awaitable[None]],
    stopper: Stopper,
    *,
    debug: bool = False,
    level: int = logging.INFO,
    log_format: LogFormat = "text",
    log_file: str | None = None,
    origin: str = "",
    on_failure: Callable[[ExitStatus, str], object] | None = None,
) -> int:
    """Run a service to its end under Trio and return the exit status; raises nothing.

    A request to stop cancels the service, which then ends within its own time for cleaning up, unless it stops by
    itself (`Stopper.stopping_by`). Then this kills all processes that are left.

    Log lines go to stderr, and to the end of `log_file` too, with `origin` as the name of this program among others.
    Nothing below `level` is said, and `debug` says everything, with times and tracebacks. An error becomes one line
    after `label`; `on_failure`, if given, gets it instead.
    """
    log = logging.getLogger("trio_dask.program")
    logs = [_log_to_stderr(log_format, origin, debug=debug, level=level)]
    if log_file is not None:
        try:
            logs.append(_log_to_file(log_file, log_format, origin, debug=debug))
        except OSError as exc:
            _log_failure(log, label, f"cannot write the log file {log_file}: {exc.strerror or exc}")
            logs[0].drain(LINES_GRACE_S)
            return ExitStatus.REFUSED
    try:
        _run(service, stopper, log)
    except KeyboardInterrupt:
        status = ExitStatus.STOPPED  # Trio's own handler, where ours could not be installed
    except (Exception, BaseExceptionGroup) as exc:
        # The last line of defence: any error becomes one line and a status.
        status, text = explain(exc)
        if on_failure is not None:
            on_failure(status, text)
        if on_failure is None or debug:
            _log_failure(log, label, text, exc if debug else None)
    else:
        status = ExitStatus.STOPPED
    _limit_exit(status)
    end_descendants(os.getpid())
    for lines in logs:
        lines.drain(LINES_GRACE_S)
    if not flush_stdout():
        os._exit(status)  # the interpreter would try again, after the last thread that could end it has stopped
    return status


def _run(service: Callable[[], Awaitable[None]], stopper: Stopper, log: logging.Logger) -> None:
    import trio

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:

            def stop(request: StopRequest) -> None:
                if not scope.cancel_called:
                    log.info("Stopping: %s", request.reason)
                if not stopper.stops_by_itself(request):
                    scope.cancel()

            def stop_from_anywhere(request: StopRequest) -> None:
                try:
                    token.run_sync_soon(stop, request)
                except trio.RunFinishedError:
                    pass  # it has just stopped by itself

            stopper.bind(stop_from_anywhere)
            await service()

    try:
        trio.run(main)
    finally:
        stopper.bind(None)


def _log_failure(log: logging.Logger, label: str, text: str, error: BaseException | None = None) -> None:
    """The last line of a program, which begins with the name of the program, as is the custom."""
    log.error("%s: %s", label, text, exc_info=error, extra={"origin": ""})


def _log_to_stderr(form: LogFormat, origin: str, *, debug: bool, level: int) -> LogLines:
    stamped = debug or not (os.isatty(2) or _is_journal(2))
    lines = LogLines(_formatter(form, origin, times=stamped, loggers=debug))
    if form == "text" and not debug:  # for people, a crash is one line
        lines.addFilter(lambda record: not is_dump(record))
    lines.setLevel(logging.DEBUG if debug else level)
    if level > logging.INFO and not debug:  # the nannies of a local cluster report deaths where its scheduler does
        lines.addFilter(lambda record: record.name != "trio_dask.scheduler.deaths")
    logger = logging.getLogger("trio_dask")
    logger.addHandler(lines)
    logger.addHandler(RecentLines())
    logger.propagate = False  # else a task that configures the root logger would have every line printed twice
    logger.setLevel(logging.DEBUG if debug else min(level, logging.INFO))  # what is not said is kept for get_logs
    return lines


def _log_to_file(path: str, form: LogFormat, origin: str, *, debug: bool) -> LogLines:
    # With O_NONBLOCK, a named pipe that nobody reads is an error; without it, opening one waits for a reader.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    os.set_blocking(fd, True)
    lines = LogLines(_formatter(form, origin, times=True, loggers=debug), fd)
    logging.getLogger("trio_dask").addHandler(lines)
    return lines


def _formatter(form: LogFormat, origin: str, *, times: bool, loggers: bool) -> logging.Formatter:
    match form:
        case "text":
            return TextFormatter(origin, times=times, loggers=loggers)
        case "json":
            return JsonFormatter(origin)
        case "records":
            from trio_dask.processes.stderr_records import RecordFormatter  # for a child of ours alone

            return RecordFormatter()


def _is_journal(fd: int) -> bool:
    """Whether lines go to systemd's journal, which keeps the time of each itself."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _limit_exit(status: int) -> None:
    """End the process after a moment, even if exit handlers, or threads of tasks, never end.

    Signals are ignored from here on, so that none changes the status: the interpreter drops its handlers as it ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    ExitWatchdog().expect_end(EXIT_GRACE_S, status)


def spare_garbage_collection() -> None:
    """Collect cycles rarely: a scheduler keeps millions of objects for long and makes hardly any cycles."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
