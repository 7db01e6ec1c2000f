"""Logs that one can operate by: times, names, levels, causes, files, and the dump of a crash."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.programs.programs import environment, until
from tests.programs.sites import open_site
from trio_dask import Client, KilledWorker, rpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

STAMPED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (INFO|WARNING|ERROR) (?:\[(\S+)\] )?(.*)")


def crash() -> None:
    import ctypes
    import sys

    print("last words", file=sys.stderr, flush=True)
    ctypes.string_at(0)


def crash_a_worker(address: str) -> None:
    with Client(address) as client, pytest.raises(KilledWorker):
        client.submit(crash).result(timeout=20)


def said(lines: Iterable[str], origin: str | None) -> list[str]:
    """What lines with this name in front say."""
    return [found[3] for line in lines if (found := STAMPED.fullmatch(line)) is not None and found[2] == origin]


def test_where_stderr_is_no_terminal_every_line_has_its_time_and_names_who_says_it(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.worker(boss.address, "--nworkers", "2", "--name", "bob", "--memory-limit", "1GiB")
        until(lambda: sum("Registered to: " in line for line in launcher.errors) == 2, 20, "both are there")
        assert launcher.stop(signal.SIGTERM) == 0
        lone = site.worker(boss.address, "--no-nanny", "--name", "eve")
        assert lone.stop(signal.SIGTERM) == 0
        boss.program.stop(signal.SIGTERM)
    for program in (boss.program, launcher, lone):
        assert [line for line in program.log if STAMPED.fullmatch(line) is None] == []
    assert f"Registered to: {boss.address}" in said(launcher.log, "bob-0")
    assert f"Registered to: {boss.address}" in said(launcher.log, "bob-1")
    assert said(launcher.log, "launcher")[0].startswith("Starting 2 workers: 1 thread each ")
    assert f"Registered to: {boss.address}" in said(lone.log, "eve")
    assert said(boss.program.log, None)[0] == f"Scheduler at:   {boss.address}"


def test_on_a_terminal_lines_have_no_times(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.extend(data)
        except OSError:
            pass  # the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    with open_site(tmp_path) as site:
        boss = site.scheduler("--allowed-failures", "0")
        command = [sys.executable, "-m", "trio_dask", "worker", boss.address, "--name", "bob", "--log-file", "log"]
        with subprocess.Popen(command, stderr=theirs, cwd=tmp_path, env=environment()) as launcher:
            os.close(theirs)
            until(lambda: b"[bob] Registered to: " in shown, 20, "it is registered")
            crash_a_worker(boss.address)
            until(lambda: b"restarting it" in shown, 20, "it has crashed")
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(20) == 0
    reader.join()
    os.close(ours)
    lines = shown.decode().split("\r\n")
    assert [line for line in lines if line and not line.startswith(("[launcher] ", "[bob] "))] == []
    (death,) = (line for line in lines if "died" in line)
    assert re.search(
        r"Worker bob \(pid \d+\) died: killed by SIGSEGV in string_at \(__init__.py:\d+\); restarting", death
    )
    assert "[bob] last words" in lines
    assert "Fatal Python error" not in shown.decode(), "people read one line"
    log = (tmp_path / "log").read_text()
    assert "[bob] Fatal Python error: Segmentation fault\n" in log, "the log has the dump"
    assert " in string_at\n" in log
    assert STAMPED.match(log)


def test_a_crash_is_one_line_on_a_stderr_that_is_no_terminal_and_a_dump_with_debug(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler("--allowed-failures", "0")
        launcher = site.worker(boss.address, "--name", "bob")
        crash_a_worker(boss.address)
        launcher.wait_for("restarting it")
        assert launcher.stop(signal.SIGTERM) == 0
        loud = site.start("worker", boss.address, "--nthreads", "1", "--name", "eve", "--debug")
        crash_a_worker(boss.address)
        loud.wait_for("restarting it")
        loud.stop(signal.SIGTERM)
    assert [line for line in launcher.log if STAMPED.fullmatch(line) is None] == []
    (line,) = (line for line in launcher.log if "SIGSEGV" in line or "Fatal" in line)
    assert " died: killed by SIGSEGV in string_at " in line
    assert "Fatal Python error: Segmentation fault" in loud.text


def test_json_has_one_object_a_line_whatever_tasks_print(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        json_log = ("--log-format", "json")
        boss = site.start("scheduler", "--host", "127.0.0.1", "--port", "0", *json_log, "--allowed-failures", "0")
        address = boss.wait_for(r"Scheduler at:   (tcp://[\d.:]+)")
        launcher = site.start("worker", address, *json_log, "--name", "bob", "--nthreads", "1")
        launcher.wait_for("Registered to: ")
        crash_a_worker(address)
        launcher.wait_for("restarting it")
        assert [program.stop(signal.SIGTERM) for program in (launcher, boss)] == [0, 0]
    records = [json.loads(line) for line in launcher.log]
    for record in records:
        assert (
            {"time", "level", "name", "message"} <= record.keys() <= {"time", "level", "name", "message", "exception"}
        )
    assert {record["name"] for record in records} == {"launcher", "bob"}
    assert {"bob"} == {record["name"] for record in records if record["message"] == "last words"}
    (dump,) = (record for record in records if "exception" in record)
    assert dump["message"] == "Fatal Python error: Segmentation fault"
    assert "Current thread" in dump["exception"]
    (death,) = (record for record in records if " died: " in record["message"])
    assert (death["name"], death["level"]) == ("launcher", "WARNING")
    assert {json.loads(line)["name"] for line in boss.log} == {"scheduler"}


def test_a_log_file_is_appended_to_and_one_that_cannot_be_opened_is_status_4_and_one_line(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        log = tmp_path / "log"
        for _ in range(2):
            boss = site.scheduler("--log-file", str(log))
            assert boss.program.stop(signal.SIGTERM) == 0
        assert log.read_text().count("Scheduler at:   ") == 2
        for kind, arguments in (
            ("scheduler", []),
            ("worker", ["127.0.0.1:1"]),
            ("worker", ["127.0.0.1:1", "--no-nanny"]),
        ):
            program = site.start(kind, *arguments, "--log-file", str(tmp_path / "no" / "log"))
            assert program.end() == 4
            (line,) = program.errors
            missing = tmp_path / "no"
            assert line.endswith(f"--log-file: cannot write {missing / 'log'}: there is no folder {missing}")


def test_workers_say_why_they_stop(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.worker(boss.address, "--name", "bob")
        with Client(boss.address) as client:
            client.restart()
        launcher.wait_for(r"Stopping: the cluster was restarted by client \S+$")
        with rpc(launcher.wait_for(r"Start nanny at: (\S+)")) as nanny:
            nanny.restart()
        launcher.wait_for("Stopping: rpc to its nanny: restart")
        until(lambda: sum("Registered to: " in line for line in launcher.errors) == 3, 20, "it is back")
        assert boss.program.stop(signal.SIGTERM) == 0
        assert launcher.end() == 0
    assert said(launcher.log, "bob")[-1] == "Leaving: the scheduler stopped"
    assert not [line for line in launcher.log if "SIG" in line], "nobody sent a signal"


def test_a_signal_is_told_by_the_launcher_that_received_it_and_by_the_worker_it_stops(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.worker(boss.address, "--name", "bob")
        assert launcher.stop(signal.SIGTERM) == 0
    assert said(launcher.log, "launcher")[-2] == "Stopping: received SIGTERM"
    assert re.fullmatch(r"Worker bob \(pid \d+\) stopped", said(launcher.log, "launcher")[-1])
    assert said(launcher.log, "bob")[-1] == "Stopping: the launcher received SIGTERM"


def test_the_log_of_a_worker_without_a_name_has_the_port_that_it_has_now(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.worker(boss.address)
        former = launcher.wait_for(r"Start worker at: (\S+)")
        with Client(boss.address) as client:
            client.restart()
        until(lambda: sum("Start worker at: " in line for line in launcher.errors) == 2, 20, "it is back")
        (now,) = (line.split()[-1] for line in launcher.errors if "Start worker at: " in line and former not in line)
        assert launcher.stop(signal.SIGTERM) == 0
        boss.program.stop(signal.SIGTERM)
    ends = [line for line in launcher.errors if re.search(r"Worker \S+ \(pid \d+\) stopped", line)]
    assert [line.split()[1] for line in ends] == [former, now]
    told = [line for line in boss.program.errors if line.startswith(("Registered worker ", "Worker "))]
    assert [found[0] for line in told for found in re.finditer(r"tcp://\S+", line)] == [former, former, now, now]
    assert not any(" at tcp" in line for line in told)
