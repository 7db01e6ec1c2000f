import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import pytest
import trio

from trio_dask.deploy import program_runner
from trio_dask.deploy.log_formats import TextFormatter
from trio_dask.deploy.log_handler import MAX_WAITING, LogLines
from trio_dask.deploy.program_runner import Stopper, StopRequest, explain, run_program
from trio_dask.errors import ClusterError, NoScheduler, ProtocolError, RefusedError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.processes import exit_watchdog


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UsageError("no such thing"), ExitStatus.WRONG_USAGE, "no such thing"),
        (NoScheduler("nothing\nlistens"), ExitStatus.NO_SCHEDULER, "nothing listens"),
        (RefusedError("versions"), ExitStatus.REFUSED, "versions"),
        (OSError(errno.EADDRINUSE, "cannot listen: in use"), ExitStatus.REFUSED, "cannot listen: in use"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), ExitStatus.REFUSED, "No such file: /x"),
        (ClusterError("ended"), ExitStatus.INTERNAL_ERROR, "ended"),
        (ProtocolError("garbage"), ExitStatus.INTERNAL_ERROR, "garbage"),
        (KeyError("x"), ExitStatus.INTERNAL_ERROR, "internal error, KeyError: 'x' (--debug shows where)"),
        (
            ExceptionGroup("", [KeyError("x"), ExceptionGroup("", [NoScheduler("gone")])]),
            ExitStatus.NO_SCHEDULER,
            "gone",
        ),
    ],
)
def test_every_error_has_a_status_and_one_line(error: BaseException, status: ExitStatus, text: str) -> None:
    assert explain(error) == (status, text)


def test_a_request_to_stop_is_remembered_until_there_is_something_to_stop() -> None:
    requests: list[StopRequest] = []
    stopper = Stopper()
    stopper.ask("first")
    stopper.bind(requests.append)
    assert requests == [StopRequest("first", None)]


def serve(stopper: Stopper, *requests: int | None) -> list[int | str]:
    """Run a service that is asked to stop in these ways, one after the other, and say how it ended."""
    heard: list[int | str] = []

    async def service() -> None:
        def heed(number: int) -> bool:
            heard.append(number)
            return number == signal.SIGTERM

        with stopper.stopping_by(heed):
            for request in requests:
                stopper.ask("asked", request)
                with trio.move_on_after(0.01):
                    await trio.sleep_forever()
        heard.append("ended by itself")

    assert run_program("label", service, stopper, level=logging.WARNING) == ExitStatus.STOPPED
    return heard


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a program does to its process is undone."""
    monkeypatch.setattr(program_runner, "_limit_exit", lambda status: None)
    logger = logging.getLogger("trio_dask")
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.level, logger.handlers[:] = before


@pytest.mark.usefixtures("_in_process")
def test_a_signal_that_the_service_heeds_does_not_cancel_it() -> None:
    assert serve(Stopper(), signal.SIGTERM) == [signal.SIGTERM, "ended by itself"]


@pytest.mark.usefixtures("_in_process")
def test_a_signal_that_the_service_does_not_heed_cancels_it() -> None:
    assert serve(Stopper(), signal.SIGINT) == [signal.SIGINT]


@pytest.mark.usefixtures("_in_process")
def test_whoever_started_the_program_and_is_gone_is_not_waited_for() -> None:
    assert serve(Stopper(), None) == []
    assert serve(Stopper(), signal.SIGTERM, None) == [signal.SIGTERM]


@contextmanager
def patient_stopper() -> Iterator[Stopper]:
    """One that has the signals of this process, until the block is left."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    stopper = Stopper(patient=True)
    stopper.install()
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("_in_process")
def test_a_patient_program_takes_a_second_signal_for_one_more_request() -> None:
    heard: list[int] = []

    def heed(number: int) -> bool:
        heard.append(number)
        return True

    async def service() -> None:
        with stopper.stopping_by(heed):
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep(0.01)

    with patient_stopper() as stopper:
        assert run_program("label", service, stopper, level=logging.WARNING) == ExitStatus.STOPPED
    assert heard == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.usefixtures("_in_process")
def test_a_signal_that_comes_twice_in_a_moment_is_one_request_and_another_signal_is_not() -> None:
    heard: list[int] = []

    def heed(number: int) -> bool:
        heard.append(number)
        return True

    async def service() -> None:
        with stopper.stopping_by(heed):
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                await trio.sleep(0.01)

    with patient_stopper() as stopper:
        assert run_program("label", service, stopper, level=logging.WARNING) == ExitStatus.STOPPED
    assert heard == [signal.SIGTERM, signal.SIGINT]


@contextmanager
def stderr_to_pipe() -> Iterator[int]:
    """Stderr is a pipe that nobody reads but the test. (No fixture: pytest sets its own capture up after those.)"""
    before = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield reader
    finally:
        os.dup2(before, 2)
        os.close(before)


def emit(lines: LogLines, text: str) -> None:
    lines.emit(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


def test_lines_appear_in_order() -> None:
    lines = LogLines(TextFormatter(times=False))
    with stderr_to_pipe() as pipe:
        for number in range(100):
            emit(lines, f"line {number}")
        lines.drain(5)
        heard = os.read(pipe, 65536)
    os.close(pipe)
    assert heard.decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_stderr_that_nobody_reads_delays_nobody() -> None:
    lines = LogLines(TextFormatter(times=False))
    heard = b""
    with stderr_to_pipe() as pipe:
        for number in range(2 * MAX_WAITING + 5000):
            emit(lines, f"{number:100}")
        lines.drain(0)
        while b"log lines are missing here" not in heard:
            heard += os.read(pipe, 65536)
            emit(lines, "afterwards")
        # What is still to be written must find a reader before stderr is itself again.
        reading = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(pipe, 65536), b"")])
        reading.start()
        lines.drain(5)
    reading.join()
    os.close(pipe)
    lines_heard = heard.decode().splitlines()
    assert [int(line) for line in lines_heard[:MAX_WAITING]] == list(range(MAX_WAITING))


def test_a_stderr_without_reader_is_no_error() -> None:
    lines = LogLines(TextFormatter(times=False))
    with stderr_to_pipe() as pipe:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, pipe)
        os.close(null)
        emit(lines, "to nobody")
        lines.drain(5)
    os.close(pipe)


class Stdout:
    """A stdout to which whatever is written takes as long as a test wants."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.read = threading.Event()
        self.flushed = threading.Event()
        self.failure = failure

    def flush(self) -> None:
        self.read.wait(10)
        self.flushed.set()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process would have been ended."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(exit_watchdog, "FLUSH_S", 0.01)
    return statuses


async def end_with_status_2() -> Never:
    await trio.lowlevel.checkpoint()
    raise UsageError("no")


@pytest.mark.usefixtures("_in_process")
def test_a_stdout_that_nobody_reads_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch, exits: list[int]
) -> None:
    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    run_program("label", end_with_status_2, Stopper())
    stdout.read.set()
    assert exits == [2]


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("stdout", [None, Stdout(), Stdout(BrokenPipeError()), Stdout(ValueError("closed"))])
def test_what_tasks_have_printed_is_written_out_if_it_can_be(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], stdout: Stdout | None
) -> None:
    monkeypatch.setattr(exit_watchdog, "FLUSH_S", 10)
    monkeypatch.setattr(sys, "stdout", stdout)
    if stdout is not None:
        stdout.read.set()
    assert run_program("label", end_with_status_2, Stopper()) == 2
    assert exits == []
    assert stdout is None or stdout.flushed.is_set()


@pytest.mark.parametrize("readable", [False, True])
def test_exit_handlers_that_never_end_do_not_keep_the_process_whoever_reads(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], readable: bool
) -> None:
    stdout = Stdout()
    if readable:
        stdout.read.set()
    ended = threading.Event()
    monkeypatch.setattr(program_runner, "EXIT_GRACE_S", 0.01)

    def end(status: int) -> None:
        exits.append(status)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "stdout", stdout)
    program_runner._limit_exit(5)
    assert ended.wait(10)
    stdout.read.set()
    assert exits == [5]
