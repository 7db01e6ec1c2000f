"""`client.benchmark_hardware`: how fast the memory, the disks and the network of the workers are."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Any, Final, TypeAlias

import trio

from trio_dask.client.call_forms import CallForms, ForCall, ForKeys, HasEngine, Waiting, awaitable, blocking
from trio_dask.client.engine import Engine
from trio_dask.client.operations import call_workers
from trio_dask.client.wait_signals import SettleWaiter

KIB: Final = 2**10
MIB: Final = 2**20
Sizes: TypeAlias = Mapping[str, int]
Rates: TypeAlias = dict[str, float]

MEMORY_SIZES: Final[Sizes] = {
    "2 kiB": 2 * KIB,
    "10 kiB": 10 * KIB,
    "100 kiB": 100 * KIB,
    "1 MiB": MIB,
    "10 MiB": 10 * MIB,
}
DISK_SIZES: Final[Sizes] = {"1 kiB": KIB, "100 kiB": 100 * KIB, "1 MiB": MIB, "10 MiB": 10 * MIB, "100 MiB": 100 * MIB}
NETWORK_SIZES: Final[Sizes] = {
    "1 kiB": KIB,
    "10 kiB": 10 * KIB,
    "100 kiB": 100 * KIB,
    "1 MiB": MIB,
    "10 MiB": 10 * MIB,
    "50 MiB": 50 * MIB,
}

MEMORY_S: Final = 0.2
DISK_S: Final = 0.5
NETWORK_S: Final = 0.5
"""The time that is spent on each size."""

ANSWER_S: Final = 30.0
"""A worker that has not answered after this time is left out."""


def benchmark_hardware(client: HasEngine) -> Waiting[dict[str, Rates]]:
    """Measure the hardware of the workers: bytes per second, for pieces of several sizes.

    `memory` has the rates of copying, `disk` those of writing into the workers' local directories and waiting until it
    is on the disk, `network` those of fetching a result from another worker, each as mean of all workers, which
    measure at the same time. It takes about 7 s, more on slow disks; workers that have not answered after 30 s are
    left out. Tasks that run meanwhile spoil the figures, and are slowed down.
    """
    return ForCall(client.engine, partial(_benchmark, client, client.engine))


async def _benchmark(client: Any, engine: Engine) -> dict[str, Rates]:
    memory = await call_workers(engine, _measure_memory, (MEMORY_SIZES, MEMORY_S), None, ANSWER_S)
    disk = await call_workers(engine, _measure_disk, (DISK_SIZES, DISK_S), None, ANSWER_S)
    return {
        "memory": means(list(memory.values())),
        "disk": means(list(disk.values())),
        "network": means(await _measure_pairs(client, engine)),
    }


def means(rates: Sequence[Rates]) -> Rates:
    """The mean of each size over those that have measured it."""
    found: dict[str, list[float]] = {}
    for measured in rates:
        for name, rate in measured.items():
            found.setdefault(name, []).append(rate)
    return {name: sum(each) / len(each) for name, each in found.items()}


async def _measure_pairs(client: Any, engine: Engine) -> list[Rates]:
    info: Mapping[str, Any] = await engine.ask("scheduler_info")
    addresses = sorted(info["workers"], key=lambda address: (info["workers"][address]["host"], address))
    found: list[Rates] = []

    async def measure(giver: str, taker: str) -> None:
        values = {
            name: client.submit(os.urandom, size, workers=[giver], pure=False) for name, size in NETWORK_SIZES.items()
        }
        states = [future.state for future in values.values()]
        waiter = SettleWaiter(len(states), len(states))
        if await ForKeys(engine, states, waiter, _same, values, timeout=ANSWER_S).wait():
            keys = {name: (future.key, NETWORK_SIZES[name]) for name, future in values.items()}
            outcomes = await call_workers(engine, _measure_network, (giver, keys, NETWORK_S), [taker], ANSWER_S)
            found.extend(outcomes.values())

    middle = len(addresses) // 2
    async with trio.open_nursery() as nursery:
        # Neighbours in the list may share a host, whose network would then not be measured.
        for giver, taker in zip(addresses[:middle], addresses[middle:], strict=False):
            nursery.start_soon(measure, giver, taker)
    return found


def _same(in_time: bool) -> bool:
    return in_time


# ------------------------------------------------------------------------------------------------- in the workers


def _measure_memory(sizes: Sizes, seconds: float) -> Rates:
    rates: Rates = {}
    for name, size in sizes.items():
        view = memoryview(os.urandom(size))
        rates[name] = _rate(partial(bytes, view), size, seconds)
    return rates


def _measure_disk(sizes: Sizes, seconds: float, dask_worker: Any) -> Rates:
    rates: Rates = {}
    with tempfile.TemporaryFile(dir=dask_worker.local_directory) as file:
        for name, size in sizes.items():
            rates[name] = _rate(partial(_write, file, os.urandom(size)), size, seconds)
    return rates


def _write(file: IO[bytes], data: bytes) -> None:
    """In the same place again, so that no more of the disk is used."""
    file.seek(0)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _rate(work: Callable[[], object], size: int, seconds: float) -> float:
    start, total = time.perf_counter(), 0
    while True:
        work()
        total += size
        passed = time.perf_counter() - start
        if passed >= seconds:
            return total / passed


async def _measure_network(
    address: str, keys: Mapping[str, tuple[str, int]], seconds: float, dask_worker: Any
) -> Rates:
    rates: Rates = {}
    for name, (key, size) in keys.items():
        start, total, passed = time.perf_counter(), 0, 0.0
        while passed < seconds:
            await dask_worker.fetch_and_drop(address, key)
            total += size
            passed = time.perf_counter() - start
        rates[name] = total / passed
    return rates


class BlockingHardware(CallForms):
    """The form of this call for `Client`."""

    benchmark_hardware = blocking(benchmark_hardware)


class AsyncHardware(CallForms):
    """The form of this call for `AsyncClient`."""

    benchmark_hardware = awaitable(benchmark_hardware)
