"""More data than memory, on real workers: right results, a loop that is never held up, and nothing left on disk."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.programs import blocks
from tests.programs.programs import Program, environment, program, scheduler, until, worker
from trio_dask import Client, Future, KilledWorker, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MB = 10**6
LIMIT = 256 * MB
BLOCK = 4 * MB
STALL_S = 0.05


def nannied(*arguments: str) -> AbstractContextManager[Program]:
    """A worker whose nanny ends it when it has too much memory."""
    return program("-m", "trio_dask", "worker", *arguments, "--nthreads", "1", env=environment())


@contextlib.contextmanager
def cluster(
    folder: Path, *options: str, workers: int = 2, limit: int = LIMIT, start: Any = worker
) -> Iterator[tuple[Client, list[Program]]]:
    """A scheduler, workers that spill into `folder`, and a client. All must end well, and leave nothing."""
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(scheduler())
        address = one.wait_for(r"Scheduler at: +(\S+)")
        limits = ("--memory-limit", str(limit), "--local-directory", str(folder), *options)
        running = [stack.enter_context(start(address, *limits)) for _ in range(workers)]
        with Client(address) as client:
            client.wait_for_workers(workers, timeout=30)
            yield client, running
        for each in running:
            assert each.stop(signal.SIGTERM) == 0, each.text
        assert one.stop(signal.SIGTERM) == 0, one.text
        assert list(folder.iterdir()) == []
        for each in running:
            assert "Traceback" not in each.text


class Stalls:
    """How late the workers' event loops were while the block ran."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._thread = threading.Thread(target=self._watch)
        self.worst_s: list[float] = []

    def _watch(self) -> None:
        self.worst_s = list((self._client.run(blocks.watch_stalls) or {}).values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.run(blocks.stop_watching)
        self._thread.join()


def reduce(client: Client, level: list[Future]) -> Future:
    while len(level) > 1:
        pairs = [client.submit(blocks.add, *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


def on_disk(client: Client) -> int:
    return sum(nbytes for _, nbytes in (client.run(blocks.spilled) or {}).values())


def test_four_times_as_much_as_memory_on_two_workers(tmp_path: Path) -> None:
    """Generate, transform and tree-reduce: 2 GB of blocks that all have to be kept, in two times 256 MB."""
    number = 4 * 2 * LIMIT // BLOCK
    with cluster(tmp_path) as (client, _):
        with Stalls(client) as stalls:
            kept = client.map(blocks.make, range(number), nbytes=BLOCK)
            total = reduce(client, client.map(blocks.transform, kept))
            assert client.submit(blocks.ends, total).result(timeout=240) == (
                BLOCK,
                sum(2 * each + 1 for each in range(number)),
                sum(1 - 2 * each for each in range(number)),
            )
        assert on_disk(client) > number * BLOCK - 2 * 0.7 * LIMIT
        assert max(stalls.worst_s) < STALL_S
        assert all(peak < 0.95 * LIMIT + 20 * MB for peak in (client.run(blocks.peak_bytes) or {}).values())
        # What is on disk is as good as what is in memory.
        for each in range(0, number, 32):
            assert client.submit(blocks.ends, kept[each]).result(timeout=60) == (BLOCK, each, -each)
        assert client.gather(kept[3])[0] == 3


def test_the_loop_is_not_held_up_by_spilling_alone(tmp_path: Path) -> None:
    """With nothing else going on: what comes in from a client goes to disk, in large values and in small ones."""
    with cluster(tmp_path, workers=1) as (client, _):
        with Stalls(client) as stalls:
            kept = [
                client.scatter([blocks.make(each, size)], hash=False) for each in range(6) for size in (10**4, 64 * MB)
            ]
            until(lambda: on_disk(client) > 200 * MB, 30, "values are on disk")
        assert max(stalls.worst_s) < STALL_S
        assert len(kept) == 12


def test_a_full_disk_costs_memory_and_no_worker(tmp_path: Path) -> None:
    """When neither memory nor disk has room the worker complains once, takes tasks slowly, and gets all of it done."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", tmp_path]).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with cluster(tmp_path, workers=1) as (client, (only,)):
            kept = client.map(blocks.make, range(60), nbytes=BLOCK)
            wait(kept, timeout=120)
            assert [ends[1] for ends in client.gather(client.map(blocks.ends, kept))] == list(range(60))
            assert on_disk(client) <= 32 * MB
            complaints = [line for line in only.errors if "Cannot spill results to disk" in line]
            assert len(complaints) == 1
            assert "No space left on device" in complaints[0]
            assert str(tmp_path) in complaints[0]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_values_whose_files_are_gone_are_computed_again(tmp_path: Path) -> None:
    with cluster(tmp_path) as (client, _):
        kept = client.map(blocks.make, range(160), nbytes=BLOCK)
        wait(kept, timeout=60)
        assert on_disk(client) > 0
        for each in tmp_path.iterdir():
            shutil.rmtree(each, ignore_errors=True)  # its worker may be writing
        firsts = [ends[1] for ends in client.gather(client.map(blocks.ends, kept))]
        assert firsts == list(range(160))
        assert client.gather(kept[5])[-1] == -5


def test_a_killed_worker_leaves_its_files_to_the_next_one(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(scheduler())
        address = one.wait_for(r"Scheduler at: +(\S+)")
        options = ("--memory-limit", str(LIMIT), "--local-directory", str(tmp_path))
        first = stack.enter_context(worker(address, *options))
        with Client(address) as client:
            client.wait_for_workers(1, timeout=30)
            kept = client.map(blocks.make, range(80), nbytes=BLOCK)
            wait(kept, timeout=60)
            until(lambda: list(tmp_path.rglob("*/*")), 10, "values are on disk")
            left = list(tmp_path.iterdir())
            assert first.stop(signal.SIGKILL) == -signal.SIGKILL
            assert list(tmp_path.iterdir()) == left
            second = stack.enter_context(worker(address, *options))
            second.wait_for(r"Removed .*left behind")
            assert not left[0].exists()
        assert second.stop(signal.SIGTERM) == 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    with scheduler() as one:
        address = one.wait_for(r"Scheduler at: +(\S+)")
        with worker(address, "--memory-limit", str(LIMIT), "--local-directory", str(tmp_path)) as only:
            with Client(address) as client:
                client.wait_for_workers(1, timeout=30)
                kept = client.map(blocks.make, range(80), nbytes=BLOCK)
                wait(kept, timeout=60)
                assert list(tmp_path.rglob("*/*"))
                assert only.stop(number) == 0, only.text
            assert list(tmp_path.iterdir()) == []


def test_an_idle_worker_with_a_memory_limit_hardly_ever_wakes(tmp_path: Path) -> None:
    """What a waking costs is for the benchmark to say: a host that has taken idle pages away makes it a hundredfold."""

    def wakings(pid: int) -> dict[str, int]:
        """How often each thread has gone to sleep, by its id."""
        statuses = sorted(Path(f"/proc/{pid}/task").glob("*/status"))
        told = [status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0] for status in statuses]
        return {status.parent.name: int(count) for status, count in zip(statuses, told, strict=True)}

    with cluster(tmp_path, workers=1) as (client, (only,)):
        assert client.submit(abs, -1).result() == 1
        time.sleep(1)
        before = wakings(only.process.pid)
        time.sleep(5)  # all that it does when idle it does in every five seconds
        after = wakings(only.process.pid)
        assert sum(count - before.get(thread, 0) for thread, count in after.items()) <= 20, (before, after)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "str", "chinese", "list", "dict", "frame"])
def test_values_that_pickle_in_band_are_spilled_and_end_no_worker(tmp_path: Path, kind: str) -> None:
    nbytes = 48 * MB
    with cluster(tmp_path, workers=1, limit=320 * MB, start=nannied) as (client, (only,)):
        futures = [client.submit(blocks.make_in_band, kind, number, nbytes) for number in range(12)]
        assert len(wait(futures, timeout=120).done) == 12
        assert on_disk(client) > 0
        lengths = [len(future.result()) for future in futures]  # to the client, one after the other
        assert client.gather(client.map(blocks.length, futures)) == lengths
    assert "is lost" not in only.text


def test_tasks_that_make_large_values_faster_than_these_can_be_spilled_end_no_worker(tmp_path: Path) -> None:
    nbytes = 170 * MB
    with cluster(tmp_path, workers=1, limit=1024 * 2**20, start=nannied) as (client, (only,)):
        # All at once: from one task to the next nobody else gets the interpreter.
        futures = client.map(blocks.make_in_band, ["bytes"] * 10, range(10), [nbytes] * 10)
        assert len(wait(futures, timeout=120).done) == 10
        assert all(future.status == "finished" for future in futures)
    assert "is lost" not in only.text


def test_a_task_that_needs_too_much_memory_again_and_again_is_given_up_with_the_figures(tmp_path: Path) -> None:
    with scheduler() as one:
        address = one.wait_for(r"Scheduler at: +(\S+)")
        arguments = ("-m", "trio_dask", "worker", address, "--nthreads", "1", "--memory-limit", str(LIMIT))
        options = ("--local-directory", str(tmp_path), "--restart-backoff", "0.1s:0.2s", "--max-restarts", "20")
        with program(*arguments, *options, env=environment()) as launcher, Client(address) as client:
            client.wait_for_workers(1, timeout=30)
            task = client.submit(blocks.hoard, 400 * MB)
            with pytest.raises(KilledWorker, match="memory") as caught:
                task.result(timeout=120)
            assert len(caught.value.deaths) >= 2
            for line in caught.value.deaths:
                assert "memory" in line
                assert "244 MiB" in line
            assert client.submit(abs, -1).result(timeout=60) == 1
            assert launcher.stop(signal.SIGTERM) == 0
        assert list(tmp_path.iterdir()) == []
