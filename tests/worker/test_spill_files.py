"""Files of spilled values: what is written is what is read, bounds hold, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import tracemalloc
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.kit import files
from trio_dask.errors import SpillError, UnavailableError
from trio_dask.protocol.pickling import dump_value, load_value
from trio_dask.worker import spill_files
from trio_dask.worker.spill_directory import SpillDirectory, check_base, remove_leftovers
from trio_dask.worker.spill_files import Output, SpillDisk, SpilledFile


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    disk = SpillDisk(SpillDirectory(str(tmp_path)))
    yield disk
    disk.close()
    assert list(tmp_path.iterdir()) == []


frame_sizes = st.lists(
    st.one_of(st.integers(0, 300), st.sampled_from([4096, spill_files.MAP_BYTES, 3 * spill_files.MAP_BYTES + 1]))
)


@given(
    sizes=frame_sizes,
    piece=st.sampled_from([64, 1000, spill_files.PIECE_BYTES]),
    gathered=st.sampled_from([1, 100, 256]),
)
@settings(max_examples=60, deadline=None)
def test_frames_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], piece: int, gathered: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill_files, "PIECE_BYTES", piece)
        patch.setattr(spill_files, "GATHERED_BYTES", gathered)
        disk = SpillDisk(SpillDirectory(str(tmp_path_factory.mktemp("spill"))))
        frames = [os.urandom(size) for size in sizes]
        file = disk.write(frames)
        assert os.stat(file.path).st_size == file.nbytes == disk.used_bytes
        assert [bytes(frame) for frame in disk.read(file)] == frames
        disk.close()


@pytest.mark.parametrize("length", [1000, 100_000], ids=["read", "mapped"])
def test_what_is_read_can_be_written_to_without_changing_the_file(disk: SpillDisk, length: int) -> None:
    file = disk.write(dump_value(np.arange(length)))
    first = load_value(disk.read(file))
    first[:] = 7
    again = load_value(disk.read(file))
    assert again.sum() == length * (length - 1) // 2
    assert first.flags.writeable
    assert again.flags.aligned


def test_an_array_that_could_not_be_written_to_cannot_be_afterwards(disk: SpillDisk) -> None:
    array = np.arange(100_000)
    array.flags.writeable = False
    assert not load_value(disk.read(disk.write(dump_value(array)))).flags.writeable


def test_an_array_read_back_is_the_file_and_not_a_copy(disk: SpillDisk) -> None:
    array = load_value(disk.read(disk.write(dump_value(np.zeros(4_000_000)))))
    mapping = Path("/proc/self/smaps").read_text().split(disk.directory.make())[1]
    (copied,) = (line.split()[1] for line in mapping.split("VmFlags")[0].splitlines() if line.startswith("Anonymous:"))
    assert copied == "0"
    assert array.sum() == 0


def test_only_the_owner_can_look_into_the_folder(disk: SpillDisk, tmp_path: Path) -> None:
    file = disk.write([b"secret"])
    assert os.stat(disk.directory.make()).st_mode & 0o777 == 0o700
    assert os.stat(file.path).st_mode & 0o777 == 0o600


def test_the_limit_holds_and_counts_what_is_removed_but_still_mapped(tmp_path: Path) -> None:
    disk = SpillDisk(SpillDirectory(str(tmp_path)), max_bytes=1_000_000)
    file = disk.write([bytes(600_000)])
    with pytest.raises(SpillError, match=r"limit of 976\.56 kiB"):
        disk.write([bytes(600_000)])
    mapped = disk.read(file)
    disk.remove(file)
    with pytest.raises(SpillError, match="limit"):
        disk.write([bytes(600_000)])
    assert bytes(mapped[0]) == bytes(600_000)
    assert files(tmp_path) == []
    del mapped
    assert disk.used_bytes == 0
    disk.write([bytes(600_000)])
    disk.close()


def test_there_is_a_limit_to_mappings_and_beyond_it_values_are_read(
    disk: SpillDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_files, "MAX_MAPPINGS", 1)
    file = disk.write([bytes(spill_files.MAP_BYTES)])
    mapped, read = disk.read(file), disk.read(file)
    assert type(mapped[0].obj) is not bytearray
    assert type(read[0].obj) is bytearray
    del mapped
    assert type(disk.read(file)[0].obj) is not bytearray


class FullDisk:
    """Takes this many bytes and then says that it is full, as a real one does: in the middle of a write."""

    def __init__(self, nbytes: int, code: int = errno.ENOSPC) -> None:
        self.left = nbytes
        self.code = code

    def write(self, output: FileIO, data: memoryview) -> int:
        if not self.left:
            raise OSError(self.code, os.strerror(self.code))
        part = data[: self.left]
        self.left -= len(part)
        return FileIO.write(output, part)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_or_broken_disk_is_named_and_keeps_no_half_of_a_file(
    disk: SpillDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        full = FullDisk(100_000, code)
        patch.setattr(Output, "write", lambda output, data: full.write(output, data))
        with pytest.raises(SpillError, match=os.strerror(code)) as caught:
            disk.write([bytes(300_000)])
    assert str(tmp_path) in str(caught.value)
    assert files(tmp_path) == []
    assert disk.used_bytes == 0
    assert bytes(disk.read(disk.write([b"goes on"]))[0]) == b"goes on"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can mount")
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        disk = SpillDisk(SpillDirectory(str(tmp_path)))
        assert disk.directory.in_memory()
        kept = disk.write([bytes(500_000)])
        with pytest.raises(SpillError, match="No space left"):
            disk.write([bytes(800_000)])
        assert bytes(disk.read(kept)[0]) == bytes(500_000)
        assert len(files(tmp_path)) == 1
        disk.close()
    finally:
        gc.collect()
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_is_removed_under_it_is_made_anew(disk: SpillDisk) -> None:
    lost = disk.write([b"x"])
    os.unlink(lost.path)
    os.rmdir(disk.directory.make())
    with pytest.raises(FileNotFoundError):
        disk.read(lost)
    assert bytes(disk.read(disk.write([b"y"]))[0]) == b"y"


@pytest.mark.parametrize("size", [1000, spill_files.MAP_BYTES])
def test_a_file_that_was_cut_off_is_not_read(disk: SpillDisk, size: int) -> None:
    file = disk.write([bytes(size)])
    os.truncate(file.path, 10)
    with pytest.raises(FileNotFoundError):
        disk.read(file)
    assert disk.used_bytes == file.nbytes


def test_after_the_end_nothing_is_written_and_what_is_mapped_stays(tmp_path: Path) -> None:
    disk = SpillDisk(SpillDirectory(str(tmp_path)))
    array = load_value(disk.read(disk.write(dump_value(np.ones(100_000)))))
    disk.close()
    disk.close()
    assert list(tmp_path.iterdir()) == []
    assert array.sum() == 100_000
    with pytest.raises(SpillError, match="leaving"):
        disk.write([b"x"])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_under_way_at_the_end_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SpillDisk(SpillDirectory(str(tmp_path)))
    monkeypatch.setattr(spill_files, "PIECE_BYTES", 1000)
    monkeypatch.setattr(spill_files, "GATHERED_BYTES", 10)
    write_piece, written = Output.write, 0

    def write(output: Output, data: memoryview) -> int:
        nonlocal written
        count = write_piece(output, data)
        written += count
        disk.close()
        return count

    monkeypatch.setattr(Output, "write", write)
    with pytest.raises(SpillError, match="leaving"):
        disk.write([bytes(100_000)])
    assert written == 1000
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_written_while_it_is_pickled_and_is_what_its_frames_would_be(disk: SpillDisk) -> None:
    value = {"numbers": np.arange(100_000), "raw": b"x" * 3_000_000, "texts": [str(n) for n in range(10_000)]}
    tracemalloc.start()
    try:
        file = disk.write_value(value, 4_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_500_000
    assert disk.used_bytes == file.nbytes == os.stat(file.path).st_size
    loaded = load_value(disk.read(file))
    np.testing.assert_array_equal(loaded["numbers"], value["numbers"])
    assert (loaded["raw"], loaded["texts"]) == (value["raw"], value["texts"])


def test_a_disk_that_fills_up_while_a_value_is_pickled_is_named_and_no_fault_of_the_value(
    disk: SpillDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(output: Output, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Output, "write", write)
    with pytest.raises(SpillError, match="No space left"):
        disk.write_value([bytes([n]) * 10_000 for n in range(255)], 2_550_000)
    assert disk.used_bytes == 0


@pytest.mark.parametrize("value", [[bytes([n]) * 10_000 for n in range(255)], "ü" * 2_000_000])
def test_a_disk_that_fails_before_a_value_is_pickled_is_named_and_no_fault_of_the_value(
    disk: SpillDisk, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    def truncate(output: Output, size: int | None = None) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Output, "truncate", truncate)
    with pytest.raises(SpillError, match="Input/output error"):
        disk.write_value(value, 2_550_000)
    assert disk.used_bytes == 0


# ------------------------------------------------------------------------------------------ whose folder is it

LEAVE = """
import sys
from trio_dask.worker.spill_directory import SpillDirectory
from trio_dask.worker.spill_files import SpillDisk
print(SpillDisk(SpillDirectory(sys.argv[1])).write([b"left behind"]).path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    root = Path(spill_files.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    own = SpillDirectory(str(tmp_path))
    folder = Path(own.make())
    assert remove_leftovers(tmp_path) == []
    assert left.exists()
    process.kill()
    process.communicate()
    assert remove_leftovers(tmp_path) == [left.parent]
    assert list(tmp_path.iterdir()) == [folder]
    own.remove()


def test_a_process_number_that_is_used_again_is_told_by_the_time_of_its_start(tmp_path: Path) -> None:
    ours = Path(SpillDirectory(str(tmp_path)).make())
    machine, boot = ours.name.removeprefix("trio-dask-").split("-")[:2]
    earlier = tmp_path / f"trio-dask-{machine}-{boot}-{os.getpid()}-1-abc"
    last_boot = tmp_path / f"trio-dask-{machine}-000000{boot[6:]}-{os.getpid()}-1-abc"
    container = tmp_path / f"trio-dask-{machine}-{boot[:6]}000000-{os.getpid()}-1-abc"
    elsewhere = tmp_path / f"trio-dask-000000000000-{boot}-{os.getpid()}-1-abc"
    foreign = tmp_path / "trio-dask-of-the-user"
    for folder in (earlier, last_boot, container, elsewhere, foreign):
        folder.mkdir()
    link = tmp_path / f"trio-dask-{machine}-{boot}-{os.getpid()}-2-abc"
    link.symlink_to(foreign)
    assert set(remove_leftovers(tmp_path)) == {earlier, last_boot}
    assert set(tmp_path.iterdir()) == {ours, container, elsewhere, foreign, link}


def test_a_base_that_is_not_there_is_made_and_one_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    check_base(str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=r"cannot write to .*file/folder: "):
        check_base(str(tmp_path / "file" / "folder"))
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_a_mapping_that_fails_is_not_counted(disk: SpillDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, buffers: list[Any], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file: SpilledFile = disk.write([bytes(spill_files.MAP_BYTES)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        with pytest.raises(OSError, match="Input/output error"):
            disk.read(file)
    disk.remove(file)
    disk.remove_garbage()
    assert disk.used_bytes == 0
