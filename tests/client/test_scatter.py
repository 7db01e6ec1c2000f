"""Putting values onto workers: each once, over one channel or several, and what follows a silence or a break."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from trio_dask.client import scatter
from trio_dask.client.scatter import ANSWER_S, CHANNELS, PARALLEL_BYTES, ScatterItem
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.errors import ClusterError
from trio_dask.protocol.messages import Put, PutDone

STOPPED, OTHER = "tcp://stopped:1", "tcp://other:1"


class FakeChannel:
    """To a worker that confirms what it is sent after a while, or never."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.sent: list[Any] = []
        self.is_open = True

    async def send(self, message: object, buffers: Sequence[Any] = ()) -> None:
        self.sent.append(message)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> tuple[Any, list[Any]]:
        await trio.sleep(self.answer_s)
        return PutDone(self.sent[-1].key, 1), []

    def abort(self) -> None:
        self.is_open = False

    async def aclose(self) -> None:
        self.is_open = False


class FakeEngine:
    incarnation = "me"

    @property
    def it(self) -> Any:
        """Where an `Engine` is expected."""
        return self

    def __init__(self, answers: dict[str, float]) -> None:
        self.opened = {address: FakeChannel(answer_s) for address, answer_s in answers.items()}
        self.channels = WorkerChannels(self.open)

    async def open(self, address: str) -> FakeChannel:
        await trio.lowlevel.checkpoint()
        return self.opened[address]


def item() -> ScatterItem:
    return ScatterItem("key", "bytes", [memoryview(b"value")])


async def test_a_worker_that_does_not_confirm_what_it_was_sent_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine = FakeEngine({STOPPED: float("inf")})
    failures: list[str] = []
    stranded: list[ScatterItem] = []
    await scatter._put_each(engine.it, STOPPED, deque([item()]), failures, stranded)
    assert trio.current_time() == pytest.approx(ANSWER_S, abs=1)
    assert [left.key for left in stranded] == ["key"]
    assert "not confirmed within 30 s" in failures[0]
    assert not engine.opened[STOPPED].is_open


async def test_what_one_worker_does_not_confirm_another_one_takes(autojump_clock: trio.testing.MockClock) -> None:
    engine = FakeEngine({STOPPED: float("inf"), OTHER: ANSWER_S - 1})
    failures: list[str] = []
    await scatter._put_anywhere(engine.it, item(), {STOPPED: 1, OTHER: 1}, failures)
    assert len(failures) == 1
    assert [put.key for put in engine.opened[OTHER].sent] == ["key"]


async def test_where_nobody_confirms_there_is_an_end(autojump_clock: trio.testing.MockClock) -> None:
    engine = FakeEngine({STOPPED: float("inf")})
    with pytest.raises(ClusterError, match="no worker accepted 'key'"):
        await scatter._put_anywhere(engine.it, item(), {STOPPED: 1}, [])


# --------------------------------------------------------------------------------------------- several channels


class SlowWorker:
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
            await use(_SlowChannel(self, number in self.broken))
        finally:
            self.open -= 1


class _SlowChannel:
    def __init__(self, worker: SlowWorker, breaks: bool) -> None:
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


async def put(worker: SlowWorker, load: list[ScatterItem]) -> tuple[list[str], list[ScatterItem]]:
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
    autojump_clock: trio.testing.MockClock, count: int, nbytes: int, channels: int
) -> None:
    worker, load = SlowWorker(), items(count, nbytes)
    assert await put(worker, load) == ([], [])
    assert worker.most_open == worker.channels == channels
    assert sorted(worker.stored) == [item.key for item in load]
    assert trio.current_time() <= -(-count // channels) + 0.1


async def test_what_a_broken_channel_leaves_behind_goes_over_the_others(autojump_clock: trio.testing.MockClock) -> None:
    worker, load = SlowWorker(0), items(5, PARALLEL_BYTES)
    assert await put(worker, load) == ([], [])
    assert sorted(worker.stored) == [item.key for item in load]


async def test_what_no_channel_has_taken_is_stranded_once_and_the_reason_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker, load = SlowWorker(*range(CHANNELS)), items(5, PARALLEL_BYTES)
    failures, stranded = await put(worker, load)
    assert failures == ["tcp://worker: it broke"] * CHANNELS
    assert sorted(item.key for item in stranded) == [item.key for item in load]
    assert worker.stored == []
