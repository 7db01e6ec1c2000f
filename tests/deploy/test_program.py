import errno
import logging
import os
import threading
from contextlib import contextmanager

import pytest

from trio_dask.deploy.lines import MAX_WAITING, StderrLines
from trio_dask.deploy.program import ExitStatus, Stopper, explain
from trio_dask.errors import ClusterError, NoScheduler, ProtocolError, RefusedError, UsageError


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
def test_every_error_has_a_status_and_one_line(error, status, text):
    assert explain(error) == (status, text)


def test_a_request_to_stop_is_remembered_and_made_once():
    reasons = []
    stopper = Stopper()
    stopper.ask("first")
    stopper.ask("second")
    stopper.bind(reasons.append)
    stopper.ask("third")
    assert reasons == ["first"]


@contextmanager
def stderr_to_pipe():
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


def emit(lines, text):
    lines.emit(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


def test_lines_appear_in_order():
    lines = StderrLines(debug=False)
    with stderr_to_pipe() as pipe:
        for number in range(100):
            emit(lines, f"line {number}")
        lines.drain(5)
        heard = os.read(pipe, 65536)
    os.close(pipe)
    assert heard.decode().splitlines() == [f"line {number}" for number in range(100)]


def test_a_stderr_that_nobody_reads_delays_nobody():
    lines = StderrLines(debug=False)
    heard = b""
    with stderr_to_pipe() as pipe:
        for number in range(2 * MAX_WAITING + 5000):
            emit(lines, f"{number:100}")
        lines.drain(0)
        while b"lines are missing here" not in heard:
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


def test_a_stderr_without_reader_is_no_error():
    lines = StderrLines(debug=False)
    with stderr_to_pipe() as pipe:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, pipe)
        os.close(null)
        emit(lines, "to nobody")
        lines.drain(5)
    os.close(pipe)
