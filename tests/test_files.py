import json
import os

import pytest

from trio_dask.errors import UsageError
from trio_dask.files import check_writable, present, read_scheduler_file, scheduler_file_text


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


def test_a_file_that_cannot_be_written_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*: No such file or directory"), present(f"{tmp_path}/a/b", ""):
        pass
    for path in (str(tmp_path), f"{tmp_path}/a/b"):
        with pytest.raises(UsageError, match="cannot write"):
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
        (b"[]", "names no address"),
        (b"{}", "names no address"),
        (b'{"address": 5}', "names no address"),
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
    with pytest.raises(UsageError, match=r"cannot read the scheduler file .*: Is a directory"):
        read_scheduler_file(str(tmp_path))
