"""Fetching from workers that are silent or gone."""

import threading
from collections.abc import Sequence
from typing import Never

import pytest
import trio
import trio.testing

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.outbox import Row
from trio_dask.client.fetch_results import fetch
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.comm.transport import ConnectionLost, PeerSilent
from trio_dask.protocol import messages as m

HOLDER = "tcp://worker:1"


@pytest.mark.parametrize(
    ("failure", "said"),
    [(PeerSilent("no word for 30 s"), m.Want(("k",))), (ConnectionLost("refused"), m.FetchFailed("k", HOLDER))],
)
async def test_who_is_silent_has_not_lost_what_he_was_asked_for(
    failure: ConnectionLost | PeerSilent, said: m.FetchFailed | m.Want
) -> None:
    async def open_channel(address: str) -> Never:
        await trio.lowlevel.checkpoint()
        raise failure

    core = ClientCore()
    (state,) = core.submit((b"f" * 16, b"function"), [Row("k", b"call")], ())
    core.handle(m.KeyReady("k", 1, "int", None, (HOLDER,)))
    core.read(state, lambda *_: None)
    core.drain()
    (request,) = core.next_fetches()
    await fetch(request, WorkerChannels(open_channel), core, threading.Lock())
    assert core.drain() == [said]


class FakeChannel:
    """A channel that is closed at once, or only after a while."""

    def __init__(self) -> None:
        self.is_closed = False

    async def send(self, message: m.OnDataPlane, buffers: Sequence[object] = ()) -> None:
        raise NotImplementedError

    async def receive(self) -> Never:
        raise NotImplementedError

    def abort(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        await trio.sleep(1)
        self.is_closed = True


class Channels:
    """Channels to one worker, and what was opened for them."""

    def __init__(self) -> None:
        self.opened: list[FakeChannel] = []
        self.channels = WorkerChannels(self._open)

    async def _open(self, address: str) -> FakeChannel:
        self.opened.append(FakeChannel())
        return self.opened[-1]

    async def use(self, seconds: float) -> None:
        async def spend(_: object) -> None:
            await trio.sleep(seconds)

        await self.channels.exchange(HOLDER, spend)


@pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["in no time", "in time"])
async def test_however_long_closing_may_take_no_channel_stays_open(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    kit = Channels()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(kit.use, 1)
    assert len(kit.opened) == 3
    with trio.move_on_after(seconds):
        await kit.channels.aclose()
    assert all(channel.is_closed for channel in kit.opened)


async def test_a_channel_in_use_when_all_are_closed_is_closed_after_its_use(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kit = Channels()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.use, 1)
        await trio.testing.wait_all_tasks_blocked()
        await kit.channels.aclose()
    assert [channel.is_closed for channel in kit.opened] == [True]
