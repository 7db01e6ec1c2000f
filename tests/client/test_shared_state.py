"""The phases of a client's link, and what belongs to one connection alone."""

from __future__ import annotations

from typing import Never

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, make_engine, open_async_client
from trio_dask.client.core.key_state import Ended
from trio_dask.client.shared_state import Closed, Connected, Connecting, Forked, Lost, NotStarted, Phase, SharedState
from trio_dask.errors import ForkedClientError, SchedulerLost
from trio_dask.protocol import messages as m

USABLE: list[Phase] = [Connecting(), Lost(trio.Event())]
UNUSABLE: list[tuple[Phase, type[Exception], str]] = [
    (NotStarted(), RuntimeError, "not connected yet"),
    (Closed(Ended(lost=False, text="the client is closed")), RuntimeError, "is closed"),
    (Closed(Ended(lost=True, text="nothing answers")), SchedulerLost, "nothing answers"),
    (Forked(17, "tcp://s:1"), ForkedClientError, r"process 17.*Client\('tcp://s:1'\)"),
]


@pytest.mark.parametrize("phase", USABLE, ids=lambda phase: type(phase).__name__)
def test_calls_are_taken_while_there_may_be_a_scheduler_again(phase: Phase) -> None:
    shared = SharedState()
    shared.phase = phase
    shared.check_open()


@pytest.mark.parametrize(("phase", "kind", "text"), UNUSABLE, ids=lambda value: type(value).__name__)
def test_other_phases_say_why_nothing_can_be_asked(phase: Phase, kind: type[Exception], text: str) -> None:
    shared = SharedState()
    shared.phase = phase
    with pytest.raises(kind, match=text):
        shared.check_open()


async def test_from_start_to_end_each_phase_follows_the_one_before() -> None:
    cluster = MiniCluster()
    engine = make_engine(cluster)
    seen: list[type] = [type(engine.phase)]

    def look() -> None:
        if type(engine.phase) is not seen[-1]:
            seen.append(type(engine.phase))

    async with trio.open_nursery() as nursery:
        engine.attach()
        look()
        await nursery.start(lambda task_status: engine.serve(task_status=task_status))
        look()
        cluster.say(m.Goodbye("enough"))
        await trio.testing.wait_all_tasks_blocked()
        look()
        with trio.fail_after(5):
            await engine.ask("nthreads")
        look()
        engine.stop()
    look()
    assert seen == [NotStarted, Connecting, Connected, Lost, Connected, Closed]


class _Unsendable(Exception):
    pass


async def test_a_failure_to_send_is_heard_by_those_who_wait_and_ends_that_connection_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = MiniCluster()
    async with open_async_client(cluster) as client:

        def fail(messages: object) -> Never:
            monkeypatch.undo()
            raise _Unsendable

        monkeypatch.setattr(cluster.wire, "send_many_nowait", fail)
        with trio.fail_after(5), pytest.raises(SchedulerLost, match="_Unsendable"):
            await client.nthreads()
        assert await client.nthreads() == {"tcp://worker:1": 2}
        assert len(cluster.dials) == 2


async def test_a_failure_of_an_earlier_connection_does_not_end_the_next() -> None:
    cluster = MiniCluster()
    async with open_async_client(cluster) as client:
        earlier = client.engine.phase
        assert isinstance(earlier, Connected)
        cluster.lose()
        await trio.testing.wait_all_tasks_blocked()
        earlier.fail(_Unsendable())
        await trio.testing.wait_all_tasks_blocked()
        assert client.status == "running"
        assert len(cluster.dials) == 2
