"""The bridge to asyncio's loop: results, errors and cancellations cross it, and nothing outlives it."""

import asyncio
import threading
from typing import Any

import pytest
import trio

from trio_dask.deploy.ssh import bridge as module
from trio_dask.deploy.ssh.bridge import open_bridge


async def test_a_result_and_an_error_come_back() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def fail() -> None:  # noqa: ASYNC124 - the bridge awaits it
        raise LookupError("no such thing")

    async with open_bridge() as bridge:
        assert await bridge.run(double, 21) == 42
        with pytest.raises(LookupError, match="no such thing"):
            await bridge.run(fail)


async def test_many_calls_run_at_once() -> None:
    async with open_bridge() as bridge:
        barrier = asyncio.Barrier(20)

        async def meet() -> None:
            await barrier.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(bridge.run, meet)


async def test_a_cancelled_call_is_cancelled_there_and_awaited() -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # noqa: ASYNC102 - this is asyncio
            cleaned.set()

    async with open_bridge() as bridge:
        with trio.move_on_after(0.05) as scope:
            await bridge.run(wait)
        assert scope.cancelled_caught
        assert begun.is_set()
        assert cleaned.is_set()


async def test_a_call_that_ignores_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_S", 0.05)
    over = threading.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:  # noqa: ASYNC103 - a call that does what no call may do
                pass

    async with open_bridge() as bridge:
        with trio.fail_after(5):
            with trio.move_on_after(0.05) as scope:
                await bridge.run(stubborn)
            assert scope.cancelled_caught
        over.set()


async def test_a_result_that_is_faster_than_the_cancellation_is_not_lost() -> None:
    released = threading.Event()

    async def take() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:  # noqa: ASYNC103 - it has its result already
            released.set()
        return "a connection"

    async with open_bridge() as bridge:
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + 0.05
            assert await bridge.run(take) == "a connection"
        assert released.is_set()


async def test_the_end_of_the_bridge_ends_its_thread_and_what_runs_there() -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def begin() -> None:
        tasks.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[None]] = []
    before = set(threading.enumerate())
    async with open_bridge() as bridge:
        await bridge.run(begin)
    assert cancelled.is_set()
    for thread in set(threading.enumerate()) - before:
        if thread.name == "asyncio":
            thread.join(2)
            assert not thread.is_alive()


async def test_a_task_that_has_not_begun_when_the_bridge_ends_closes_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, stopping = threading.Event(), threading.Event()

    async def serve_connection() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            closed.set()

    async with open_bridge() as bridge:
        loop = bridge._loop
        post = loop.call_soon_threadsafe

        def accept_last() -> None:
            stopping.wait(10)
            loop.call_soon(lambda: loop.create_task(serve_connection()))  # in the turn in which the loop stops

        def note_stop(*call: Any) -> None:
            post(*call)
            stopping.set()

        bridge.post(accept_last)
        monkeypatch.setattr(loop, "call_soon_threadsafe", note_stop)
    assert closed.is_set()
