"""The program on a host: what it understands, when it ends, and how its leftovers are found."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.waiting import until
from trio_dask._version import __version__
from trio_dask.deploy.ssh import leftovers
from trio_dask.deploy.ssh.lifeline import Lifeline
from trio_dask.deploy.ssh.orders import MARK, MODULE, RUN_VARIABLE, Lines, encode, read_report


def watched(fd: int, silence_s: float) -> tuple[Lifeline, list[tuple[str, int | None]], threading.Event]:
    asked: list[tuple[str, int | None]] = []
    ended = threading.Event()
    lifeline = Lifeline(fd)
    lifeline.watch(lambda reason, number: asked.append((reason, number)), ended.set, silence_s=silence_s)
    return lifeline, asked, ended


def test_orders_signals_and_the_end_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.deploy.ssh.lifeline.GRACE_S", 0.0)
    fd, launcher = os.pipe()
    lifeline, asked, ended = watched(fd, 60)
    os.write(launcher, encode({"beat": True}) + encode({"label": "x"}) + b'{"signal": 2, "reason"')
    assert lifeline.orders.get(timeout=5) == {"label": "x"}
    assert asked == []
    os.write(launcher, b': "Ctrl-C"}\n')
    until(lambda: asked == [("Ctrl-C", 2)])
    os.close(launcher)
    assert ended.wait(5)
    assert asked[1] == ("the launcher, or the connection with it, has ended", None)
    assert lifeline.orders.get(timeout=5) is None
    os.close(fd)


def test_a_silent_launcher_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.deploy.ssh.lifeline.GRACE_S", 0.0)
    fd, launcher = os.pipe()
    _, asked, ended = watched(fd, 0.1)
    assert ended.wait(5)
    assert asked == [("the launcher was silent for 0.1 s", None)]
    os.close(launcher)
    os.close(fd)


def test_a_report_is_found_behind_what_a_shell_prints() -> None:
    assert read_report(b"Welcome! " + MARK + b'{"address": "tcp://x"}') == {"address": "tcp://x"}
    assert read_report(b'{"address": "tcp://x"}') is None
    assert read_report(MARK + b"{") is None
    assert read_report(MARK + b"3") is None


def test_lines_that_come_in_pieces_are_whole() -> None:
    lines = Lines()
    assert lines.feed(b"a\nb") == [b"a"]
    assert lines.feed(b"c\n\nd") == [b"bc", b""]
    assert lines.end() == [b"d"]
    assert lines.end() == []


@pytest.fixture
def remote() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
    )
    with process:
        yield process
        process.kill()


def report(stream: IO[bytes] | None) -> dict[str, Any]:
    assert stream is not None
    found = read_report(stream.readline())
    assert found is not None
    return found


def test_a_program_greets_and_ends_with_its_stdin(remote: subprocess.Popen[bytes]) -> None:
    greeting = report(remote.stdout)["greeting"]
    assert greeting["package"] == __version__
    assert remote.stdin is not None
    remote.stdin.close()
    assert remote.wait(5) == 0


def test_a_prepared_program_carries_the_name_of_its_run_and_is_swept(remote: subprocess.Popen[bytes]) -> None:
    report(remote.stdout)
    run = f"{os.getpid() % 10**7:07}9999"
    assert remote.stdin is not None
    remote.stdin.write(json.dumps({"role": "workers", "run": run, "silence_s": 60}).encode() + b"\n")
    remote.stdin.flush()
    until(lambda: [found.pid for found in leftovers.processes_of(run)] == [remote.pid])
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_VARIABLE: run})
    until(lambda: {found.pid for found in leftovers.processes_of(run)} == {remote.pid, child.pid})
    reaper = threading.Thread(target=lambda: (remote.wait(), child.wait()))
    reaper.start()
    assert leftovers.sweep(run) == (2, 0)
    reaper.join(5)
    assert child.returncode == -signal.SIGKILL


def test_what_has_a_launcher_is_not_abandoned(remote: subprocess.Popen[bytes]) -> None:
    report(remote.stdout)
    run = f"{os.getpid() % 10**7:07}8888"
    assert remote.stdin is not None
    remote.stdin.write(json.dumps({"role": "workers", "run": run, "silence_s": 60}).encode() + b"\n")
    remote.stdin.flush()
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_VARIABLE: run})
    try:
        until(lambda: any(found.run == run for found in leftovers.processes_of()))
        until(lambda: len(leftovers.processes_of(run)) == 2)
        assert not any(found.run == run for found in leftovers.abandoned())
        remote.kill()
        remote.wait()
        assert [found.pid for found in leftovers.abandoned() if found.run == run] == [child.pid]
    finally:
        child.kill()
        child.wait()
