"""How a worker leaves in good order, on a virtual clock: no thread has to work here."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.worker.kit import Scheduler, Session, open_data, open_scheduler
from trio_dask.protocol.messages import Capacity, Drain, Inventory, Leave, Put, PutDone
from trio_dask.protocol.pickling import dump_value
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.service import run_worker

MockClock = trio.testing.MockClock


class Leaver:
    """A worker that is registered and can be asked to drain."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.request = DrainRequest()
        self.reasons: list[str] = []
        self.rests: list[float] = []
        self.ended_at: float | None = None
        self.session: Session

    async def run(self) -> None:
        await run_worker(
            self.scheduler.settings,
            drain=self.request,
            leaving=self.reasons.append,
            at_rest=lambda: self.rests.append(trio.current_time()),
        )
        self.ended_at = trio.current_time()

    def said(self) -> str:
        goodbye = self.session.connection.goodbye
        assert goodbye is not None
        return goodbye.reason


@asynccontextmanager
async def open_leaver(**settings: Any) -> AsyncGenerator[Leaver]:
    async with open_scheduler(**settings) as scheduler, trio.open_nursery() as nursery:
        leaver = Leaver(scheduler)
        nursery.start_soon(leaver.run)
        leaver.session = await scheduler.next_session()
        await trio.testing.wait_all_tasks_blocked()
        yield leaver
        nursery.cancel_scope.cancel()


async def test_it_leaves_as_soon_as_the_scheduler_lets_it_go(autojump_clock: MockClock) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        leaver.request.ask("signal")
        assert await leaver.session.hear(Drain) == Drain("signal")
        await trio.sleep(7)
        leaver.session.tell(Leave("nothing is left", restart=False))
        await leaver.session.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert leaver.ended_at == pytest.approx(trio.current_time())
        assert leaver.reasons == ["signal"]
        assert leaver.said() == "nothing is left"


async def test_without_a_word_from_the_scheduler_it_leaves_in_time_and_says_goodbye(autojump_clock: MockClock) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        started = trio.current_time()
        leaver.request.ask("signal")
        await trio.sleep(100)
        assert leaver.ended_at == pytest.approx(started + 30)
        assert leaver.said() == "signal"


async def test_an_impatient_request_shortens_the_time_and_a_patient_one_does_not_prolong_it(
    autojump_clock: MockClock,
) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        started = trio.current_time()
        assert leaver.request.on_signal(signal.SIGTERM)
        await trio.sleep(5)
        assert leaver.request.on_signal(signal.SIGINT)
        assert leaver.request.on_signal(signal.SIGTERM)
        await trio.sleep(100)
        assert leaver.ended_at == pytest.approx(started + 6.5)
        assert leaver.reasons == ["signal"]


async def test_after_its_lifetime_it_drains_by_itself(autojump_clock: MockClock) -> None:
    async with open_leaver(lifetime_s=60, drain_timeout_s=10) as leaver:
        await trio.sleep(59)
        assert not leaver.reasons
        await trio.sleep(2)
        assert leaver.reasons == ["lifetime"]
        assert await leaver.session.hear(Drain) == Drain("lifetime")
        await trio.sleep(10)
        assert leaver.ended_at == pytest.approx(70)


async def test_with_nobody_to_take_leave_of_it_goes_at_once(autojump_clock: MockClock) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        leaver.scheduler.refusal = "not now"
        leaver.session.connection.abort()
        await trio.sleep(1)
        lost = trio.current_time()
        assert not leaver.request.on_signal(signal.SIGTERM)  # so that the program cancels it
        leaver.request.ask("somebody else asks")
        await trio.testing.wait_all_tasks_blocked()
        assert leaver.ended_at == pytest.approx(lost)


async def test_a_worker_that_was_never_registered_leaves_at_once(autojump_clock: MockClock) -> None:
    async with open_scheduler(scheduler="inproc://nobody", death_timeout_s=60) as scheduler:
        leaver = Leaver(scheduler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver.run)
            await trio.sleep(3)
            leaver.request.ask("signal")
        assert leaver.ended_at == pytest.approx(3)


async def test_if_the_link_is_lost_while_it_drains_with_something_to_save_it_comes_back_and_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        leaver.scheduler.takes_back = True
        await put_value(leaver.session.address)
        leaver.request.ask("signal")
        await trio.testing.wait_all_tasks_blocked()
        leaver.session.connection.abort()
        leaver.session = await leaver.scheduler.next_session()
        assert await leaver.session.hear(Capacity) == Capacity(1)
        stored = await leaver.session.any()
        assert type(stored).__name__ == "Scattered"
        inventory = await leaver.session.hear(Inventory)
        assert [row[0] for row in inventory.held] == ["k"]
        assert await leaver.session.hear(Drain) == Drain("signal")
        await trio.sleep(40)
        assert leaver.ended_at == pytest.approx(30)


async def test_if_the_link_is_lost_while_it_drains_with_nothing_to_save_that_is_the_end(
    autojump_clock: MockClock,
) -> None:
    async with open_leaver(drain_timeout_s=30, reconnect=True) as leaver:
        leaver.request.ask("signal")
        await trio.testing.wait_all_tasks_blocked()
        leaver.session.connection.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert leaver.ended_at == pytest.approx(0)


async def test_while_it_drains_that_is_its_only_limit(autojump_clock: MockClock) -> None:
    async with open_leaver(drain_timeout_s=30, lifetime_s=20, death_timeout_s=5) as leaver:
        await put_value(leaver.session.address)
        leaver.request.ask("signal")
        await trio.testing.wait_all_tasks_blocked()
        await leaver.scheduler.stop()
        leaver.session.connection.abort()
        await trio.sleep(100)
        assert leaver.ended_at == pytest.approx(30)
        assert leaver.reasons == ["signal"]


async def put_value(address: str) -> None:
    """What a client does to have a value kept there."""

    frames = dump_value([1])
    async with await open_data(address) as channel:
        await channel.send(Put("k", "client", "list", tuple(map(len, frames))), frames)
        answer, _ = await channel.receive()
        assert isinstance(answer, PutDone)


@pytest.mark.parametrize(
    ("settings", "restart", "reasons"),
    [({}, False, ["scheduler"]), ({"process": "p"}, False, ["scheduler"]), ({"process": "p"}, True, ["restart"])],
)
async def test_sent_away_it_says_why_before_it_leaves(
    autojump_clock: MockClock, settings: dict[str, Any], restart: bool, reasons: list[str]
) -> None:
    async with open_leaver(**settings) as leaver:
        leaver.session.tell(Leave("go", restart=restart))
        await leaver.session.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert leaver.ended_at is not None
        assert leaver.reasons == reasons


async def test_it_is_at_rest_at_once_if_nothing_runs_and_not_before_it_drains(autojump_clock: MockClock) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        await put_value(leaver.session.address)
        await trio.sleep(5)
        assert leaver.rests == []
        leaver.request.ask("signal")
        await trio.sleep(5)
        assert leaver.rests == [5]


async def test_if_the_link_is_down_for_a_moment_it_does_not_leave_what_it_has_to_its_fate(
    autojump_clock: MockClock,
) -> None:
    async with open_leaver(drain_timeout_s=30) as leaver:
        leaver.scheduler.takes_back = True
        await put_value(leaver.session.address)
        leaver.scheduler.refusal = "not now"
        leaver.session.connection.abort()
        await trio.sleep(1)
        leaver.request.ask("terminate")
        await trio.sleep(5)
        assert leaver.ended_at is None
        leaver.scheduler.refusal = None
        leaver.session = await leaver.scheduler.next_session()
        await leaver.session.hear(Capacity)
        assert type(await leaver.session.any()).__name__ == "Scattered"
        await leaver.session.hear(Inventory)
        assert await leaver.session.hear(Drain) == Drain("terminate")
        await trio.sleep(100)
        assert leaver.ended_at == pytest.approx(31)
