"""Actors of real processes: they move when a worker is retired or stopped in order, and are lost when it is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_dask import ActorLost, Client, LocalCluster

pytestmark = pytest.mark.slow


class Counter:
    movable = True
    n: int

    def __init__(self) -> None:
        self.n = 0
        self.payload = bytes(10_000_000)

    def add(self) -> int:
        self.n += 1
        return self.n

    def pid(self) -> int:
        return os.getpid()

    def wait_for(self, file: str) -> int:
        Path(file + ".entered").touch()
        while not Path(file).exists():
            time.sleep(0.01)
        return self.add()


def count(counter: Any, times: int) -> list[int]:
    return [int(counter.add().result(30)) for _ in range(times)]


@pytest.fixture
def client() -> Iterator[Client]:
    with LocalCluster(2, 1) as cluster, Client(cluster) as client:
        yield client


def worker_of(client: Client, pid: int) -> str:
    workers = client.scheduler_info()["workers"]
    return str(next(address for address, info in workers.items() if info["pid"] == pid))


@pytest.mark.parametrize("way", ["retired", "stopped"])
def test_callers_of_an_actor_whose_worker_leaves_in_order_lose_nothing(client: Client, way: str) -> None:
    counter = client.submit(Counter, actor=True).result(30)
    pid = counter.pid().result(30)
    answers: list[list[int]] = []
    threads = [threading.Thread(target=lambda: answers.append(count(counter, 300))) for _ in range(2)]
    for thread in threads:
        thread.start()
    tasks = [client.submit(count, counter, 300, pure=False) for _ in range(2)]
    while counter.n < 50:
        pass
    if way == "retired":
        client.retire_workers([worker_of(client, pid)])
    else:
        os.kill(pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    answers += client.gather(tasks)
    assert all(some == sorted(some) for some in answers)
    assert sorted(answer for some in answers for answer in some) == list(range(1, 1201))
    while counter.pid().result(30) == pid:  # the worker that was stopped finishes its task first
        pass
    assert counter.add().result(30) == 1201


def test_if_the_worker_is_killed_while_an_actor_is_to_move_every_call_says_that_it_is_lost(
    client: Client, tmp_path: Path
) -> None:
    counter = client.submit(Counter, actor=True).result(30)
    pid = counter.pid().result(30)
    file = str(tmp_path / "go")
    waiting = [counter.wait_for(file), *(counter.add() for _ in range(5))]
    while not Path(file + ".entered").exists():
        time.sleep(0.01)
    address = worker_of(client, pid)
    retiring = threading.Thread(target=client.retire_workers, args=([address],))
    retiring.start()
    while client.scheduler_info()["workers"][address]["slots"]:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    for answer in waiting:
        with pytest.raises(ActorLost):
            answer.result(30)
    retiring.join(30)
    assert not retiring.is_alive()
    with pytest.raises(ActorLost):
        counter.add().result(30)
