import json
import os
import subprocess
import threading

import psutil
import pytest

from trio_dask.errors import NoScheduler, UnavailableError, UsageError
from trio_dask.scheduler_file import check_writable, present, read_scheduler_file, remove_present, scheduler_file_text


def test_a_file_is_there_for_as_long_as_the_block(tmp_path):
    path = tmp_path / "file"
    with present(str(path), "text\n"):
        assert path.read_text() == "text\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["file"]
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_whole_and_what_replaced_ours_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("older")
    with present(str(path), "ours"):
        assert path.read_text() == "ours"
        with present(str(path), "newer"):
            pass
        path.write_text("somebody else's")
        os.rename(path, tmp_path / "aside")
        path.write_text("newest")
    assert path.read_text() == "newest"


def test_a_reader_sees_all_of_a_file_or_nothing(tmp_path):
    path = tmp_path / "file"
    whole = "x" * 1_000_000
    seen = set()
    over = threading.Event()

    def read():
        while not over.is_set():
            try:
                seen.add(path.read_text())
            except FileNotFoundError:
                seen.add(None)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        with present(str(path), whole):
            pass
    over.set()
    reader.join()
    assert seen <= {None, whole}


@pytest.fixture
def running():
    """Another process that lives, and when it started."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid, psutil.Process(process.pid).create_time()
        process.kill()


def test_a_pid_file_of_a_program_that_runs_is_left_alone(tmp_path, running):
    path = tmp_path / "file"
    pid, started_at = running
    path.write_text(f"{pid}\n")
    os.utime(path, (started_at, started_at))
    with pytest.raises(FileExistsError, match=f"belongs to a running program, pid {pid}"), present(path, ""):
        pass
    assert path.read_text() == f"{pid}\n"


@pytest.mark.parametrize("off_s", [-60, 60])
def test_a_pid_file_whose_number_another_process_has_by_now_is_stale(tmp_path, running, off_s):
    path = tmp_path / "file"
    pid, started_at = running
    path.write_text(f"{pid}\n")
    os.utime(path, (started_at + off_s, started_at + off_s))
    with present(str(path), f"{os.getpid()}\n"):
        assert path.read_text() == f"{os.getpid()}\n"
        assert abs(path.stat().st_mtime - psutil.Process().create_time()) < 1.5


@pytest.mark.parametrize("content", ["", "0\n", "-1\n", "999999999999\n", "1.5", "no number", "[1]", "null", "{}"])
def test_a_file_of_nobody_who_runs_is_replaced(tmp_path, content):
    path = tmp_path / "file"
    path.write_text(content)
    with present(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_process_that_is_dead_and_waits_to_be_reaped_does_not_run(tmp_path):
    path = tmp_path / "file"
    process = subprocess.Popen(["sleep", "1000"])
    started_at = psutil.Process(process.pid).create_time()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(f"{process.pid}\n")
    os.utime(path, (started_at, started_at))
    with present(str(path), "ours"):
        assert path.read_text() == "ours"
    process.wait()


def scheduler_of(pid, start, **place):
    content = json.loads(scheduler_file_text("tcp://10.0.0.5:8786", incarnation="ab", package="0.1", python="3.11"))
    return json.dumps({**content, "pid": pid, "process": {**content["process"], "start": start, **place}})


def ticks_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def test_a_scheduler_file_of_a_scheduler_that_runs_is_read_and_left_alone(tmp_path, running):
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_of(running[0], ticks_of(running[0])))
    assert read_scheduler_file(str(path)) == "tcp://10.0.0.5:8786"
    with pytest.raises(FileExistsError, match=f"pid {running[0]}; stop that program"), present(str(path), "ours"):
        pass


@pytest.mark.parametrize("what", ["dead", "another"])
def test_a_scheduler_file_of_a_scheduler_that_has_ended_is_stale(tmp_path, running, what):
    path = tmp_path / "scheduler.json"
    pid = running[0] if what == "another" else 999_999_999
    path.write_text(scheduler_of(pid, ticks_of(running[0]) - 1))
    with pytest.raises(NoScheduler, match=f"is stale: its scheduler, pid {pid}, has ended"):
        read_scheduler_file(str(path))
    with present(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_scheduler_file_from_elsewhere_is_not_judged(tmp_path, running):
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_of(running[0], ticks_of(running[0]) - 1, place="another machine"))
    assert read_scheduler_file(str(path)) == "tcp://10.0.0.5:8786"
    with present(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_file_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(UnavailableError, match=r"cannot write .*: No such file or directory"),
        present(f"{tmp_path}/a/b", ""),
    ):
        pass
    for path in (str(tmp_path), f"{tmp_path}/a/b"):
        with pytest.raises(UnavailableError, match="cannot write"):
            check_writable(path)
    check_writable(str(tmp_path / "file"))


def test_no_file_is_asked_for():
    with present(None, "text"):
        pass


def test_a_scheduler_file_names_the_address(tmp_path):
    path = str(tmp_path / "scheduler.json")
    assert read_scheduler_file(path) is None
    text = scheduler_file_text("tcp://10.0.0.5:8786", incarnation="ab", package="0.1", python="3.11")
    with present(path, text):
        assert read_scheduler_file(path) == "tcp://10.0.0.5:8786"
    assert json.loads(text)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "invalid JSON at byte 1"),
        (b"\xff\xfe", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[]", "contains no address"),
        (b"{}", "contains no address"),
        (b'{"address": 5}', "contains no address"),
        (b" " * 2_000_000 + b"{}", "longer than"),
    ],
)
def test_what_is_no_scheduler_file(tmp_path, content, reason):
    path = tmp_path / "scheduler.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"is not a scheduler file: .*{reason}"):
        read_scheduler_file(str(path))


def test_a_file_that_is_just_being_written_is_waited_for(tmp_path):
    path = tmp_path / "scheduler.json"
    path.write_bytes(b"")
    assert read_scheduler_file(str(path)) is None


def test_a_scheduler_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UnavailableError, match=r"cannot read the scheduler file .*: Is a directory"):
        read_scheduler_file(str(tmp_path))


def test_a_process_that_is_about_to_end_removes_what_is_its_own(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    with present(str(path), "ours"), present(str(other), "ours"):
        other.unlink()
        other.write_text("somebody else's")
        remove_present()
        assert os.listdir(tmp_path) == ["other"]
        path.write_text("somebody else's")
    remove_present()
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]
