"""Workers that cannot answer: stopped ones are lost, and busy ones are not."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import until
from tests.programs.sites import open_site
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def pid_of(client: Client, name: str) -> int:
    """0 where there is no such worker."""
    return next((info["pid"] for info in client.scheduler_info()["workers"].values() if info["name"] == name), 0)


@pytest.mark.parametrize(
    ("ttl_s", "stopped_s"), [(3, 0), pytest.param(10, 60, marks=pytest.mark.soak)], ids=["short", "full"]
)
def test_the_work_of_a_stopped_worker_is_done_elsewhere_and_what_it_says_later_is_dropped(
    tmp_path: Path, ttl_s: float, stopped_s: float
) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler("--worker-ttl", str(ttl_s))
        for name in ("stopped", "other"):
            site.worker(boss.address, "--name", name)
        with Client(boss.address) as client:
            pid = pid_of(client, "stopped")
            assert pid
            held = client.submit(tasks.where, log, "held", 0, key="held", workers=["stopped"])
            assert held.result(timeout=10) == pid
            result = client.submit(
                tasks.where, log, "again", 2, key="again", workers=["stopped"], allow_other_workers=True
            )
            until(lambda: tasks.executions(log)["again"], 5, "the task runs")
            os.kill(pid, signal.SIGSTOP)
            assert tasks.lines_of(log)[-1] == f"again {pid}"
            start = time.monotonic()
            elsewhere = result.result(timeout=ttl_s + 10)
            took_s = time.monotonic() - start
            print(f"result from elsewhere after {took_s:.1f} s")
            assert elsewhere != pid
            assert tasks.executions(log)["again"] == 2
            time.sleep(max(0, start + stopped_s - time.monotonic()))
            os.kill(pid, signal.SIGCONT)
            start = time.monotonic()
            back_s = until(lambda: pid_of(client, "stopped") == pid, 10, "the same process is back")
            print(f"back after {back_s:.1f} s")
            time.sleep(1)  # for what it says late
            assert result.result(timeout=1) == elsewhere
            assert client.submit(os.getpid, workers=["stopped"], pure=False).result(timeout=10) == pid
            assert client.submit(tasks.where, log, "new", 0, workers=["stopped"]).result(timeout=10) == pid
            assert tasks.executions(log)["again"] == 2


@pytest.mark.parametrize("held_s", [13, pytest.param(45, marks=pytest.mark.soak)])
def test_a_worker_whose_task_holds_the_interpreter_is_not_lost(tmp_path: Path, held_s: float) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.worker(boss.address, "--name", "busy")
        with Client(boss.address) as client:
            before = client.submit(tasks.bytes_of, log, "before", 100_000, key="before")
            client.gather(before, direct=False)
            holding = client.submit(tasks.hold_interpreter, log, "holding", held_s, key="holding")
            until(lambda: tasks.executions(log)["holding"], 5, "the task runs")
            site.worker(boss.address, "--name", "idle")
            assert holding.result(timeout=held_s + 10) == "done"
            assert len(before.result(timeout=10)) == 100_000
            assert tasks.executions(log) == {"before": 1, "holding": 1}
        said = "\n".join(boss.program.errors)
        assert "away" not in said
        assert "lost" not in said
