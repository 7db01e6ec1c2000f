"""One lock for all threads of all processes that write a file."""

import fcntl
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_dask.client.collections.file_lock import FileLock, lock_beside, lock_in

HOLDER = """
import sys
from trio_dask.client.collections.file_lock import lock_beside
lock = lock_beside(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data.nc"


@pytest.fixture
def elsewhere(target: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_of_another_process_is_waited_for(target: Path, elsewhere: "subprocess.Popen[str]") -> None:
    lock = lock_beside(str(target))
    assert lock.locked()
    assert not lock.acquire(blocking=False)
    elsewhere.stdin.close()  # type: ignore[union-attr]
    with lock:
        assert elsewhere.wait() == 0
    assert not lock.locked()


def test_a_process_that_is_killed_keeps_no_lock(target: Path, elsewhere: "subprocess.Popen[str]") -> None:
    elsewhere.kill()
    with lock_beside(str(target)):
        assert elsewhere.wait() < 0


def test_pickled_it_is_the_same_lock(target: Path) -> None:
    """xarray takes several locks in the order of their identity: with a second object threads could wait in a ring."""
    lock = lock_beside(str(target))
    assert pickle.loads(pickle.dumps(lock)) is lock


def test_one_thread_at_a_time_has_it(target: Path) -> None:
    lock = lock_beside(str(target))
    inside: list[int] = []

    def work() -> None:
        for _ in range(50):
            with lock:
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lock.locked()


def test_its_file_goes_with_the_last_reference_of_the_process_that_made_it(target: Path) -> None:
    lock = lock_beside(str(target))
    with pickle.loads(pickle.dumps(lock)):
        assert os.listdir(target.parent) == [".data.nc.lock"]
    del lock
    gc.collect()
    assert os.listdir(target.parent) == []


def test_a_file_that_was_removed_meanwhile_is_no_lock(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come later would have another one."""
    removed: list[int] = []
    flock = fcntl.flock

    def remove_first(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(descriptor)
            os.unlink(target)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with FileLock(str(target)):
        assert FileLock(str(target)).locked()


def test_a_lock_for_no_file_is_in_the_folder_and_is_another_one_each_time(tmp_path: Path) -> None:
    with lock_in(str(tmp_path)), lock_in(str(tmp_path)):
        assert len(os.listdir(tmp_path)) == 2


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    lock = lock_beside(str(tmp_path / "nowhere" / "data.nc"))
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            lock.acquire()
