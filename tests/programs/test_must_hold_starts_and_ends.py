"""Workers that cannot start, and workers that are asked to leave while they have something to lose."""

import signal
import time
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import until
from tests.programs.sites import open_site
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


CRASHES = {
    "import": "import there_is_no_such_module",
    "raise": "raise RuntimeError('no licence for this host')",
    "exit": "import os, sys; print('no licence', file=sys.stderr, flush=True); os._exit(9)",
    "segfault": "import ctypes; ctypes.string_at(0)",
}
CAUSES = {
    "import": "No module named 'there_is_no_such_module'",
    "raise": "no licence for this host",
    "exit": "no licence",
    "segfault": "SIGSEGV",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_worker_that_crashes_at_import_ends_with_the_cause_and_no_storm(tmp_path: Path, crash: str) -> None:
    log = tmp_path / "log"
    preload = tmp_path / "broken_preload.py"
    preload.write_text(f"import os\nopen({str(log)!r}, 'a').write(f'start {{os.getpid()}}\\n')\n{CRASHES[crash]}\n")
    with open_site(tmp_path, tracebacks=True) as site:  # of the segmentation fault
        boss = site.scheduler()
        start = time.monotonic()
        launcher = site.start("worker", boss.address, "--nthreads", "1", "--preload", str(preload))
        # What a module of the user raises it would raise again; what kills a process may be a fault of the moment.
        assert launcher.end() == (1 if crash in ("import", "raise") else 5)
        print(f"ended after {time.monotonic() - start:.1f} s, {len(tasks.lines_of(log))} starts")
        assert time.monotonic() - start < 10
        assert CAUSES[crash] in launcher.errors[-1], launcher.text
        assert 1 <= len(tasks.lines_of(log)) <= 2


def test_a_worker_that_keeps_crashing_is_given_up_and_the_first_cause_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    crash = (
        "import os, threading, time\n"
        f"file = open({str(log)!r}, 'a+', buffering=1)\n"
        "file.write(f'start {os.getpid()}\\n')\n"
        "file.seek(0)\n"
        "status = 6 + len(file.readlines())\n"
        "threading.Thread(target=lambda: (time.sleep(0.7), os._exit(status)), daemon=True).start()\n"
    )
    (tmp_path / "crash.py").write_text(crash)
    limits = ["--max-restarts", "2", "--restart-backoff", "0.1s:0.2s"]
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.start(
            "worker", boss.address, "--nthreads", "1", "--preload", str(tmp_path / "crash.py"), *limits
        )
        assert launcher.end() == 5
        assert launcher.errors[-1].endswith("the worker crashed 3 times within 60 s; first: ended with status 7")
        assert len(tasks.lines_of(log)) == 3


@pytest.mark.parametrize("running_s", [2, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_that_is_asked_to_leave_loses_nothing(tmp_path: Path, nanny: str, running_s: float) -> None:
    """With `--allowed-failures 0` and no retries the first loss that counted would fail the task."""
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler("--allowed-failures", "0")
        leaver = site.worker(boss.address, "--name", "leaver", nanny)
        with Client(boss.address) as client:
            unique = [client.submit(tasks.bytes_of, log, f"unique{n}", 200_000 + n) for n in range(20)]
            until(lambda: all(future.done() for future in unique), 20, "its results")
            running = client.submit(tasks.work, log, "running", running_s, 5, retries=0)
            until(lambda: tasks.executions(log)["running"], 5, "it runs")
            queued = [client.submit(tasks.work, log, f"queued{n}", 0.1, n) for n in range(10)]
            site.worker(boss.address, "--name", "heir")
            start = time.monotonic()
            assert leaver.stop(signal.SIGTERM) == 0
            took_s = time.monotonic() - start
            print(f"left after {took_s:.1f} s")
            assert took_s < running_s + 3
            assert running.result(timeout=5) == 5
            assert client.gather(queued) == list(range(10))
            assert [len(value) for value in client.gather(unique)] == [200_000 + n for n in range(20)]
            assert set(tasks.executions(log).values()) == {1}
            assert len(tasks.executions(log)) == 31
            steps = [step for _, _, step in client.story()]
            assert not [step for step in steps if "died" in step or "blame" in step], steps


def test_a_lone_worker_hands_its_results_to_its_successor_when_it_has_done_its_number_of_tasks(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = site.worker(boss.address, "--max-tasks", "3", "--name", "w")
        with Client(boss.address) as client:
            futures = [client.submit(tasks.work, log, f"task{n}", 0, n) for n in range(10)]
            assert client.gather(futures) == list(range(10))
            assert set(tasks.executions(log).values()) == {1}, "a result was lost with the process that held it"
            assert client.submit(sum, futures).result(timeout=20) == 45
        launcher.process.send_signal(signal.SIGTERM)
        assert launcher.end() == 0
