import json
import os
from pathlib import Path

import pytest

from trio_dask.errors import NoScheduler, UnavailableError
from trio_dask.owned_files import keep_file
from trio_dask.scheduler_file import FoundScheduler, read_scheduler_file, scheduler_file_text


def scheduler_of(pid: int, start: float, **more: object) -> str:
    content = json.loads(scheduler_file_text("tcp://10.0.0.5:8786", incarnation="ab", package="0.1", python="3.11"))
    return json.dumps({**content, "pid": pid, "process": {**content["process"], "start": start, **more}})


def ticks_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def test_a_scheduler_file_of_a_scheduler_that_runs_is_read_and_left_alone(
    tmp_path: Path, running: tuple[int, float]
) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_of(running[0], ticks_of(running[0])))
    assert read_scheduler_file(str(path)) == FoundScheduler("tcp://10.0.0.5:8786", None)
    with pytest.raises(FileExistsError, match=f"pid {running[0]}; stop that program"), keep_file(str(path), "ours"):
        pass


@pytest.mark.parametrize("what", ["dead", "another"])
def test_a_scheduler_file_of_a_scheduler_that_has_ended_is_stale(
    tmp_path: Path, running: tuple[int, float], what: str
) -> None:
    path = tmp_path / "scheduler.json"
    pid = running[0] if what == "another" else 999_999_999
    path.write_text(scheduler_of(pid, ticks_of(running[0]) - 1))
    with pytest.raises(NoScheduler, match=f"is stale: its scheduler, pid {pid}, has ended"):
        read_scheduler_file(str(path))
    with keep_file(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_scheduler_file_from_elsewhere_is_not_judged(tmp_path: Path, running: tuple[int, float]) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_of(running[0], ticks_of(running[0]) - 1, space="another machine"))
    assert read_scheduler_file(str(path)) == FoundScheduler("tcp://10.0.0.5:8786", None)
    with keep_file(str(path), "ours"):
        assert path.read_text() == "ours"


def test_a_scheduler_file_names_the_address(tmp_path: Path) -> None:
    path = str(tmp_path / "scheduler.json")
    assert read_scheduler_file(path) is None
    text = scheduler_file_text("tcp://10.0.0.5:8786", incarnation="ab", package="0.1", python="3.11")
    with keep_file(path, text):
        assert read_scheduler_file(path) == FoundScheduler("tcp://10.0.0.5:8786", None)
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
def test_what_is_no_scheduler_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_bytes(content)
    with pytest.raises(UnavailableError, match=f"is not a scheduler file: .*{reason}"):
        read_scheduler_file(str(path))


def test_a_file_that_is_just_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_bytes(b"")
    assert read_scheduler_file(str(path)) is None


def test_a_scheduler_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot read the scheduler file .*: Is a directory"):
        read_scheduler_file(str(tmp_path))


def test_a_link_leads_to_no_key(tmp_path: Path) -> None:
    path, link = tmp_path / "scheduler.json", tmp_path / "link.json"
    content = json.loads(scheduler_file_text("tcp://10.0.0.5:8786", incarnation="ab", package="0.1", python="3.11"))
    path.write_text(json.dumps(content))
    link.symlink_to(path)
    assert read_scheduler_file(str(link)) == FoundScheduler("tcp://10.0.0.5:8786", None)
    path.write_text(json.dumps({**content, "cluster_key": "00" * 32}))
    path.chmod(0o600)
    assert read_scheduler_file(str(path)) is not None
    with pytest.raises(UnavailableError, match=r"link\.json .* is a symbolic link: name the file itself"):
        read_scheduler_file(str(link))


def test_a_link_that_is_replaced_by_a_file_meanwhile_leads_to_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "scheduler.json", tmp_path / "link.json"
    path.write_text(json.dumps({"address": "tcp://10.0.0.5:8786", "cluster_key": "00" * 32}))
    path.chmod(0o600)
    link.symlink_to(path)
    fstat = os.fstat

    def replace_it(fd: int) -> os.stat_result:
        if link.is_symlink() and os.path.samestat(fstat(fd), path.stat()):
            link.unlink()
            link.write_text("")
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", replace_it)
    with pytest.raises(UnavailableError, match=r"link\.json .* is a symbolic link: name the file itself"):
        read_scheduler_file(str(link))
    assert not link.is_symlink()
