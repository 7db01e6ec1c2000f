"""Processes that do not end by themselves are ended, with all they have started: real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


def run(code: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Status, last words and duration of a process with this code."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    return done, time.monotonic() - started


def is_gone(pid: int) -> bool:
    """Whether this process has ended; in a container there may be nobody to take notice of an orphan's end."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_descendants_end_however_deep_they_are_and_in_whatever_session() -> None:
    done, _ = run(
        "import subprocess, sys\n"
        "import os\nfrom trio_dask.processes.exit_watchdog import end_descendants\n"
        'deep = \'import subprocess, time; print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid, '
        "flush=True); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', deep], stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline())\n"
        "end_descendants(os.getpid())\n"
        "child.wait()\n"
    )
    assert done.stderr == ""
    pids = [int(text) for text in done.stdout.split()]
    assert len(pids) == 2
    assert all(map(is_gone, pids))


def test_a_process_that_does_not_end_by_itself_is_ended_with_all_it_has_started() -> None:
    done, duration_s = run(
        "import subprocess, time\n"
        "from trio_dask.processes.exit_watchdog import ExitWatchdog\n"
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "with ExitWatchdog() as watchdog:\n"
        "    watchdog.expect_end(100, 5, 'too late')\n"
        "    watchdog.expect_end(0.2, 3, 'no scheduler')\n"
        "    time.sleep(60)\n"
    )
    assert (done.returncode, done.stderr) == (3, "no scheduler\n")
    assert duration_s < 0.2 + 2
    assert is_gone(int(done.stdout))


def test_a_process_that_has_got_another_chance_or_is_past_the_block_goes_on() -> None:
    done, _ = run(
        "import math, time\n"
        "from trio_dask.processes.exit_watchdog import ExitWatchdog\n"
        "with ExitWatchdog() as watchdog:\n"
        "    watchdog.expect_end(0.1, 3, 'no')\n"
        "    watchdog.expect_end(math.inf, 3, 'no')\n"
        "    time.sleep(0.2)\n"
        "    watchdog.expect_end(0.1, 3, 'no')\n"
        "time.sleep(0.2)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("with ExitWatchdog() as watchdog: watchdog.expect_end(0.01, 3, 'too late'); time.sleep(60)", 3),
        (
            "stopper = Stopper(); stopper.install(); stopper.bind(print); "
            "[(signal.raise_signal(15), time.sleep(0.15)) for _ in range(2)]",
            -15,
        ),
    ],
    ids=["watchdog", "second signal"],
)
def test_a_process_that_is_ended_leaves_no_file_behind(tmp_path: Path, end: str, status: int) -> None:
    done, _ = run(
        "import signal, time\n"
        "from trio_dask.processes.exit_watchdog import ExitWatchdog\n"
        "from trio_dask.deploy.program_runner import Stopper\n"
        "from trio_dask.owned_files import keep_file\n"
        f"with keep_file({str(tmp_path / 'file')!r}, 'text'):\n"
        f"    {end}\n"
    )
    assert done.returncode == status
    assert os.listdir(tmp_path) == []
