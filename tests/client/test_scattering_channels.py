"""What goes to one worker: over one channel or several, each value once, and nothing lost where one breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_dask.client import scatter
from trio_dask.client.scatter import CHANNELS, PARALLEL_BYTES, ScatterItem
from trio_dask.protocol.messages import Put, PutDone


class Worker:
    """Takes values, each in a second; the channels that a test names break at their first value."""

    def __init__(self, *broken: int) -> None:
        self.broken = broken
        self.channels = 0
        self.open = self.most_open = 0
        self.stored: list[str] = []

    async def exchange(self, address: str, use: Callable[[Any], Awaitable[None]]) -> None:
        number = self.channels
        self.channels += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await use(_Channel(self, number in self.broken))
        finally:
            self.open -= 1


class _Channel:
    def __init__(self, worker: Worker, breaks: bool) -> None:
        self.worker = worker
        self.breaks = breaks
        self.put: Put | None = None

    async def send(self, message: Put, buffers: Any) -> None:
        await trio.sleep(1)
        if self.breaks:
            raise ConnectionError("it broke")
        self.put = message

    async def receive(self) -> tuple[PutDone, list[memoryview]]:
        assert self.put is not None
        self.worker.stored.append(self.put.key)
        return PutDone(self.put.key, sum(self.put.sizes)), []


def items(count: int, nbytes: int) -> list[ScatterItem]:
    return [ScatterItem(f"value-{number}", "bytes", [memoryview(bytearray(nbytes))]) for number in range(count)]


async def put(worker: Worker, load: list[ScatterItem]) -> tuple[list[str], list[ScatterItem]]:
    failures: list[str] = []
    stranded: list[ScatterItem] = []
    engine: Any = SimpleNamespace(channels=worker, incarnation="client")
    await scatter._put_each(engine, "tcp://worker", deque(load), failures, stranded)
    return failures, stranded


@pytest.mark.parametrize(
    ("count", "nbytes", "channels"),
    [
        (1, PARALLEL_BYTES + 1, 1),
        (4, PARALLEL_BYTES // 4, 1),
        (4, PARALLEL_BYTES // 4 + 1, CHANNELS),
        (2, PARALLEL_BYTES, 2),
    ],
)
async def test_large_values_go_over_several_channels_and_each_goes_once(
    autojump_clock: MockClock, count: int, nbytes: int, channels: int
) -> None:
    worker, load = Worker(), items(count, nbytes)
    assert await put(worker, load) == ([], [])
    assert worker.most_open == worker.channels == channels
    assert sorted(worker.stored) == [item.key for item in load]
    assert trio.current_time() <= -(-count // channels) + 0.1


async def test_what_a_broken_channel_leaves_behind_goes_over_the_others(autojump_clock: MockClock) -> None:
    worker, load = Worker(0), items(5, PARALLEL_BYTES)
    assert await put(worker, load) == ([], [])
    assert sorted(worker.stored) == [item.key for item in load]


async def test_what_no_channel_has_taken_is_stranded_once_and_the_reason_is_told(autojump_clock: MockClock) -> None:
    worker, load = Worker(*range(CHANNELS)), items(5, PARALLEL_BYTES)
    failures, stranded = await put(worker, load)
    assert failures == ["tcp://worker: it broke"] * CHANNELS
    assert sorted(item.key for item in stranded) == [item.key for item in load]
    assert worker.stored == []
