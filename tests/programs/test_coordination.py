"""Worker processes that hold locks are killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from trio_dask import Client, LocalCluster, Lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def hold_and_die(name: str) -> str:
    """Take the lock and die with it, at the first attempt."""
    with Lock(name):
        if not Path(name).exists():
            Path(name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "held"


def test_a_lock_is_free_at_once_when_its_holder_is_killed(tmp_path: Path) -> None:
    name = str(tmp_path / "died")
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        before = time.monotonic()
        first = client.submit(hold_and_die, name)
        while not Path(name).exists():
            time.sleep(0.01)
        lock = Lock(name)
        assert lock.acquire(timeout=20)
        print(f"free after {time.monotonic() - before:.2f} s")
        lock.release()
        assert first.result(60) == "held"
        assert not lock.locked()
