"""Asking peers: channels are used again, and a kept one that was closed meanwhile costs nothing but a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import trio

from trio_dask.comm import DataChannel
from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import Absent, Fetch, Value
from trio_dask.worker.peer_channels import IDLE_S, MEASURED_BYTES, SMOOTHING, PeerChannels

Answer = Callable[[str], tuple[Any, Sequence[bytes]]]


def value(key: str) -> tuple[Any, Sequence[bytes]]:
    return Value(key, (1,)), [key.encode()]


class FakeChannel:
    """Answers each key by a function, until it is closed by the peer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.keys: list[str] = []
        self.aborted = False
        self.closed_by_peer = False

    async def send(self, message: Fetch, buffers: Sequence[bytes] = ()) -> None:
        await trio.lowlevel.checkpoint()
        if self.closed_by_peer:
            raise ConnectionLost("closed")
        self.keys += message.keys

    async def receive(self, room: object = None) -> tuple[Any, Sequence[bytes]]:
        await trio.lowlevel.checkpoint()
        if self.closed_by_peer:
            raise trio.EndOfChannel
        return self.answer(self.keys.pop(0))

    def receive_nowait(self) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True


class Kit:
    """PeerChannels whose channels are fake, and what was taken from them."""

    def __init__(self, answer: Answer = value) -> None:
        self.answer = answer
        self.opened: list[FakeChannel] = []
        self.taken: dict[str, Any] = {}
        self.peers = PeerChannels(self.open)

    async def open(self, address: str) -> DataChannel:
        await trio.lowlevel.checkpoint()
        self.opened.append(FakeChannel(self.answer))
        return cast("DataChannel", self.opened[-1])

    async def fetch(self, *keys: str) -> None:
        await self.peers.fetch("there", keys, self.taken.__setitem__)


async def test_answers_are_taken_in_order_and_the_channel_is_used_again() -> None:
    kit = Kit(lambda key: value(key) if key != "b" else (Absent(key, ""), []))
    await kit.fetch("a", "b", "c")
    await kit.fetch("d")
    assert kit.taken == {"a": [b"a"], "b": None, "c": [b"c"], "d": [b"d"]}
    assert list(kit.taken) == ["a", "b", "c", "d"]
    assert len(kit.opened) == 1


async def test_a_kept_channel_that_was_closed_is_replaced() -> None:
    kit = Kit()
    await kit.fetch("a")
    kit.opened[0].closed_by_peer = True
    await kit.fetch("b")
    assert kit.taken == {"a": [b"a"], "b": [b"b"]}
    assert kit.opened[0].aborted


async def test_a_peer_that_goes_in_the_middle_is_reported_and_what_came_is_kept() -> None:
    def answer(key: str) -> tuple[Any, Sequence[bytes]]:
        if key == "b":
            raise trio.EndOfChannel
        return value(key)

    kit = Kit(answer)
    with pytest.raises(ConnectionError):
        await kit.fetch("a", "b")
    assert kit.taken == {"a": [b"a"]}
    assert [channel.aborted for channel in kit.opened] == [True]


async def test_an_answer_to_another_question_is_a_protocol_error() -> None:
    kit = Kit(lambda key: value("something else"))
    with pytest.raises(ProtocolError):
        await kit.fetch("a")
    assert kit.opened[0].aborted
    assert kit.taken == {}


async def test_a_cancelled_fetch_gives_up_its_channel() -> None:
    kit = Kit()
    with trio.CancelScope() as scope:
        scope.cancel()
        await kit.fetch("a")
    with trio.CancelScope() as scope:
        await kit.open("there")
        kit.peers = PeerChannels(kit.open)
        kit.answer = lambda key: (scope.cancel(), value(key))[1]
        await kit.fetch("a", "b")
    assert scope.cancelled_caught
    assert kit.opened[-1].aborted


async def test_large_values_tell_how_fast_they_come_and_small_ones_do_not(autojump_clock: object) -> None:
    class SlowChannel(FakeChannel):
        async def receive(self, room: object = None) -> tuple[Any, Sequence[bytes]]:
            await trio.sleep(0.5)
            return await super().receive(room)

    def answer(key: str) -> tuple[Any, Sequence[bytes]]:
        return Value(key, (sizes[key],)), [bytes(sizes[key])]

    async def open_slow(address: str) -> DataChannel:
        await trio.lowlevel.checkpoint()
        return cast("DataChannel", SlowChannel(answer))

    sizes = {"small": 1000, "large": 2 * MEASURED_BYTES, "larger": 4 * MEASURED_BYTES}
    kit = Kit()
    kit.peers = PeerChannels(open_slow)
    await kit.fetch("small")
    assert kit.peers.bytes_per_s is None
    await kit.fetch("small", "large")
    assert kit.peers.bytes_per_s == pytest.approx(4 * MEASURED_BYTES)
    await kit.fetch("larger", "small")
    assert kit.peers.bytes_per_s == pytest.approx((4 + SMOOTHING * 4) * MEASURED_BYTES)


async def test_idle_channels_are_closed_after_a_while() -> None:
    kit = Kit()
    await kit.fetch("a")
    kit.peers.close_idle(trio.current_time())
    assert not kit.opened[0].aborted
    kit.peers.close_idle(trio.current_time() + IDLE_S)
    assert kit.opened[0].aborted
    await kit.fetch("b")
    kit.peers.close_idle()
    assert [channel.aborted for channel in kit.opened] == [True, True]


async def test_a_channel_in_use_when_all_are_closed_is_closed_after_its_use() -> None:
    def close_and_answer(key: str) -> tuple[Any, Sequence[bytes]]:
        kit.peers.close()
        return value(key)

    kit = Kit(close_and_answer)
    await kit.fetch("a")
    assert kit.taken == {"a": [b"a"]}
    assert [channel.aborted for channel in kit.opened] == [True]
