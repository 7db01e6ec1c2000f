"""`trio-dask status`, as people and scripts use it."""

import json
import time
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import program, scheduler, until, worker
from trio_dask import Client

pytestmark = pytest.mark.slow


def status(*arguments: str) -> tuple[int, str, list[str]]:
    """The exit status of the program, what it printed, and what it complained of."""
    with program("-m", "trio_dask", "status", *arguments) as running:
        ended = running.end()
    return ended, "\n".join(running.output), running.errors


def test_it_shows_what_a_cluster_is_doing(tmp_path: Path) -> None:
    file, log = tmp_path / "scheduler.json", tmp_path / "log"
    with scheduler("--scheduler-file", str(file)) as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        with worker(address, "--name", "alice", "--memory-limit", "1GiB") as alice, Client(address) as client:
            alice.wait_for("Registered to:")
            done = client.map(abs, range(3))
            client.gather(done)
            running = client.submit(tasks.work, log, "x", 30, key="the long one")
            until(lambda: tasks.lines_of(log), 10, "it runs")
            time.sleep(1.2)  # a worker tells of a task once it has run for half a second
            ended, text, errors = status(address)
            assert (ended, errors) == (0, []), text
            assert f"Scheduler  {address}, trio_dask" in text
            assert "Tasks      1 processing, 3 in memory" in text
            assert "Oldest     the long one has been running for" in text
            (row,) = [line for line in text.splitlines() if line.startswith("alice ")]
            assert row.split()[:4] == ["alice", "running", "1", "1"]
            assert row.endswith(" of 1.00 GiB")
            ended, text, errors = status("--scheduler-file", str(file), "--json")
            assert (ended, errors) == (0, [])
            found = json.loads(text)
            assert (found["address"], found["tasks"]["memory"], found["oldest"]["worker"]) == (address, 3, "alice")
            (found_worker,) = found["workers"]
            assert found_worker["metrics"]["memory_bytes"] > 2**20
            ended, text, errors = status(found_worker["address"])
            assert (ended, text) == (2, "")
            assert errors == [f"python -m trio_dask status: {found_worker['address']} is a worker, not a scheduler"]
            running.cancel()


def test_without_a_scheduler_it_ends_with_status_3_when_the_time_is_up(tmp_path: Path) -> None:
    for arguments in (["127.0.0.1:1"], ["--scheduler-file", str(tmp_path / "no.json")]):
        since = time.monotonic()
        ended, text, errors = status(*arguments, "--timeout", "0.5s")
        assert (ended, text, len(errors)) == (3, "", 1)
        assert 0.4 < time.monotonic() - since < 10


def test_it_waits_for_a_scheduler_that_is_just_starting(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    asking = ("-m", "trio_dask", "status", "--scheduler-file", str(file))
    with program(*asking) as running, scheduler("--scheduler-file", str(file)):
        assert running.end() == 0
    assert "Workers    0, with 0 threads" in running.output


@pytest.mark.parametrize("arguments", [[], ["h:1", "--scheduler-file", "f"], ["h:port"], ["h:1", "--timeout", "soon"]])
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str]) -> None:
    ended, text, errors = status(*arguments)
    assert (ended, text, len(errors)) == (2, "", 1)
