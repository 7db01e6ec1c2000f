import os
import stat
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from trio_dask.errors import UnavailableError
from trio_dask.owned_files import keep_file, remove_kept_files


def test_a_file_is_there_for_as_long_as_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with keep_file(str(path), "text\n"):
        assert path.read_text() == "text\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["file"]
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_whole_and_what_replaced_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("older")
    with keep_file(str(path), "ours"):
        assert path.read_text() == "ours"
        with keep_file(str(path), "newer"):
            pass
        path.write_text("somebody else's")
        os.rename(path, tmp_path / "aside")
        path.write_text("newest")
    assert path.read_text() == "newest"


def test_a_reader_sees_all_of_a_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = "x" * 1_000_000
    seen: set[str | None] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(path.read_text())
            except FileNotFoundError:
                seen.add(None)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        with keep_file(str(path), whole):
            pass
    over.set()
    reader.join()
    assert seen <= {None, whole}


def test_a_pid_file_of_a_program_that_runs_is_left_alone(tmp_path: Path, running: tuple[int, float]) -> None:
    path = tmp_path / "file"
    pid, started_at = running
    path.write_text(f"{pid}\n")
    os.utime(path, (started_at, started_at))
    with pytest.raises(FileExistsError, match=f"belongs to a running program, pid {pid}"), keep_file(str(path), ""):
        pass
    assert path.read_text() == f"{pid}\n"


@pytest.mark.parametrize("off_s", [-60, 60])
def test_a_pid_file_whose_number_another_process_has_by_now_is_stale(
    tmp_path: Path, running: tuple[int, float], off_s: int
) -> None:
    path = tmp_path / "file"
    pid, started_at = running
    path.write_text(f"{pid}\n")
    os.utime(path, (started_at + off_s, started_at + off_s))
    with keep_file(str(path), f"{os.getpid()}\n"):
        assert path.read_text() == f"{os.getpid()}\n"
        assert abs(path.stat().st_mtime - psutil.Process().create_time()) < 1.5


@pytest.mark.parametrize("content", ["", "0\n", "-1\n", "999999999999\n", "1.5", "no number", "[1]", "null", "{}"])
def test_a_file_of_nobody_who_runs_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with keep_file(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_process_that_is_dead_and_waits_to_be_reaped_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "file"
    process = subprocess.Popen(["sleep", "1000"])
    started_at = psutil.Process(process.pid).create_time()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(f"{process.pid}\n")
    os.utime(path, (started_at, started_at))
    with keep_file(str(path), "ours"):
        assert path.read_text() == "ours"
    process.wait()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"cannot write .*: No such file or directory"),
        keep_file(f"{tmp_path}/a/b", ""),
    ):
        pass


def test_no_file_is_asked_for() -> None:
    with keep_file(None, "text"):
        pass


def test_a_process_that_is_about_to_end_removes_what_is_its_own(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    with keep_file(str(path), "ours"), keep_file(str(other), "ours"):
        other.unlink()
        other.write_text("somebody else's")
        remove_kept_files()
        assert os.listdir(tmp_path) == ["other"]
        path.write_text("somebody else's")
    remove_kept_files()
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(UnavailableError, match="it is not a regular file"), keep_file(str(path), "text"):
            pytest.fail("it was replaced")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
