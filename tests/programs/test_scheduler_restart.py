"""A scheduler that is stopped in order, and one that is started in its place: who waits, who leaves, and with what."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.programs.programs import until
from tests.programs.sites import open_site
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

KINDS = ["--nanny", "--no-nanny"]
WAITING = "The scheduler stopped; dropping all results and waiting "


def names_of(client: Client) -> list[str]:
    return sorted(info["name"] for info in client.scheduler_info()["workers"].values())


def pids_of(client: Client) -> list[int]:
    return sorted(info["pid"] for info in client.scheduler_info()["workers"].values())


@pytest.mark.parametrize("arguments", [["--death-timeout", "30"], ["--reconnect"], ["--on-scheduler-stop", "wait"]])
def test_workers_that_are_told_to_wait_join_the_scheduler_that_follows(tmp_path: Path, arguments: list[str]) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        workers = [site.worker(boss.address, "--name", kind, kind, *arguments) for kind in KINDS]
        with Client(boss.address) as client:
            before = pids_of(client)
            kept = client.map(pow, range(10), range(10))
            client.gather(kept)
            assert boss.program.stop(signal.SIGTERM) == 0
        for worker in workers:
            worker.wait_for(WAITING)
        site.scheduler(port=boss.port)
        with Client(boss.address) as client:
            until(lambda: names_of(client) == KINDS, 10, "they join the new scheduler")
            assert pids_of(client) == before, "the processes are the same"
            assert not any(client.has_what().values()), "results of the former scheduler's time are dropped"
            assert client.gather(client.map(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_workers_find_the_scheduler_that_follows_at_another_port_in_the_scheduler_file(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        file = ["--scheduler-file", "s.json"]
        first = site.scheduler(*file)
        workers = [
            site.start("worker", *file, "--name", kind, "--nthreads", "1", "--death-timeout", "30", kind)
            for kind in KINDS
        ]
        for worker in workers:
            worker.wait_for("Registered to: ")
        assert first.program.stop(signal.SIGTERM) == 0
        for worker in workers:
            worker.wait_for(WAITING)
        second = site.scheduler(*file)
        assert second.address != first.address
        with Client(second.address) as client:
            until(lambda: names_of(client) == KINDS, 10, "they join the new scheduler")


def test_workers_that_wait_in_vain_end_with_status_3_in_time(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        workers = [site.worker(boss.address, "--death-timeout", "2", kind) for kind in KINDS]
        since = time.monotonic()
        assert boss.program.stop(signal.SIGTERM) == 0
        for worker in workers:
            assert worker.end() == 3
            assert 2 <= time.monotonic() - since <= 5
            assert "no scheduler for 2 s" in worker.errors[-1]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--no-reconnect", "--death-timeout", "30"], ["--on-scheduler-stop=leave", "--death-timeout", "30"]],
)
def test_workers_that_are_not_to_wait_leave_with_the_scheduler(tmp_path: Path, arguments: list[str]) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        workers = [site.worker(boss.address, kind, *arguments) for kind in KINDS]
        since = time.monotonic()
        assert boss.program.stop(signal.SIGTERM) == 0
        assert [worker.end() for worker in workers] == [0, 0]
        assert time.monotonic() - since <= 5


def test_where_a_client_ends_the_cluster_workers_leave_however_long_they_would_wait(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        workers = [
            site.worker(boss.address, kind, "--death-timeout", "30", "--on-scheduler-stop=wait") for kind in KINDS
        ]
        with Client(boss.address) as client:
            client.shutdown()
        assert [program.end() for program in (boss.program, *workers)] == [0, 0, 0]


def test_a_worker_that_waits_obeys_a_signal_at_once(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        workers = [site.worker(boss.address, kind, "--death-timeout", "30") for kind in KINDS]
        boss.program.stop(signal.SIGTERM)
        for worker in workers:
            worker.wait_for(WAITING)
            since = time.monotonic()
            assert worker.stop(signal.SIGTERM) == 0
            assert time.monotonic() - since <= 2
