"""Pid and scheduler files of programs that end, that are killed, and that are started twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import Program, until
from tests.programs.sites import REGISTERED, SCHEDULER_AT, Site, open_site
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ALL = ["n.pid", "s.json", "s.pid", "w.pid"]


def start_all(site: Site) -> tuple[Program, Program, Program]:
    """A scheduler, a worker without a nanny, and one with; each writes the files it can."""
    boss = site.start(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", "s.json", "--pid-file", "s.pid"
    )
    boss.wait_for(SCHEDULER_AT)
    hand = site.start("worker", "--scheduler-file", "s.json", "--no-nanny", "--pid-file", "w.pid")
    launcher = site.start("worker", "--scheduler-file", "s.json", "--pid-file", "n.pid")
    for program in (hand, launcher):
        program.wait_for(REGISTERED)
    return boss, hand, launcher


def files_of(site: Site) -> list[str]:
    return sorted(path.name for path in site.cwd.iterdir())


def test_files_are_private_whole_and_gone_with_their_programs(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss, hand, launcher = start_all(site)
        assert files_of(site) == ALL
        assert {path.stat().st_mode & 0o777 for path in site.cwd.iterdir()} == {0o600}
        pids = {name: int((site.cwd / name).read_text()) for name in ("n.pid", "s.pid", "w.pid")}
        assert pids == {"n.pid": launcher.process.pid, "s.pid": boss.process.pid, "w.pid": hand.process.pid}
        assert json.loads((site.cwd / "s.json").read_text())["address"] == boss.wait_for(SCHEDULER_AT)
        assert launcher.stop(signal.SIGINT) == 0
        assert files_of(site) == ["s.json", "s.pid", "w.pid"]
        assert boss.stop(signal.SIGTERM) == 0
        assert hand.end() == 0
        assert files_of(site) == []


def test_files_of_killed_programs_are_stale_and_are_replaced(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        for program in start_all(site):
            program.process.kill()
            program.end()
        assert files_of(site) == ALL
        waiting = site.start("worker", "--scheduler-file", "s.json")
        waiting.wait_for(
            r"Not connected: the scheduler file s\.json is stale: its scheduler, pid \d+, has ended; next try"
        )
        programs = start_all(site)
        waiting.wait_for(REGISTERED)
        for program in (waiting, *reversed(programs)):
            assert program.stop(signal.SIGTERM) == 0
        assert files_of(site) == []


def test_the_file_of_a_program_that_runs_is_not_taken_from_it(tmp_path: Path) -> None:
    schedule, work = ["scheduler", "--host", "127.0.0.1", "--port", "0"], ["worker", "127.0.0.1:1"]
    takers = {
        "s.pid": [*schedule, "--pid-file", "s.pid"],
        "s.json": [*schedule, "--scheduler-file", "s.json"],
        "w.pid": [*work, "--no-nanny", "--pid-file", "w.pid"],
        "n.pid": [*work, "--pid-file", "n.pid"],
    }
    with open_site(tmp_path) as site:
        owners = dict(zip("swn", start_all(site), strict=True))
        before = {path.name: path.read_text() for path in site.cwd.iterdir()}
        start = time.monotonic()
        for file, taker in {file: site.start(*arguments) for file, arguments in takers.items()}.items():
            assert taker.end() == 4, file
            pid = owners[file[0]].process.pid
            assert f"{file} belongs to a running program, pid {pid}; stop" in taker.errors[-1]
        assert time.monotonic() - start < 4
        assert {path.name: path.read_text() for path in site.cwd.iterdir()} == before


@pytest.mark.parametrize("end", ["SIGTERM", "goodbye", "killed worker", "killed launcher"])
def test_what_was_spilled_to_disk_goes_with_the_worker_or_with_its_successor(tmp_path: Path, end: str) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        spilling = ["--memory-limit", "400MB", "--memory-target", "0.05"]
        launcher = site.worker(boss.address, "--name", "spiller", *spilling)
        with Client(boss.address) as client:
            values = [client.submit(tasks.bytes_of, log, n, 10_000_000) for n in range(8)]
            until(lambda: all(value.done() for value in values), 10, "the values")
            until(site.files, 10, "some are on disk")
            folders = set(site.scratch.iterdir())
            assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
            if end == "SIGTERM":
                assert launcher.stop(signal.SIGTERM) == 0
            elif end == "goodbye":
                assert boss.program.stop(signal.SIGTERM) == 0
                assert launcher.end() == 0
            elif end == "killed worker":
                os.kill(next(info["pid"] for info in client.scheduler_info()["workers"].values()), signal.SIGKILL)
                assert client.submit(len, values[0]).result(timeout=10) == 10_000_000
                del values
            else:
                launcher.process.kill()
                launcher.end()
                del values
                site.worker(boss.address, "--name", "successor", *spilling)
            until(lambda: folders.isdisjoint(site.scratch.iterdir()), 2, "the folder is gone")


def test_files_that_somebody_else_has_replaced_are_left_alone(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        programs = start_all(site)
        for name in ALL:
            (site.cwd / name).unlink()
            (site.cwd / name).write_text("mine")
        for program in reversed(programs):
            assert program.stop(signal.SIGTERM) == 0
        assert files_of(site) == ALL
        for name in ALL:
            (site.cwd / name).unlink()
