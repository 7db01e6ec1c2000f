"""Putting values onto workers that do not answer."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from trio_dask.client import scatter
from trio_dask.client.scatter import ANSWER_S, ScatterItem
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.errors import ClusterError
from trio_dask.protocol.messages import PutDone

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
