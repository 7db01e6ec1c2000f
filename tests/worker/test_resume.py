"""A real worker, threads and all, that loses its scheduler: what outlives the loss, and what ends it in time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.testing

from tests.worker.kit import (
    Gate,
    Ref,
    Session,
    gates,
    keys_here,
    open_scheduler,
    pass_gate,
    pass_gate_and_ignore,
    value_of,
)
from trio_dask.errors import NoScheduler, TaskCancelled
from trio_dask.protocol.messages import (
    CancelRuns,
    Capacity,
    Drain,
    Free,
    Inventory,
    Leave,
    RunFailed,
    RunFinished,
    RunsReturned,
)
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.running_table import RunningTable
from trio_dask.worker.service import run_worker
from trio_dask.worker.task_context import check_cancelled, get_worker, secede

PATIENCE_S = 10


async def back_again(scheduler: Any, session: Session) -> Session:
    """Cut the link, and wait for the worker's next session."""
    session.connection.abort()
    again: Session = await scheduler.next_session()
    assert again.hello.details["previous"] == session.hello.incarnation
    assert again.hello.details["scheduler"] == scheduler.incarnation
    return again


async def test_results_and_a_running_task_outlive_a_cut_link(gate: Gate) -> None:
    async with open_scheduler(nthreads=2) as scheduler, trio.open_nursery() as nursery:
        scheduler.takes_back = True
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        done = session.submit("done", abs, -5)
        await session.hear(RunFinished)
        running = session.submit("running", pass_gate, gate.name)
        await gate.wait_reached()
        again = await back_again(scheduler, session)
        assert await again.hear(Capacity) == Capacity(2)
        inventory = await again.hear(Inventory)
        assert [(key, run, kind) for key, run, _, kind in inventory.held] == [("done", done, "int")]
        assert inventory.runs == (running,)
        gate.open.set()
        assert (await again.hear(RunFinished)).run == running
        nursery.cancel_scope.cancel()


async def test_a_scheduler_that_does_not_take_the_worker_back_finds_it_empty(gate: Gate) -> None:
    async with open_scheduler(nthreads=2) as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        session.submit("done", abs, -5)
        await session.hear(RunFinished)
        session.submit("running", wait_for_cancellation, gate.name)
        await gate.wait_reached()
        again = await back_again(scheduler, session)
        await trio.to_thread.run_sync(cancelled.wait, PATIENCE_S)
        again.submit("new", keys_here)
        assert value_of((await again.hear(RunFinished)).value) == []
        nursery.cancel_scope.cancel()


cancelled = threading.Event()


def wait_for_cancellation(name: str) -> None:
    gates[name].reached.set()
    try:
        while not gates[name].open.wait(0.001):
            check_cancelled()
    except TaskCancelled:
        cancelled.set()
        raise


async def test_the_client_of_tasks_outlives_a_return_and_not_a_reset() -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        scheduler.takes_back = True
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        session.submit("a", use_client)
        await session.hear(RunFinished)
        again = await back_again(scheduler, session)
        await again.hear(Capacity)
        await again.hear(Inventory)
        assert not clients[-1].closed.is_set()
        scheduler.takes_back = False
        await back_again(scheduler, again)
        assert await trio.to_thread.run_sync(clients[-1].closed.wait, PATIENCE_S)
        nursery.cancel_scope.cancel()


class _Client:
    def __init__(self, address: str) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


clients: list[_Client] = []


def use_client() -> None:
    clients.append(get_worker().get_client(_Client))


async def test_a_failure_reaches_the_scheduler_that_takes_the_worker_back(gate: Gate) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        scheduler.takes_back = True
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        run = session.submit("a", fail_at_gate, gate.name)
        await gate.wait_reached()
        session.connection.abort()
        gate.open.set()
        again = await scheduler.next_session()
        failed = await first_of(again, RunFailed)
        assert failed.run == run
        nursery.cancel_scope.cancel()


def fail_at_gate(name: str) -> None:
    pass_gate(name)
    raise ValueError("no")


async def first_of(session: Session, kind: type[Any]) -> Any:
    with trio.fail_after(PATIENCE_S):
        while not isinstance(message := await session.any(), kind):
            pass
    return message


# ------------------------------------------------------------------------------------------------------------ leaving


async def test_what_runs_is_finished_before_a_draining_worker_leaves(gate: Gate) -> None:
    request = DrainRequest()
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_worker(scheduler.settings, drain=request))
        session = await scheduler.next_session()
        running = session.submit("a", pass_gate, gate.name)
        queued = session.submit("b", abs, -1)
        await gate.wait_reached()
        request.ask("signal")
        assert await session.hear(RunsReturned) == RunsReturned((queued,))
        assert await session.hear(Drain) == Drain("signal")
        late = session.submit("c", abs, -1)
        assert await session.hear(RunsReturned) == RunsReturned((late,))
        gate.open.set()
        assert (await session.hear(RunFinished)).run == running
        session.tell(Leave("nothing keeps you", restart=False))
        await session.over.wait()
        assert session.connection.goodbye is not None


async def test_a_draining_worker_is_at_rest_when_its_slots_are_free(gate: Gate) -> None:
    request = DrainRequest()
    at_rest = trio.Event()
    async with open_scheduler(nthreads=2) as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_worker(scheduler.settings, drain=request, at_rest=at_rest.set))
        session = await scheduler.next_session()
        running = session.submit("a", pass_gate_and_ignore, gate.name)
        await gate.wait_reached()
        session.tell(CancelRuns((running,)))  # which does not make it leave its slot
        assert await session.hear(Capacity) == Capacity(1)
        request.ask("signal")
        assert await session.hear(Drain) == Drain("signal")
        await trio.testing.wait_all_tasks_blocked()
        assert not at_rest.is_set()
        gate.open.set()
        with trio.fail_after(PATIENCE_S):
            await at_rest.wait()
        nursery.cancel_scope.cancel()


async def test_who_waits_outside_of_the_slots_does_not_keep_a_worker_from_rest(gate: Gate) -> None:
    """What it waits for may need the successor."""
    at_rest = trio.Event()
    async with open_scheduler(max_tasks=1) as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_worker(scheduler.settings, at_rest=at_rest.set))
        session = await scheduler.next_session()
        run = session.submit("a", secede_and_pass_gate, gate.name)
        with trio.fail_after(PATIENCE_S):
            await at_rest.wait()
        assert not gate.open.is_set()
        gate.open.set()
        assert (await first_of(session, RunFinished)).run == run
        nursery.cancel_scope.cancel()


def secede_and_pass_gate(name: str) -> str:
    secede()
    return pass_gate(name)


@pytest.mark.parametrize("nthreads", [1, 4])
async def test_after_so_many_tasks_not_one_more_is_begun(nthreads: int) -> None:
    reasons: list[str] = []
    async with open_scheduler(max_tasks=5, nthreads=nthreads) as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_worker(scheduler.settings, leaving=reasons.append))
        session = await scheduler.next_session()
        session.submit("k0", abs, -1)
        runs = {session.submit(f"k{number}", sum, [Ref(f"k{number - 1}"), 1]) for number in range(1, 20)}
        finished = returned = 0
        with trio.fail_after(PATIENCE_S):
            while finished + returned < 1 + len(runs):
                message = await session.any()
                finished += isinstance(message, RunFinished)
                returned += len(message.runs) if isinstance(message, RunsReturned) else 0
                returned += type(message).__name__ == "InputMissing"
        assert finished == 5
        assert reasons == ["max-tasks"]
        session.tell(Leave("go", restart=False))


async def test_a_board_shows_what_runs(gate: Gate) -> None:
    with RunningTable.create(2) as running_table:
        async with (
            open_scheduler(nthreads=2, board_fd=running_table.fd) as scheduler,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(run_worker, scheduler.settings)
            session = await scheduler.next_session()
            run = session.submit("a", pass_gate, gate.name)
            session.submit("b", abs, -1)
            await session.hear(RunFinished)
            await gate.wait_reached()
            assert running_table.running() == (run,)
            session.tell(CancelRuns((run,)))
            gate.open.set()
            session.tell(Free(("b",)))
            session.submit("c", abs, -1)
            await first_of(session, RunFinished)
            nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------------ ending in time


async def test_neither_a_running_task_nor_its_client_holds_up_the_end(gate: Gate) -> None:
    async with open_scheduler(nthreads=2, death_timeout_s=0.2) as scheduler:
        ended: list[float] = []

        async def work() -> None:
            with pytest.raises(NoScheduler):
                await run_worker(scheduler.settings)
            ended.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            session = await scheduler.next_session()
            session.submit("a", make_stuck_client)
            await session.hear(RunFinished)
            session.submit("b", pass_gate, gate.name)
            await gate.wait_reached()
            await scheduler.stop()
            session.connection.abort()
            lost = trio.current_time()
        assert 0.2 <= ended[0] - lost < 1.5


class _Stuck(_Client):
    def close(self) -> None:
        threading.Event().wait(PATIENCE_S)


def make_stuck_client() -> None:
    get_worker().get_client(_Stuck)
