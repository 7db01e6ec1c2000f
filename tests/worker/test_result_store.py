"""The store: thawed once, gone when dropped, and whatever was spilled meanwhile, what was put is what is read."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from trio_dask.errors import SpillError
from trio_dask.protocol.pickling import dump_value, load_value
from trio_dask.worker import spill_files
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.result_store import WORTH_A_FILE_BYTES, ResultStore
from trio_dask.worker.spill_directory import SpillDirectory
from trio_dask.worker.spill_files import Output, SpillDisk

PATIENCE_S = 10
MB = 10**6


class Slow:
    """Stops while it is unpickled, until the test lets it go on."""

    begun = threading.Semaphore(0)
    go_on = threading.Event()

    def __init__(self) -> None:
        self.there = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.begun.release()
        assert self.go_on.wait(PATIENCE_S)
        self.__dict__.update(state)


@pytest.fixture
def store() -> Any:
    Slow.begun = threading.Semaphore(0)
    Slow.go_on = threading.Event()
    store = ResultStore()
    store.put_frames("x", dump_value(Slow()), 100)
    yield store
    Slow.go_on.set()


def read(store: ResultStore, into: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(store["x"]))
    thread.start()
    return thread


def test_two_that_need_a_frozen_value_at_once_share_one_object(store: ResultStore) -> None:
    values: list[Any] = []
    first = read(store, values)
    assert Slow.begun.acquire(timeout=PATIENCE_S)
    second = read(store, values)
    Slow.go_on.set()
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert values[0] is values[1] is store["x"]
    assert not Slow.begun.acquire(blocking=False)  # nobody has unpickled it a second time


def test_a_value_dropped_while_it_is_thawed_reaches_its_reader_and_does_not_come_back(store: ResultStore) -> None:
    values: list[Any] = []
    reader = read(store, values)
    assert Slow.begun.acquire(timeout=PATIENCE_S)
    store.drop(["x", "unknown"])
    Slow.go_on.set()
    reader.join(PATIENCE_S)
    assert values[0].there
    assert "x" not in store
    with pytest.raises(KeyError):
        store["x"]


def test_a_frozen_value_is_passed_on_as_it_came(store: ResultStore) -> None:
    assert store.dump("x") == dump_value(Slow())
    assert not Slow.begun.acquire(blocking=False)


def test_none_is_a_value() -> None:
    store = ResultStore()
    store.put_frames("x", dump_value(None), 4)
    assert store["x"] is None
    store.put("y", None, 4)
    assert store["y"] is None
    assert sorted(store) == ["x", "y"]


# ------------------------------------------------------------------------------------------ with a disk


@pytest.fixture
def folder(tmp_path: Path) -> SpillDirectory:
    return SpillDirectory(str(tmp_path))


@pytest.fixture
def spilling(folder: SpillDirectory) -> Any:
    disk = SpillDisk(folder)
    yield ResultStore(disk)
    disk.close()
    assert list(folder.base.iterdir()) == []


def put(store: ResultStore, *keys: str, nbytes: int = MB) -> None:
    for number, key in enumerate(keys):
        store.put(key, np.full(nbytes // 8, float(number)), nbytes)


def on_disk(store: ResultStore) -> list[str]:
    return [key for key in store if store.is_spilled(key)]


def test_the_least_recently_used_go_first_and_no_more_than_needed(spilling: ResultStore) -> None:
    put(spilling, "a", "b", "c", "d")
    assert spilling["a"][0] == 0
    assert spilling.dump("b")
    assert spilling.spill(2 * MB) == (2 * MB, "")
    assert on_disk(spilling) == ["c", "d"]
    assert (spilling.spilled_bytes, spilling.spilled_count, spilling.large_bytes) == (2 * MB, 2, 2 * MB)


def test_small_values_are_not_worth_a_file(spilling: ResultStore) -> None:
    spilling.put("small", b"x", WORTH_A_FILE_BYTES - 1)
    spilling.put_frames("frozen", dump_value(b"x"), WORTH_A_FILE_BYTES - 1)
    spilling.put("large", bytes(WORTH_A_FILE_BYTES), WORTH_A_FILE_BYTES)
    assert spilling.spill(MB).nbytes == WORTH_A_FILE_BYTES
    assert on_disk(spilling) == ["large"]


def test_what_is_at_hand_in_pickled_form_is_so_until_it_is_used_or_spilled(spilling: ResultStore) -> None:
    put(spilling, "made here")
    for key in ("used", "spilled"):
        spilling.put_frames(key, dump_value(np.zeros(MB // 8)), MB)
    assert [key for key in spilling if spilling.is_pickled(key)] == ["used", "spilled"]
    assert spilling["used"][0] == 0
    assert spilling.spill(3 * MB, also_used=True).nbytes == 3 * MB
    assert [key for key in spilling if spilling.is_pickled(key)] == []
    assert not spilling.is_pickled("never there")


def test_a_value_that_is_in_use_stays_and_one_that_must_go_comes_back_as_the_same_object(spilling: ResultStore) -> None:
    put(spilling, "a", "b")
    used = spilling["a"]
    assert spilling.spill(2 * MB).nbytes == MB
    assert on_disk(spilling) == ["b"]
    assert spilling.spill(MB, also_used=True).nbytes == MB
    assert spilling["a"] is used
    del used
    assert spilling.spill(MB).nbytes == MB  # its file is there still
    assert spilling["a"][0] == 0


def test_a_spilled_value_is_passed_on_as_its_file_and_not_loaded(spilling: ResultStore) -> None:
    Slow.go_on.clear()
    spilling.put_frames("x", dump_value([Slow(), bytes(MB)]), MB)
    spilling.spill(MB)
    frames = spilling.dump("x")
    assert sum(map(len, frames)) >= MB
    assert on_disk(spilling) == ["x"]
    spilling.drop(["x"])
    spilling.remove_garbage()
    Slow.go_on.set()
    assert load_value(frames)[1] == bytes(MB)  # what is being sent outlives the file


class Unwilling:
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_cannot_be_pickled_stays_in_memory_and_holds_nothing_up(spilling: ResultStore) -> None:
    spilling.put("never", Unwilling(), MB)
    put(spilling, "a")
    assert spilling.spill(10 * MB) == (MB, "")
    assert spilling.spill(10 * MB) == (0, "")
    assert on_disk(spilling) == ["a"]
    assert isinstance(spilling["never"], Unwilling)


def test_what_is_unpickled_to_a_copy_passes_the_gate_and_what_is_used_as_it_is_does_not(folder: SpillDirectory) -> None:
    passed: list[int] = []

    def take(nbytes: int) -> bool:
        passed.append(nbytes)
        return True

    reservations = Reservations(take, lambda: None)
    store = ResultStore(SpillDisk(folder), reservations=reservations, reserve_from=MB)
    store.put_frames("text", dump_value(["x" * 2 * MB]), 2 * MB)
    store.put_frames("array", dump_value(np.zeros(2 * MB // 8)), 2 * MB)
    assert len(store["array"]) == 2 * MB // 8
    assert passed == []
    assert len(store["text"][0]) == 2 * MB
    assert passed == [pytest.approx(2 * MB, rel=0.01)]
    assert store.copied_bytes("text") == pytest.approx(2 * MB, rel=0.01)
    assert store.copied_bytes("array") < 1000
    assert store.spill(4 * MB).nbytes == 4 * MB
    assert store.copied_bytes("text") == 0  # its file is passed on
    assert len(store["text"][0]) == 2 * MB
    assert len(passed) == 2


def test_what_is_read_while_it_is_written_stays_in_memory_and_has_its_file(
    spilling: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spilling, "a")
    write_piece = Output.write

    def write(output: Output, data: memoryview) -> int:
        assert spilling["a"][0] == 0
        return write_piece(output, data)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", write)
        assert spilling.spill(MB).nbytes == 0
    assert on_disk(spilling) == []
    monkeypatch.delattr(Output, "__init__")  # the next time nothing needs to be written
    assert spilling.spill(MB).nbytes == MB


def test_what_is_dropped_while_it_is_written_leaves_nothing(
    spilling: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spilling, "a")
    write_piece = Output.write

    def write(output: Output, data: memoryview) -> int:
        spilling.drop(["a"])
        return write_piece(output, data)

    monkeypatch.setattr(Output, "write", write)
    assert spilling.spill(MB) == (0, "")
    assert spilling.has_garbage
    spilling.remove_garbage()
    assert (spilling.spilled_bytes, spilling.large_bytes) == (0, 0)


@pytest.mark.parametrize("access", ["__getitem__", "dump"])
def test_whoever_reads_a_value_that_is_just_replaced_gets_the_new_one(
    spilling: ResultStore, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    put(spilling, "a")
    spilling.spill(MB)
    read = SpillDisk.read

    def replace_and_read(disk: SpillDisk, file: Any) -> Any:
        spilling.put("a", "new", 100)
        spilling.remove_garbage()
        return read(disk, file)

    monkeypatch.setattr(SpillDisk, "read", replace_and_read)
    value = getattr(spilling, access)("a")
    assert (load_value(value) if access == "dump" else value) == "new"
    assert spilling.take_lost() == ()


def test_a_file_that_makes_room_while_it_is_read_is_no_loss_if_the_value_is_in_memory_again(
    folder: SpillDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SpillDisk(folder, 2 * MB)
    store = ResultStore(disk)
    store.put("a", bytes(MB), MB)
    store.spill(MB)
    read = SpillDisk.read

    def be_overtaken(disk: SpillDisk, file: Any) -> Any:
        monkeypatch.setattr(SpillDisk, "read", read)
        assert store["a"] == bytes(MB)  # a task needs it just now: it is in memory, and keeps its file
        store._drop_reusable_files(disk)  # which makes room for another one
        return read(disk, file)

    monkeypatch.setattr(SpillDisk, "read", be_overtaken)
    assert load_value(store.dump("a")) == bytes(MB)
    assert "a" in store
    assert store.take_lost() == ()
    disk.close()


def test_sending_a_value_that_is_just_replaced_does_not_hide_the_new_one_from_the_disk(spilling: ResultStore) -> None:
    put(spilling, "a")
    lock = spilling._lock

    class Replaced:
        """A lock before which somebody else was."""

        def __enter__(self) -> None:
            spilling._lock = lock
            put(spilling, "a", nbytes=2 * MB)
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            lock.release()

    spilling._lock = Replaced()  # type: ignore[assignment]  # all that a `with` needs
    spilling.dump("a")
    assert spilling.spill(MB).nbytes == 2 * MB


def test_a_value_whose_file_is_gone_is_reported_lost_once(spilling: ResultStore, folder: SpillDirectory) -> None:
    put(spilling, "a", "b")
    spilling.spill(2 * MB)
    shutil.rmtree(folder.make())
    for access in (spilling.__getitem__, spilling.dump):
        key = "a" if access == spilling.__getitem__ else "b"
        with pytest.raises(KeyError):
            access(key)
    assert spilling.take_lost() == ("a", "b")
    assert spilling.take_lost() == ()
    assert (len(spilling), spilling.spilled_bytes) == (0, 0)


def test_a_value_that_cannot_be_read_now_is_named_and_may_be_read_later(
    spilling: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spilling, "a")
    spilling.spill(MB)

    def broken(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        for access in (spilling.__getitem__, spilling.dump):
            with pytest.raises(SpillError, match=r"cannot read 'a' back .*Input/output error"):
                access("a")
    assert spilling["a"][0] == 0
    assert spilling.take_lost() == ()


def test_on_a_full_disk_everything_stays_readable(spilling: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(spilling, "a", "b")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", full)
        nbytes, problem = spilling.spill(2 * MB)
    assert nbytes == 0
    assert "No space left on device" in problem
    assert [spilling[key][0] for key in "ab"] == [0, 1]
    assert spilling.spill(2 * MB) == (2 * MB, "")


def test_a_bounded_disk_gives_up_the_files_of_what_was_read_back(folder: SpillDirectory) -> None:
    disk = SpillDisk(folder, max_bytes=250_000)
    store = ResultStore(disk)
    for key in "abc":
        store.put(key, [key * 100_000], 100_000)
    assert store.spill(200_000).nbytes == 200_000
    assert store["a"] == ["a" * 100_000]
    assert store.spill(100_000).nbytes == 100_000  # c
    assert on_disk(store) == ["b", "c"]
    nbytes, problem = store.spill(100_000)
    assert nbytes == 0
    assert "limit" in problem
    disk.close()


def test_pressure_is_told_when_values_come_and_when_they_come_back(folder: SpillDirectory) -> None:
    pressed: list[str] = []
    disk = SpillDisk(folder)
    store = ResultStore(disk, high_bytes=2.5 * MB, request_check=lambda: pressed.append("!"))
    put(store, "a", "b")
    assert not pressed
    put(store, "c")
    assert pressed.pop()
    store.spill(MB)
    put(store, "d", nbytes=MB // 4)
    assert not pressed
    assert store["a"] is not None
    assert pressed
    disk.close()


KINDS = st.sampled_from(["number", "text", "array", "large array", "objects", "empty array"])
KEYS = st.sampled_from([f"k{number}" for number in range(6)])


def make(kind: str, seed: int) -> Any:
    match kind:
        case "number":
            return seed
        case "text":
            return str(seed) * WORTH_A_FILE_BYTES
        case "array":
            return np.full(20_000, seed)
        case "large array":
            return np.full(60_000, seed)
        case "empty array":
            return np.zeros((0, seed))
        case _:
            return [{"seed": seed, "part": [np.full(2000, seed), "x" * 10_000]} for _ in range(3)]


def look(value: Any) -> Any:
    """The value in a form that can be compared."""
    return [bytes(frame) for frame in dump_value(value)]


class StoreModel(RuleBasedStateMachine):
    """Whatever is put, spilled, read, sent, dropped and lost: a dict says what is there."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.folder = SpillDirectory(str(self.base))
        self.disk = SpillDisk(self.folder, max_bytes=2 * MB)
        self.store = ResultStore(self.disk, high_bytes=MB)
        self.model: dict[str, tuple[Any, int]] = {}
        self.mapping_bytes = spill_files.MAP_BYTES
        spill_files.MAP_BYTES = 100_000  # so that both ways of reading are taken

    def teardown(self) -> None:
        spill_files.MAP_BYTES = self.mapping_bytes
        self.store.drop(list(self.store))
        self.store.remove_garbage()
        assert [path for path in self.base.rglob("*") if path.is_file()] == []
        assert (self.store.spilled_bytes, self.store.spilled_count, self.store.large_bytes) == (0, 0, 0)
        self.disk.close()
        assert list(self.base.iterdir()) == []
        self.base.rmdir()

    @rule(key=KEYS, kind=KINDS, seed=st.integers(0, 9), frozen=st.booleans())
    def put(self, key: str, kind: str, seed: int, frozen: bool) -> None:
        value = make(kind, seed)
        frames = dump_value(value)
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        self.model[key] = look(value), nbytes
        if frozen:
            self.store.put_frames(key, [bytearray(frame) for frame in frames], nbytes)
        else:
            self.store.put(key, value, nbytes)

    @rule(target=held, key=KEYS)
    def read(self, key: str) -> Any:
        if key not in self.model:
            with pytest.raises(KeyError):
                self.store[key]
            return None
        value = self.store[key]
        assert look(value) == self.model[key][0]
        assert self.store[key] is value
        return value

    @rule(target=held, key=KEYS)
    def send(self, key: str) -> Any:
        if key not in self.model:
            with pytest.raises(KeyError):
                self.store.dump(key)
            return None
        frames = self.store.dump(key)
        assert look(load_value(frames)) == self.model[key][0]
        return frames

    @rule(user=consumes(held))
    def let_go(self, user: Any) -> None:
        """Whoever has read a value or has sent it is done."""

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.store.drop([key])
        self.model.pop(key, None)

    @rule(nbytes=st.sampled_from([1, MB // 4, 100 * MB]), also_used=st.booleans())
    def spill(self, nbytes: int, also_used: bool) -> None:
        before = self.store.large_bytes
        freed, problem = self.store.spill(nbytes, also_used=also_used)
        assert self.store.large_bytes == before - freed
        if also_used and not problem:
            assert self.store.large_bytes == 0 or freed >= nbytes

    @rule(key=KEYS)
    def lose(self, key: str) -> None:
        if not self.store.is_spilled(key):
            return
        os.unlink(self.store._entries[key].file.path)
        with pytest.raises(KeyError):
            self.store.dump(key)
        assert self.store.take_lost() == (key,)
        del self.model[key]

    @rule()
    def remove_garbage(self) -> None:
        self.store.remove_garbage()
        assert not self.store.has_garbage

    @invariant()
    def bounds_and_counts_hold(self) -> None:
        assert set(self.store) == set(self.model)
        spilled = [self.model[key][1] for key in on_disk(self.store)]
        assert (self.store.spilled_bytes, self.store.spilled_count) == (sum(spilled), len(spilled))
        large = sum(nbytes for _, nbytes in self.model.values() if nbytes >= WORTH_A_FILE_BYTES)
        assert self.store.large_bytes == large - sum(spilled)
        used = sum(path.stat().st_size for path in self.base.rglob("*") if path.is_file())
        assert used <= self.disk.used_bytes <= 2 * MB


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_readers_writers_and_the_one_that_spills_do_not_get_in_each_others_way(folder: SpillDirectory) -> None:
    disk = SpillDisk(folder)
    store = ResultStore(disk)
    keys = [f"k{number}" for number in range(20)]
    stop = threading.Event()
    failures: list[Exception] = []

    def work(step: Any) -> None:
        try:
            while not stop.is_set():
                step()
        except Exception as error:  # it is raised where the threads are waited for
            failures.append(error)
            stop.set()

    def read_all() -> None:
        for number, key in enumerate(keys):
            try:
                value = store[key]
            except KeyError:
                continue  # not there yet, or just replaced
            assert value[0] == value[-1] == number

    threads = [threading.Thread(target=work, args=(step,)) for step in (read_all, read_all, lambda: store.spill(MB))]
    threads.append(threading.Thread(target=work, args=(lambda: [load_value(store.dump(key)) for key in store],)))
    for number, key in enumerate(keys):
        store.put(key, np.full(20_000, number), 160_000)
    for thread in threads:
        thread.start()
    for turn in range(300):
        number = turn % len(keys)
        array = np.full(20_000, number)
        if turn % 2:
            store.put(keys[number], array, 160_000)
        else:
            store.put_frames(keys[number], [bytearray(frame) for frame in dump_value(array)], 160_000)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    assert store.take_lost() == ()
    while store.spill(100 * MB, also_used=True).nbytes:
        pass
    assert store.large_bytes == 0
    assert store.spilled_bytes == 20 * 160_000
    disk.close()
