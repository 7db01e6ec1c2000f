"""A real worker, threads and all, against a scheduler that does what the test says."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
import trio

from tests.worker.kit import Gate, Ref, gates, keys_here, open_worker, pass_gate, pass_gate_and_ignore, value_of
from trio_dask.errors import TaskExited
from trio_dask.protocol.messages import (
    CancelRuns,
    Capacity,
    Free,
    Heartbeat,
    InputMissing,
    ReturnRuns,
    RunFailed,
    RunFinished,
    RunsReturned,
    Started,
)
from trio_dask.protocol.pickling import rebuild_exception
from trio_dask.worker import core_driver
from trio_dask.worker.task_context import get_worker

PATIENCE_S = 10


async def sleep_at_gate(name: str) -> None:
    gates[name].reached.set()
    await trio.sleep_forever()


def raise_surrogate() -> None:
    raise ValueError("half a pair: \ud800")


async def test_a_task_runs_and_its_result_comes_back() -> None:
    async with open_worker() as session:
        run = session.submit("a", pow, 2, 10)
        finished = await session.hear(RunFinished)
        assert finished.run == run
        assert finished.type_name == "int"
        assert value_of(finished.value) == 1024


async def test_a_worker_says_who_and_where_it_is() -> None:
    async with open_worker(name="alice", nthreads=3, memory_limit_bytes=10**9, resources={"GPU": 2.0}) as session:
        assert session.hello.name == "alice"
        details = session.hello.details
        assert (details["nthreads"], details["memory_limit"], details["resources"]) == (3, 10**9, {"GPU": 2.0})
        assert details["address"].startswith("inproc://")
        assert details["metrics"]["memory_bytes"] > 2**20
        assert (details["metrics"]["executing"], details["metrics"]["keys"]) == (0, 0)


async def test_a_chain_handed_ahead_runs_without_another_word() -> None:
    async with open_worker() as session:
        session.submit("k0", abs, -1)
        for number in range(1, 20):
            session.submit(f"k{number}", sum, [Ref(f"k{number - 1}"), 1])
        finished = [await session.hear(RunFinished) for _ in range(20)]
        assert [message.run for message in finished] == list(range(1, 21))
        assert value_of(finished[-1].value) == 20


async def test_a_failing_task_fails_alone_and_what_waited_for_it_is_handed_back() -> None:
    async with open_worker() as session:
        failing = session.submit("a", int, "no number")
        behind = session.submit("b", abs, Ref("a"))
        session.submit("c", abs, -5)
        failed = await session.hear(RunFailed)
        assert (failed.run, failed.kind) == (failing, "exception")
        assert failed.text.startswith("ValueError: invalid literal")
        error = rebuild_exception(failed.error, failed.text, key="a", worker="w", attempt=1)
        assert isinstance(error, ValueError)
        messages = [await session.any() for _ in range(2)]
        assert InputMissing(behind, "a", "") in messages


async def test_a_task_that_exits_leaves_the_worker_alone() -> None:
    async with open_worker() as session:
        session.submit("a", exit, 3)
        failed = await session.hear(RunFailed)
        error = rebuild_exception(failed.error, failed.text, key="a", worker="w", attempt=1)
        assert isinstance(error, TaskExited)
        assert error.code == 3
        session.submit("b", abs, -5)
        await session.hear(RunFinished)


async def test_text_that_no_wire_takes_still_arrives_as_a_failure() -> None:
    async with open_worker() as session:
        session.submit("a", raise_surrogate)
        assert "half a pair" in (await session.hear(RunFailed)).text
        session.submit("b", abs, -5)
        await session.hear(RunFinished)


async def test_what_has_not_started_can_be_taken_back(gate: Gate) -> None:
    async with open_worker() as session:
        running = session.submit("a", pass_gate, gate.name)
        queued = session.submit("b", abs, -1)
        await gate.wait_reached()
        session.tell(ReturnRuns((running, queued)))
        assert await session.hear(RunsReturned) == RunsReturned((queued,))
        gate.open.set()
        assert (await session.hear(RunFinished)).run == running


async def test_an_async_task_is_cancelled_at_once(gate: Gate) -> None:
    async with open_worker() as session:
        run = session.submit("a", sleep_at_gate, gate.name)
        await gate.wait_reached()
        session.tell(CancelRuns((run,)))
        after = session.submit("b", abs, -1)
        assert (await session.hear(RunFinished)).run == after


async def test_an_async_task_out_of_time_ends_at_once(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_driver, "LONG_RUN_S", 1000)
    async with open_worker(heartbeat_interval_s=1000) as session:
        run = session.submit("a", sleep_at_gate, gate.name, time_limit=0.01)
        assert await session.hear(Started) == Started((run,))
        failed = await session.hear(RunFailed)
        assert (failed.run, failed.kind) == (run, "timeout")
        after = session.submit("b", abs, -1)
        assert (await session.hear(RunFinished)).run == after


async def test_a_thread_out_of_time_keeps_its_slot_until_it_returns(gate: Gate) -> None:
    async with open_worker(nthreads=2) as session:
        run = session.submit("a", pass_gate, gate.name, time_limit=0.01)
        assert await session.hear(Started) == Started((run,))
        assert (await session.hear(RunFailed)).kind == "timeout"
        assert await session.hear(Capacity) == Capacity(1)
        after = session.submit("b", abs, -1)
        assert (await session.hear(RunFinished)).run == after
        gate.open.set()
        assert await session.hear(Capacity) == Capacity(2)


async def test_a_run_is_announced_before_it_starts(gate: Gate) -> None:
    async with open_worker() as session:
        run = session.submit("a", pass_gate, gate.name, announce=True)
        assert await session.hear(Started) == Started((run,))
        await gate.wait_reached()
        gate.open.set()
        assert (await session.hear(RunFinished)).run == run


async def test_a_long_run_is_announced_while_it_goes_on(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_driver, "LONG_RUN_S", 0.01)
    async with open_worker(heartbeat_interval_s=1000) as session:
        run = session.submit("a", pass_gate, gate.name)
        assert await session.hear(Started) == Started((run,))
        gate.open.set()
        await session.hear(RunFinished)


async def test_heartbeats_tell_what_is_here() -> None:
    async with open_worker(heartbeat_interval_s=0.01) as session:
        session.submit("a", bytes, 1000)
        await session.hear(RunFinished)
        with trio.fail_after(PATIENCE_S):
            while True:
                message = await session.any()
                if isinstance(message, Heartbeat) and message.metrics["keys"] == 1:
                    break
        assert message.metrics["managed_bytes"] > 1000
        assert message.metrics["memory_bytes"] > 10**6


async def test_a_freed_result_is_let_go() -> None:
    async with open_worker() as session:
        session.submit("a", abs, -1)
        await session.result()
        session.submit("b", keys_here)
        assert await session.result() == ["a"]
        session.tell(Free(("a",)))
        session.submit("c", keys_here)
        assert await session.result() == ["b"]


async def test_the_result_of_a_run_that_ignored_its_cancellation_is_not_kept(gate: Gate) -> None:
    async with open_worker(nthreads=2) as session:
        run = session.submit("a", pass_gate_and_ignore, gate.name)
        await gate.wait_reached()
        session.tell(CancelRuns((run,)))
        assert await session.hear(Capacity) == Capacity(1)
        gate.open.set()
        assert await session.hear(Capacity) == Capacity(2)
        session.submit("b", keys_here)
        assert await session.result() == []


async def test_functions_and_results_of_every_size_go_through() -> None:
    async with open_worker(inline_limit_bytes=1000) as session:
        session.submit("big", bytes, 5_000_000)
        finished = await session.hear(RunFinished)
        assert finished.value is None
        assert finished.nbytes > 5_000_000
        session.submit("length", len, Ref("big"))
        assert value_of((await session.hear(RunFinished)).value) == 5_000_000
        session.submit("argument", len, b"x" * 3_000_000)
        assert value_of((await session.hear(RunFinished)).value) == 3_000_000


async def test_thousands_of_tasks_at_once() -> None:
    async with open_worker(nthreads=4) as session:
        runs = {session.submit(f"k{number}", abs, -number): number for number in range(3000)}
        for _ in range(3000):
            finished = await session.hear(RunFinished)
            assert value_of(finished.value) == runs.pop(finished.run)


async def test_a_worker_that_is_stopped_says_goodbye_and_leaves_no_thread(gate: Gate) -> None:
    before = set(threading.enumerate())
    async with open_worker(nthreads=3) as session:
        session.submit("a", pass_gate, gate.name)
        await gate.wait_reached()
    await session.over.wait()
    assert session.connection.goodbye is not None
    assert session.connection.goodbye.reason == "the worker was stopped"
    gate.open.set()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("slot-"):
            await trio.to_thread.run_sync(thread.join, PATIENCE_S)
            assert not thread.is_alive()


class SharedClient:
    """What a task that needs a client gets, instead of a real one."""

    made: ClassVar[list[str]] = []

    def __init__(self, scheduler_address: str) -> None:
        self.made.append(scheduler_address)
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def use_client() -> int:
    return id(get_worker().get_client(SharedClient))


def client_of_worker() -> None:
    client = get_worker().client
    assert isinstance(client, SharedClient)
    clients.append(client)


clients: list[SharedClient] = []


async def test_tasks_share_one_client_which_is_closed_with_the_session() -> None:
    SharedClient.made.clear()
    async with open_worker(nthreads=4) as session:
        for number in range(8):
            session.submit(f"k{number}", use_client)
        assert len({await session.result() for _ in range(8)}) == 1
        session.submit("last", client_of_worker)
        await session.result()
    assert SharedClient.made == ["inproc://scheduler"]
    assert clients.pop().closed.is_set()
