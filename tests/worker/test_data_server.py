"""Values between workers and clients, and calls: real workers on the in-memory transport."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, ClassVar

import numpy as np
import pytest
import trio

from tests.worker.kit import PATIENCE_S, Ref, Session, ask, call, open_data, open_scheduler, open_worker, put
from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import RemoteError
from trio_dask.ids import RunId
from trio_dask.protocol import data_link, pickled_values
from trio_dask.protocol.messages import (
    Absent,
    ActorCall,
    ActorMoved,
    CancelRuns,
    Fetch,
    Free,
    InputMissing,
    Put,
    PutDone,
    Replicas,
    RunFailed,
    RunFinished,
    Scattered,
    Value,
)
from trio_dask.protocol.pickling import dump_value, load_value
from trio_dask.protocol.wire_constants import MAX_BUFFERS
from trio_dask.worker.peer_channels import PeerChannels
from trio_dask.worker.service import run_worker
from trio_dask.worker.task_context import WorkerHandle


@asynccontextmanager
async def open_workers(**settings: Any) -> AsyncGenerator[tuple[Session, Session]]:
    """Two workers of one scheduler."""
    async with open_scheduler(**settings) as scheduler, trio.open_nursery() as nursery:
        for _ in range(2):
            await nursery.start(run_worker, scheduler.settings)
        yield await scheduler.next_session(), await scheduler.next_session()
        nursery.cancel_scope.cancel()


def pages(count: int) -> list[np.ndarray[Any, Any]]:
    """Arrays that are just large enough to travel out of band."""
    page = np.zeros(512)
    return [page[:] for _ in range(count)]


async def test_results_are_served_and_what_is_not_here_is_said_to_be_absent() -> None:
    async with open_worker() as session:
        session.submit("a", np.arange, 100_000)
        session.submit("b", abs, -1)
        await session.hear(RunFinished)
        await session.hear(RunFinished)
        async with await open_data(session.address) as channel:
            first, frames = await ask(channel, Fetch(("a", "nothing", "b")))
            assert isinstance(first, Value)
            array = load_value(frames)
            assert array.sum() == 99_999 * 50_000
            array[0] = 7  # it came into memory of its own
            assert (await channel.receive())[0] == Absent("nothing", "")
            last, frames = await channel.receive()
            assert isinstance(last, Value)
            assert load_value(frames) == 1


async def test_a_value_put_by_a_client_is_kept_reported_used_and_freed() -> None:
    async with open_worker() as session, await open_data(session.address) as channel:
        done = await put(channel, "x", list(range(1000)))
        assert isinstance(done, PutDone)
        stored = await session.hear(Scattered)
        assert (stored.key, stored.nbytes, stored.type_name, stored.client) == ("x", done.nbytes, "thing", "client-1")
        session.submit("a", sum, Ref("x"), holders={"x": [session.address]})
        assert await session.result() == 499_500
        session.tell(Free(("x",)))
        while not isinstance((await ask(channel, Fetch(("x",))))[0], Absent):
            pass


unpickled: list[str] = []


class Counted:
    """Notes each time it is unpickled."""

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)
        unpickled.append(self.name)

    def __init__(self, name: str) -> None:
        self.name = name


def name_of(thing: Counted) -> str:
    return thing.name


async def test_what_came_in_pickled_form_is_unpickled_once_however_many_tasks_need_it() -> None:
    unpickled.clear()
    async with open_worker(nthreads=4) as session, await open_data(session.address) as channel:
        await put(channel, "x", Counted("one"))
        await session.hear(Scattered)
        for number in range(20):
            session.submit(f"k{number}", name_of, Ref("x"), holders={"x": [session.address]})
        for _ in range(20):
            assert await session.result() == "one"
    assert unpickled == ["one"]


async def test_an_input_that_cannot_be_unpickled_fails_the_task_that_needs_it() -> None:
    async with open_worker() as session, await open_data(session.address) as channel:
        await ask(channel, Put("x", "client-1", "thing", (7,)), [b"garbage"])
        await session.hear(Scattered)
        session.submit("a", abs, Ref("x"))
        assert "Unpickling" in (await session.hear(RunFailed)).text
        session.submit("b", abs, -1)
        assert await session.result() == 1


async def test_between_sessions_nothing_new_is_kept_and_what_is_here_is_served() -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        async with await open_data(session.address) as channel:
            assert isinstance(await put(channel, "x", 1), PutDone)
            await scheduler.stop()
            session.connection.abort()
            keys = (f"y{number}" for number in count())
            while isinstance(answer := await put(channel, next(keys), 1), PutDone):
                pass  # the worker has not noticed yet
            assert "no scheduler" in answer.text
            assert (await ask(channel, Fetch((answer.key,))))[0] == Absent(answer.key, "")
            assert isinstance((await ask(channel, Fetch(("x",))))[0], Value)
        nursery.cancel_scope.cancel()


async def test_workers_fetch_from_one_another_and_tell() -> None:
    async with open_workers() as (first, second):
        first.submit("a", np.ones, 50_000)
        first.submit("b", abs, -1)
        await first.hear(RunFinished)
        await first.hear(RunFinished)
        where = {"a": [first.address], "b": [first.address]}
        run = second.submit("c", _add, Ref("a"), Ref("b"), holders=where)
        messages = [await second.any() for _ in range(2)]
        assert Replicas(("a", "b")) in messages
        assert run in [message.run for message in messages if isinstance(message, RunFinished)]


def _add(array: Any, number: int) -> float:
    return float(array.sum() + number)


async def test_thousands_of_inputs_come_from_a_peer() -> None:
    async with open_workers() as (first, second):
        count = 2000
        for number in range(count):
            first.submit(f"k{number}", abs, -number)
        for _ in range(count):
            await first.hear(RunFinished)
        where = {f"k{number}": [first.address] for number in range(count)}
        second.submit("sum", sum, [Ref(key) for key in where], holders=where)
        assert await second.result() == count * (count - 1) // 2


async def test_a_value_of_more_buffers_than_a_message_may_have_comes_from_a_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 2 + pickled_values.MAX_OUT_OF_BAND + pickled_values.MAX_PIECES < MAX_BUFFERS
    monkeypatch.setattr(data_link, "MAX_BUFFERS", 100)
    monkeypatch.setattr(pickled_values, "MAX_OUT_OF_BAND", 48)
    async with open_workers() as (first, second):
        first.submit("many", pages, 110)
        await first.hear(RunFinished)
        second.submit("b", len, Ref("many"), holders={"many": [first.address]})
        assert await second.result() == 110


async def test_a_run_whose_input_is_nowhere_is_handed_back_with_the_address_that_failed() -> None:
    async with open_workers() as (first, second):
        run = second.submit("c", abs, Ref("a"), holders={"a": ["inproc://gone", first.address]})
        assert await second.hear(InputMissing) == InputMissing(run, "a", first.address)
        run = second.submit("c", abs, Ref("a"), holders={"a": ["inproc://gone"]})
        assert await second.hear(InputMissing) == InputMissing(run, "a", "inproc://gone")
        run = second.submit("c", abs, Ref("a"), holders={"a": ["no address"]})
        assert await second.hear(InputMissing) == InputMissing(run, "a", "no address")


async def test_a_cancelled_run_lets_go_of_its_fetch() -> None:
    async with open_workers() as (first, second):
        first.submit("a", bytes, 3_000_000)
        await first.hear(RunFinished)
        run = second.submit("c", len, Ref("a"), holders={"a": [first.address]})
        second.tell(CancelRuns((run,)))
        second.submit("d", len, Ref("a"), holders={"a": [first.address]})
        assert await second.result() == 3_000_000


async def test_a_fetch_that_succeeds_just_as_it_is_cancelled_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = trio.Event(), trio.Event()

    async def fetch(peers: PeerChannels, address: str, keys: Any, take: Any, pause: Any) -> None:
        with trio.CancelScope(shield=True):  # past the last point where it could have been cancelled
            asked.set()
            await answered.wait()
        take(keys[0], dump_value("late"))

    monkeypatch.setattr(PeerChannels, "fetch", fetch)
    async with open_worker() as session:
        run = session.submit("a", abs, Ref("x"), holders={"x": ["inproc://somewhere"]})
        await asked.wait()
        session.tell(CancelRuns((run,)))
        session.submit("b", abs, -1)
        assert await session.result() == 1
        answered.set()
        session.submit("c", abs, -2)
        assert await session.result() == 2


async def test_functions_can_be_called_outside_of_the_slots() -> None:
    async with open_worker(name="alice") as session, await open_data(session.address) as channel:
        assert await call(channel, pow, 2, 5) == 32
        assert await call(channel, _ask_worker) == "alice"
        assert await call(channel, _async_answer, 41) == 42
        with pytest.raises(ValueError, match="invalid literal"):
            await call(channel, int, "no number")
        with pytest.raises(Exception, match="SystemExit"):
            await call(channel, exit, 3)
        with pytest.raises(Exception, match="KeyboardInterrupt"):
            await call(channel, _async_interrupt)
        with pytest.raises((RemoteError, TypeError), match="generator"):
            await call(channel, _generate)
        session.submit("a", abs, -1)
        assert await session.result() == 1


def _ask_worker(dask_worker: WorkerHandle) -> str | int:
    return dask_worker.name


async def _async_answer(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return number + 1


async def _async_interrupt() -> None:
    await trio.lowlevel.checkpoint()
    raise KeyboardInterrupt


def _generate() -> Any:
    return (number for number in range(3))


class PicklesOnce:
    """Fails when it is pickled a second time, which no check at the end of its task can foresee."""

    pickled: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        self.pickled.append(1)
        if len(self.pickled) > 1:
            sys.exit("half a pair: \ud800")
        return PicklesOnce, ()


async def test_a_value_that_cannot_be_sent_is_absent_with_a_reason() -> None:
    PicklesOnce.pickled.clear()
    async with open_worker() as session, await open_data(session.address) as channel:
        session.submit("a", PicklesOnce)
        await session.hear(RunFinished)
        answer, _ = await ask(channel, Fetch(("a",)))
        assert isinstance(answer, Absent)
        assert "half a pair" in answer.text
        with pytest.raises(ValueError, match="half a pair"):
            await call(channel, _raise_surrogate)


def _raise_surrogate() -> None:
    raise ValueError("half a pair: \ud800")


async def test_nonsense_on_the_data_plane_ends_that_channel_alone() -> None:
    async with open_worker() as session:
        channel = await open_data(session.address)
        with pytest.raises((trio.EndOfChannel, ConnectionLost)), trio.fail_after(PATIENCE_S):
            await ask(channel, PutDone("x", 1))
        channel.abort()
        async with await open_data(session.address) as other:
            assert await call(other, abs, -1) == 1


async def test_a_caller_of_actors_that_leaves_ends_its_channel_alone() -> None:
    """So it is when its process is killed while it waits for nothing: the system closes the connection in order."""
    async with open_worker() as session:
        async with await open_data(session.address) as channel:
            answer, _ = await ask(channel, ActorCall(1, "nobody", RunId(1), "method", ()))
            assert answer == ActorMoved("nobody", RunId(1))
        async with await open_data(session.address) as other:
            assert await call(other, abs, -1) == 1
