"""The scheduler is gone: workers give up in time, or find the next one, hundreds of them if need be."""

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.programs.programs import children, until
from tests.programs.sites import open_site
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def workers_of(client: Client) -> dict[str, Any]:
    return {info["name"]: info["pid"] for info in client.scheduler_info()["workers"].values()}


def test_after_a_killed_scheduler_workers_end_when_they_were_told_to_or_join_its_successor(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        mortal = [site.worker(boss.address, "--death-timeout", "5", nanny) for nanny in ("--nanny", "--no-nanny")]
        faithful = [site.worker(boss.address, "--name", nanny, nanny) for nanny in ("--nanny", "--no-nanny")]
        boss.program.process.kill()
        lost_at = time.monotonic()
        boss.program.end()
        for program in mortal:
            assert program.end() == 3
            assert 5 <= time.monotonic() - lost_at <= 7
            assert "no scheduler for 5 s" in program.errors[-1]
        left = [program.process.pid for program in faithful]
        left += [process.pid for pid in left for process in children(pid)]
        assert {process.pid for process in site.processes()} == set(left)

        site.scheduler(port=boss.port)
        back_at = time.monotonic()
        with Client(boss.address) as client:
            until(lambda: sorted(workers_of(client)) == ["--nanny", "--no-nanny"], 5, "they join the new scheduler")
            took_s = time.monotonic() - back_at
            print(f"joined after {took_s:.1f} s")
            assert took_s <= 5
            assert client.gather(client.map(abs, range(-20, 0))) == list(range(20, 0, -1))


MANY = """
import logging, sys, trio
from trio_dask.config import WorkerSettings
from trio_dask.deploy.program_runner import Stopper, run_program
from trio_dask.processes.environment import raise_file_limit
from trio_dask.worker.service import run_worker

async def service():
    async with trio.open_nursery() as nursery:
        for number in range(int(sys.argv[2])):
            settings = WorkerSettings(scheduler=sys.argv[1], name=f"w{number}", host="127.0.0.1")
            nursery.start_soon(run_worker, settings)

raise_file_limit()
stopper = Stopper()
stopper.install()
raise SystemExit(run_program("many", service, stopper, level=logging.WARNING))
"""


def test_two_hundred_workers_are_back_within_ten_seconds_of_the_restart(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.start(boss.address, "200", code=MANY)
        with Client(boss.address) as client:
            client.wait_for_workers(200, timeout=40)
        boss.program.process.send_signal(signal.SIGKILL)
        boss.program.end()
        time.sleep(1)  # long enough for the pauses between their calls to have grown

        start = time.monotonic()
        again = site.scheduler(port=boss.port)
        with Client(again.address) as client:
            client.wait_for_workers(200, timeout=10)
            took_s = time.monotonic() - start
            process = psutil.Process(again.program.process.pid)
            used = process.cpu_times()
            print(f"200 workers back after {took_s:.1f} s, CPU of the scheduler {used.user + used.system:.2f} s")
            assert took_s <= 10
            assert used.user + used.system <= 3
            # And it comes to rest.
            time.sleep(2)
            later = process.cpu_times()
            rate = (later.user + later.system - used.user - used.system) / 2
            print(f"at rest {100 * rate:.0f} % of a core")
            assert rate <= 0.2
            assert client.gather(client.map(abs, range(-400, 0))) == list(range(400, 0, -1))
