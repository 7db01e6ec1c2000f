"""What a worker does when memory becomes scarce: the monitor on its own, and a whole worker."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.worker.kit import PATIENCE_S, Ref, Session, ask, call, files, open_data, open_worker, put
from trio_dask.comm.buffer_pool import HUGE_PAGE_BYTES, BufferPool
from trio_dask.config import WorkerSettings
from trio_dask.errors import UnavailableError
from trio_dask.protocol.messages import (
    Absent,
    Fetch,
    Free,
    InputMissing,
    Lost,
    Put,
    PutDone,
    RunFailed,
    RunFinished,
    Scattered,
    Value,
)
from trio_dask.protocol.pickling import load_value
from trio_dask.worker import memory_monitor
from trio_dask.worker.core import memory_policy
from trio_dask.worker.core.memory_policy import MemoryLimits
from trio_dask.worker.data_server import DataServer
from trio_dask.worker.memory_monitor import MemoryMonitor, WorkerCallbacks, keep_nothing_unwatched
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.peer_channels import PeerChannels
from trio_dask.worker.process_memory import ProcessMemory, trim
from trio_dask.worker.result_store import ResultStore
from trio_dask.worker.service import run_worker
from trio_dask.worker.spill_files import Output, SpillDisk, SpilledFile
from trio_dask.worker.task_context import WorkerHandle

MB = 10**6
LIMIT = 100 * MB


def folders(base: Path) -> list[Path]:
    return list(base.iterdir())


def test_the_memory_of_this_process_is_read() -> None:
    process = ProcessMemory()
    before = process.used_bytes()
    array = np.ones(50 * MB // 8)
    grown = process.used_bytes() - before
    assert 45 * MB < grown < 80 * MB, array.nbytes
    trim()
    process.close()
    process.close()


# ------------------------------------------------------------------------------------------ the watch


class Process:
    """A worker whose memory is the values of its store, and whatever a test says."""

    def __init__(self, base: Path, **settings: Any) -> None:
        self.other_bytes = 10 * MB
        self.small_bytes = 0
        self.is_busy = False
        self.waits = False
        self.readings = 0
        self.told: list[str] = []
        self.told_at: list[float] = []
        self.released: list[float] = []
        self.leaked_bytes = 0
        self.kept = BufferPool(LIMIT, start=lambda work: None)
        settings = {"memory_limit_bytes": LIMIT, "local_directory": str(base), **settings}
        all_settings = WorkerSettings(scheduler="tcp://x", **settings)
        hooks = WorkerCallbacks(
            held_bytes=lambda: self.store.large_bytes + self.store.spilled_bytes + self.small_bytes,
            busy=lambda: self.is_busy,
            waits_for_itself=lambda: self.waits,
            set_paused=lambda paused: self.tell("pause" if paused else "resume"),
            report_lost=lambda: self.told.extend(self.store.take_lost()),
        )
        found = MemoryLimits.of(all_settings)
        assert found is not None
        self.monitor = MemoryMonitor(found, all_settings, hooks, self.used, self.kept)
        self.store: ResultStore = self.monitor.store

    def used(self) -> int:
        self.readings += 1
        return self.used_bytes + self.kept.kept_bytes

    @property
    def used_bytes(self) -> int:
        return self.other_bytes + self.leaked_bytes + self.small_bytes + self.store.large_bytes

    def keep(self) -> None:
        """A value that came in is not needed any more, and as much is kept as may be."""
        self.kept.allocate(self.most_kept)

    @property
    def most_kept(self) -> int:
        return int(memory_monitor.KEPT_SHARE * LIMIT) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES

    def tell(self, what: str) -> None:
        self.told.append(what)
        self.told_at.append(trio.current_time())

    def release(self) -> None:
        self.released.append(trio.current_time())
        self.leaked_bytes = 0

    def fill(self, *keys: str, nbytes: int = 10 * MB) -> None:
        for key in keys:
            self.store.put(key, np.zeros(2500), nbytes)

    async def live(self, seconds: float) -> None:
        """Let time go by, with somebody who notices that there is something to do."""
        self.monitor.wake()
        await trio.sleep(seconds)

    @property
    def spilled(self) -> list[str]:
        return [key for key in self.store if self.store.is_spilled(key)]


MakeProcess = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def make_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProcess:
    """Watched processes; what a thread would do happens at once, since the clock does not see threads."""

    async def at_once(self: MemoryMonitor, work: Callable[[], Any], **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(MemoryMonitor, "_in_thread", at_once)

    @asynccontextmanager
    async def make(**settings: Any) -> AsyncGenerator[Process]:
        process = Process(tmp_path, **settings)
        monkeypatch.setattr(memory_monitor, "collect_garbage", process.release)
        monkeypatch.setattr(memory_monitor, "trim", lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.monitor.run)
            await wait_all_tasks_blocked()
            yield process
            nursery.cancel_scope.cancel()
        assert folders(tmp_path) == []

    return make


async def test_values_go_to_disk_when_there_are_too_many_and_no_more_than_that(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process(spill_process=None) as process:
        process.fill("a", "b", "c", "d", "e", "f")
        await wait_all_tasks_blocked()
        assert process.spilled == []
        process.fill("g")
        await wait_all_tasks_blocked()
        assert process.spilled == ["a", "b"]
        figures = process.monitor.metrics()
        assert (figures["spilled_bytes"], figures["spilled_count"]) == (20 * MB, 2)
        assert figures["spill_disk_bytes"] >= 2 * 20_000


async def test_values_go_to_disk_when_the_process_has_grown_by_other_things(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        process.fill("a", "b", "c")
        process.other_bytes = 41 * MB
        await process.live(1)
        assert process.spilled == ["a", "b"]  # down to the lower mark
        process.other_bytes = 90 * MB
        await process.live(1)
        assert process.spilled == ["a", "b", "c"]


async def test_what_is_in_use_is_spilled_only_in_need(autojump_clock: MockClock, make_process: MakeProcess) -> None:
    async with make_process() as process:
        process.fill("a", "b")
        used = process.store["a"]
        process.other_bytes = 55 * MB
        await process.live(1)
        assert process.spilled == ["b"]
        process.other_bytes = 75 * MB
        await process.live(5)
        assert process.spilled == ["a", "b"]
        assert process.store["a"] is used


async def test_when_nothing_is_left_to_spill_garbage_is_collected_now_and_then(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        process.leaked_bytes = 65 * MB
        await process.live(1)
        assert len(process.released) == 1
        assert process.leaked_bytes == 0
        process.other_bytes = 75 * MB
        await process.live(60)
        assert 3 <= len(process.released) <= 1 + 60 / memory_policy.COLLECT_INTERVAL_S


async def test_the_worker_is_paused_and_resumed_once_each(autojump_clock: MockClock, make_process: MakeProcess) -> None:
    async with make_process() as process:
        process.is_busy = True
        process.other_bytes = 85 * MB
        await process.live(60)
        assert process.told == ["pause"]
        assert process.monitor.metrics()["paused"]
        process.other_bytes = 78 * MB
        await process.live(1)
        assert process.told == ["pause"]
        process.other_bytes = 70 * MB
        await process.live(1)
        assert process.told == ["pause", "resume"]


async def test_a_worker_resumes_as_soon_as_room_was_made(autojump_clock: MockClock, make_process: MakeProcess) -> None:
    async with make_process(spill_managed=None) as process:
        process.is_busy = True
        process.other_bytes = 45 * MB
        process.fill("a", "b", "c", "d")
        await process.live(memory_policy.BUSY_INTERVAL_S + 0.01)
        assert process.told == ["pause", "resume"]
        assert process.told_at[1] == process.told_at[0]


async def test_a_paused_worker_that_nothing_can_help_does_not_wait_for_ever(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        process.small_bytes = 75 * MB  # which no spilling and no collecting moves
        await process.live(memory_policy.PAUSE_PATIENCE_S - 1)
        assert process.told == ["pause"]
        await process.live(3)
        assert process.told == ["pause", "resume"]
        await process.live(600)
        assert process.told == ["pause", "resume"]
        process.small_bytes += 6 * MB
        await process.live(1)
        assert process.told == ["pause", "resume", "pause"]


async def test_memory_kept_for_values_to_come_makes_nobody_spill(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        process.fill("a", "b", "c")
        process.other_bytes = 39 * MB
        process.keep()
        assert process.used() > process.monitor.limits.process_high > process.used_bytes
        await process.live(1)
        assert process.spilled == []
        assert process.kept.kept_bytes == 0


async def test_nor_does_it_pause_a_worker_or_have_its_garbage_collected(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process(spill_managed=None, spill_process=None) as process:
        process.is_busy = True
        process.small_bytes = 69 * MB
        for _ in range(20):
            process.keep()
            assert process.used() > process.monitor.limits.pause_above > process.used_bytes
            await process.live(memory_policy.BUSY_INTERVAL_S)
        assert not process.told
        assert not process.released


async def test_values_do_not_wait_for_room_that_is_only_kept(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        process.fill("a", "b")
        process.other_bytes = 30 * MB
        process.keep()
        before = trio.current_time()
        async with process.monitor.room(20 * MB):
            assert process.kept.kept_bytes == 0
        assert trio.current_time() == before
        assert process.spilled == []


async def test_while_memory_is_plenty_a_little_is_kept(autojump_clock: MockClock, make_process: MakeProcess) -> None:
    async with make_process() as process:
        for _ in range(2):
            process.keep()
            await process.live(1)
        assert process.kept.kept_bytes == process.most_kept
        process.kept.allocate(process.most_kept + HUGE_PAGE_BYTES)
        assert process.kept.kept_bytes == process.most_kept


@pytest.mark.parametrize(("limit", "keeps"), [(LIMIT, False), (None, True)])
def test_where_nobody_could_give_it_back_nothing_is_kept(limit: int | None, keeps: bool) -> None:
    kept = BufferPool(LIMIT, start=lambda work: None)
    settings = WorkerSettings(
        scheduler="tcp://x", memory_limit_bytes=limit, spill_managed=None, spill_process=None, pause_process=None
    )
    assert MemoryLimits.of(settings) is None
    keep_nothing_unwatched(settings, kept)
    kept.allocate(HUGE_PAGE_BYTES)
    assert bool(kept.kept_bytes) == keeps


@pytest.mark.parametrize("off", [("spill_process",), ("spill_process", "pause_process")])
async def test_a_nanny_never_ends_a_worker_for_what_is_kept(
    autojump_clock: MockClock, make_process: MakeProcess, off: tuple[str, ...]
) -> None:
    async with make_process(**dict.fromkeys(off)) as process:
        process.is_busy = True
        process.keep()
        process.other_bytes = 90 * MB
        await process.live(memory_policy.BUSY_INTERVAL_S + 0.01)
        assert process.kept.kept_bytes == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_while_a_task_runs_that_is_help_unless_it_waits_for_other_tasks(
    autojump_clock: MockClock, make_process: MakeProcess, waits: bool
) -> None:
    async with make_process() as process:
        process.is_busy = True
        process.waits = waits
        process.small_bytes = 75 * MB
        await process.live(600)
        assert process.told == (["pause", "resume"] if waits else ["pause"])


async def test_without_spilling_the_worker_pauses_all_the_same(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process(spill_managed=None, spill_process=None) as process:
        process.fill("a", "b")
        process.small_bytes = 75 * MB
        await process.live(1)
        assert process.told == ["pause"]
        assert process.spilled == []
        assert process.monitor.metrics()["spill_disk_bytes"] == 0


async def test_without_pausing_the_worker_spills_all_the_same(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process(pause_process=None) as process:
        process.other_bytes = 95 * MB
        process.fill("a")
        await process.live(1)
        assert process.told == []
        assert process.spilled == ["a"]


async def test_files_of_values_that_are_freed_are_removed(
    autojump_clock: MockClock, make_process: MakeProcess, tmp_path: Path
) -> None:
    async with make_process() as process:
        process.fill("a", "b", "c", "d", "e", "f", "g")
        await process.live(1)
        assert files(tmp_path) != []
        process.store.drop(process.spilled)
        await process.live(1)
        assert files(tmp_path) == []


async def test_what_is_below_the_mark_stays_also_when_files_are_removed(
    autojump_clock: MockClock, make_process: MakeProcess, tmp_path: Path
) -> None:
    async with make_process(spill_process=None) as process:
        process.fill("a", "b", "c", "d", "e", "f", "g")
        await wait_all_tasks_blocked()
        assert process.spilled == ["a", "b"]
        process.fill("h", nbytes=9 * MB)  # between the marks
        process.store.drop(["a", "b"])
        await process.live(1)
        assert files(tmp_path) == []
        assert process.spilled == []


async def test_an_idle_worker_is_hardly_looked_at_and_a_busy_one_often(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process() as process:
        await process.live(1)
        process.readings = 0
        await process.live(60)
        assert process.readings <= 60 / memory_policy.MAX_IDLE_INTERVAL_S + 4
        process.is_busy = True
        process.readings = 0
        process.monitor.wake()
        await process.live(60)
        assert process.readings >= 60 / memory_policy.BUSY_INTERVAL_S - 1


async def test_what_is_lost_on_disk_is_told(
    autojump_clock: MockClock, make_process: MakeProcess, tmp_path: Path
) -> None:
    async with make_process() as process:
        process.fill("a", "b", "c", "d", "e", "f", "g")
        await wait_all_tasks_blocked()
        process.store.drop(["d", "e", "f", "g"])  # so that nothing else is to be done
        for folder in folders(tmp_path):
            shutil.rmtree(folder)
        await process.live(1)
        with pytest.raises(KeyError):
            process.store["a"]
        await wait_all_tasks_blocked()
        assert process.told == ["a"]


async def test_a_full_disk_is_said_once_and_tried_again(
    autojump_clock: MockClock,
    make_process: MakeProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    def full(*arguments: Any) -> int:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    async with make_process() as process:
        with monkeypatch.context() as patch:
            patch.setattr(Output, "write", full)
            process.fill("a", "b", "c", "d", "e", "f", "g", "h")
            await process.live(30)
        assert process.told == ["pause", "resume"]
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            f"Cannot spill results to disk: cannot write to {tmp_path}: No space left on device"
        ]
        assert 10 <= attempts <= 40
        await process.live(2)
        assert len(process.spilled) >= 3


async def test_what_comes_in_waits_for_room_and_not_for_ever(
    autojump_clock: MockClock, make_process: MakeProcess
) -> None:
    async with make_process(spill_managed=None) as process:
        process.fill("a", "b", "c", "d", "e")
        async with process.monitor.room(8 * MB):
            assert process.spilled == []  # there was room
        async with process.monitor.room(20 * MB):
            assert len(process.spilled) >= 1
            assert process.used() + 20 * MB <= 70 * MB
        process.other_bytes = 95 * MB
        with trio.fail_after(2 * memory_policy.RETRY_S):
            async with process.monitor.room(20 * MB):
                assert len(process.spilled) == 5


class Task:
    """A thread that reserves this many bytes."""

    def __init__(self, reservations: Reservations, nbytes: int) -> None:
        self.inside = threading.Event()
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._pass, args=(reservations, nbytes), daemon=True)
        self._thread.start()

    def _pass(self, reservations: Reservations, nbytes: int) -> None:
        reservations.reserve(nbytes)
        self.inside.set()
        self.done.wait(PATIENCE_S)
        reservations.release(nbytes)

    def end(self) -> None:
        self.done.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


async def test_room_is_made_for_a_thread_that_reserves_memory(make_process: MakeProcess) -> None:
    async with make_process(spill_managed=None) as process:
        process.fill("a", "b", "c", "d", "e")
        task = Task(process.monitor.reservations, 20 * MB)
        assert await trio.to_thread.run_sync(task.inside.wait, PATIENCE_S)
        assert process.used() + 20 * MB <= 75 * MB
        assert len(process.spilled) >= 1
        task.end()


async def test_where_no_room_can_be_made_a_thread_is_admitted_alone(make_process: MakeProcess) -> None:
    async with make_process(spill_managed=None) as process:
        process.other_bytes = 90 * MB
        first = Task(process.monitor.reservations, 20 * MB)
        assert await trio.to_thread.run_sync(first.inside.wait, PATIENCE_S)
        second = Task(process.monitor.reservations, 20 * MB)
        await trio.sleep(0.3)
        assert not second.inside.is_set()
        first.end()
        assert await trio.to_thread.run_sync(second.inside.wait, PATIENCE_S)
        second.end()


async def test_no_thread_waits_for_memory_of_a_worker_that_has_ended(make_process: MakeProcess) -> None:
    async with make_process(spill_managed=None) as process:
        process.other_bytes = 90 * MB
        tasks = [Task(process.monitor.reservations, 20 * MB) for _ in range(3)]
    for task in tasks:
        task.end()


async def test_only_so_much_comes_in_at_once(autojump_clock: MockClock, make_process: MakeProcess) -> None:
    async with make_process() as process, trio.open_nursery() as nursery:
        inside = most = 0

        async def take(nbytes: int) -> None:
            nonlocal inside, most
            async with process.monitor.room(nbytes):
                inside += nbytes
                most = max(most, inside)
                await trio.sleep(1)
                inside -= nbytes

        for _ in range(10):
            nursery.start_soon(take, 4 * MB)
        await process.live(0.5)
        assert inside == 8 * MB
        nursery.start_soon(take, 60 * MB)
        await process.live(30)
        assert most == 60 * MB  # alone


# ------------------------------------------------------------------------------------------ a whole worker

SPILLS_ALL = {"memory_limit_bytes": 10**11, "spill_managed": 1e-9, "spill_process": None, "pause_process": None}


def spilled_keys(dask_worker: WorkerHandle) -> list[str]:
    store = dask_worker.data
    assert isinstance(store, ResultStore)
    return sorted(key for key in store if store.is_spilled(key))


async def until_spilled(session: Session, *keys: str) -> None:
    async with await open_data(session.address) as channel:
        with trio.fail_after(PATIENCE_S):
            while await call(channel, spilled_keys) != sorted(keys):
                pass


@asynccontextmanager
async def open_spilling_worker(folder: Path, **settings: Any) -> AsyncGenerator[Session]:
    async with open_worker(local_directory=str(folder), **{**SPILLS_ALL, **settings}) as session:
        yield session
    assert folders(folder) == []


async def test_results_that_were_spilled_are_used_served_and_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []
    read = SpillDisk.read

    def note_and_read(disk: SpillDisk, file: SpilledFile) -> list[memoryview]:
        readers.append(threading.current_thread())
        return read(disk, file)

    monkeypatch.setattr(SpillDisk, "read", note_and_read)
    async with open_spilling_worker(tmp_path) as session:
        session.submit("a", np.arange, 100_000)
        await session.hear(RunFinished)
        await until_spilled(session, "a")
        async with await open_data(session.address) as channel:
            answer, frames = await ask(channel, Fetch(("a",)))
            assert isinstance(answer, Value)
            assert load_value(frames).sum() == 99_999 * 50_000
        await until_spilled(session, "a")  # it was not loaded for that
        session.submit("b", np.sum, Ref("a"), holders={"a": [session.address]})
        assert await session.result() == 99_999 * 50_000
        await until_spilled(session, "a")
        session.tell(Free(("a", "b")))
        with trio.fail_after(PATIENCE_S):
            while files(tmp_path):  # noqa: ASYNC110 - a file that is removed tells nobody
                await trio.lowlevel.checkpoint()
    assert len(readers) == 2
    assert threading.main_thread() not in readers  # it would hold the event loop up


async def test_what_clients_scatter_is_spilled_as_it_came(tmp_path: Path) -> None:
    async with open_spilling_worker(tmp_path) as session:
        async with await open_data(session.address) as channel:
            assert isinstance(await put(channel, "x", np.ones(200_000)), PutDone)
        await session.hear(Scattered)
        await until_spilled(session, "x")
        session.submit("b", np.sum, Ref("x"), holders={"x": [session.address]})
        assert await session.result() == 200_000


class Buffer(bytearray):
    """One that can be watched."""


class OneByOne:
    """A channel that hands out what it is given, and then looks what has become of it."""

    def __init__(self, *messages: Any) -> None:
        self.left = list(messages)
        self.given: weakref.ref[Buffer] | None = None

    async def send(self, message: Any, buffers: Any = ()) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self, room: object = None) -> tuple[Any, Any]:
        await trio.lowlevel.checkpoint()
        assert self.given is None or self.given() is None, "what came before is still in memory"
        if not self.left:
            raise trio.EndOfChannel
        buffer = Buffer(100)
        self.given = weakref.ref(buffer)
        return self.left.pop(0), [buffer]

    def receive_nowait(self) -> None:
        return None

    def abort(self) -> None:
        """Nothing to do."""


async def test_a_channel_that_waits_for_the_next_value_does_not_keep_the_last_one() -> None:
    puts = [Put(key, "client", "bytes", (100,)) for key in "abc"]
    await DataServer(ResultStore(), {}, lambda put, frames: True, WorkerHandle(name="w", nthreads=1)).handle(
        OneByOne(*puts)  # type: ignore[arg-type]  # it has what a server needs of a channel
    )

    async def open_channel(address: str) -> Any:
        await trio.lowlevel.checkpoint()
        return OneByOne(*(Value(key, (100,)) for key in "abc"))

    taken: list[str] = []
    await PeerChannels(open_channel).fetch("tcp://x", ["a", "b", "c"], lambda key, frames: taken.append(key))
    assert taken == ["a", "b", "c"]


async def test_a_value_whose_file_is_gone_is_lost_and_its_task_handed_back(tmp_path: Path) -> None:
    async with open_spilling_worker(tmp_path) as session:
        for key in ("a", "b"):
            session.submit(key, np.arange, 100_000)
            await session.hear(RunFinished)
        await until_spilled(session, "a", "b")
        for folder in folders(tmp_path):
            shutil.rmtree(folder)
        run = session.submit("c", np.sum, Ref("a"), holders={"a": [session.address]})
        assert await session.hear(Lost) == Lost(("a",))
        missing = await session.hear(InputMissing)
        assert (missing.run, missing.key) == (run, "a")
        async with await open_data(session.address) as channel:
            answer, _ = await ask(channel, Fetch(("b",)))
            assert answer == Absent("b", "")
        assert await session.hear(Lost) == Lost(("b",))
        session.submit("d", abs, -1)
        assert await session.result() == 1


async def test_a_disk_that_cannot_be_read_fails_the_task_and_the_transfer_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async with open_spilling_worker(tmp_path) as session:
        session.submit("a", np.arange, 100_000)
        await session.hear(RunFinished)
        await until_spilled(session, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            session.submit("b", np.sum, Ref("a"), holders={"a": [session.address]})
            failed = await session.hear(RunFailed)
            assert "SpillError: cannot read 'a' back" in failed.text
            async with await open_data(session.address) as channel:
                answer, _ = await ask(channel, Fetch(("a",)))
                assert isinstance(answer, Absent)
                assert "SpillError" in answer.text
        session.submit("c", np.sum, Ref("a"), holders={"a": [session.address]})
        assert await session.result() == 99_999 * 50_000


async def test_a_local_directory_that_is_of_no_use_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="--local-directory: cannot write to "):
        await run_worker(
            WorkerSettings(
                scheduler="inproc://x", memory_limit_bytes=LIMIT, local_directory=str(tmp_path / "file" / "x")
            )
        )
