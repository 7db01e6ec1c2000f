"""Worker processes are killed while a workload runs: every result is right."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from trio_dask import Client, LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def leaf(number: int) -> int:
    time.sleep(0.01)
    return number * number


def add(*numbers: int) -> int:
    time.sleep(0.005)
    return sum(numbers)


def test_twenty_kills_cost_time_and_nothing_else() -> None:
    rng = random.Random(20)
    kills = 0
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
        salt = 0
        while kills < 20:
            salt += 1000
            width = 200
            layer = client.map(leaf, [number + salt for number in range(width)])
            tops = [client.submit(add, *layer[start : start + 10]) for start in range(0, width, 10)]
            total = client.submit(add, *tops)
            for _ in range(2):
                time.sleep(0.1)
                pids = [info["pid"] for info in client.scheduler_info()["workers"].values()]
                if pids:
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    kills += 1
            assert total.result(timeout=60) == sum((number + salt) ** 2 for number in range(width))
            client.wait_for_workers(3, timeout=30)
    assert kills == 20
