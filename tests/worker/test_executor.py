"""The executor with real threads: what happens is arranged by events, never by waiting for time to pass."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from queue import SimpleQueue
from typing import Any

import pytest
import trio
import trio.testing

from trio_dask.errors import TaskCancelled
from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.protocol.pickled_nodes import NODE, RESULT, VALUE, GivenArguments, NodePickler
from trio_dask.protocol.pickling import pickle_call, rebuild_exception
from trio_dask.worker import executor as executor_module
from trio_dask.worker.async_tasks import AsyncCall
from trio_dask.worker.core.ready_queue import ReadyQueue
from trio_dask.worker.executor import Begun, Declined, Executor, Failed, Finished, InputGone, Outcome
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.result_store import ResultStore
from trio_dask.worker.running_table import RunningTable
from trio_dask.worker.task_context import TaskContext, WorkerHandle, check_cancelled, current_task, get_worker

PATIENCE_S = 10


class _ReadyQueue(ReadyQueue):
    """One whose `take` a test may replace: without slots."""


class Slots:
    """An executor whose functions stand in a table, so that they can share events with the test."""

    def __init__(self, slots: int, **options: Any) -> None:
        self.ready = _ReadyQueue()
        self.store = ResultStore()
        self.functions: dict[bytes, Callable[..., Any]] = {}
        self.handle = WorkerHandle(name="w", nthreads=slots, data=self.store)
        self.executor = Executor(
            slots,
            ready=self.ready,
            blobs={},
            values=self.store,
            worker=self.handle,
            inline_limit_bytes=100,
            **options,
        )
        self.bursts: list[list[Outcome]] = []
        self.closed = threading.Event()
        self._outcomes, self._next = trio.open_memory_channel[Outcome](10_000)

    def take(self, outcomes: list[Outcome]) -> None:
        self.bursts.append(outcomes)
        for outcome in outcomes:
            self._outcomes.send_nowait(outcome)

    def offer(self, number: int, function: Callable[..., Any], *args: Any, priority: int = 0, **extra: Any) -> Run:
        run = self.run(number, function, *args, priority=priority, **extra)
        self.ready.push(run)
        return run

    def run(self, number: int, function: Callable[..., Any], *args: Any, priority: int = 0, **extra: Any) -> Run:
        call = pickle_call(args, {})
        dependencies = tuple((key, ()) for key in call.dependencies)
        digest = function.__name__.encode() + str(id(function)).encode()
        self.functions[digest] = function
        return Run(RunId(number), f"k{number}", digest, call.call, dependencies, priority, extra)

    def wake(self) -> None:
        self.executor.wake(self.ready.offered)
        self.ready.offered = 0

    async def outcome(self) -> Outcome:
        with trio.fail_after(PATIENCE_S):
            return await self._next.receive()

    async def value(self) -> Any:
        outcome = await self.outcome()
        assert isinstance(outcome, Finished), outcome
        return outcome.value

    async def error(self) -> BaseException:
        outcome = await self.outcome()
        assert isinstance(outcome, Failed), outcome
        return rebuild_exception(outcome.error, outcome.text, key="k", worker="w", attempt=1)


OpenSlots = Callable[..., AbstractAsyncContextManager[Slots]]


@pytest.fixture
def open_slots(monkeypatch: pytest.MonkeyPatch) -> OpenSlots:
    @asynccontextmanager
    async def open_slots(slots: int = 1, **options: Any) -> AsyncGenerator[Slots]:
        kit = Slots(slots, **options)
        blobs = _Names()
        monkeypatch.setattr(kit.executor, "_blobs", blobs)
        monkeypatch.setattr(executor_module, "load_function", lambda _digest, data, _: (kit.functions[data], True))
        before = set(threading.enumerate())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.executor.run, kit.take)
            await trio.testing.wait_all_tasks_blocked()
            yield kit
            nursery.cancel_scope.cancel()
        kit.closed.set()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("slot-"):
                await trio.to_thread.run_sync(thread.join, PATIENCE_S)
                assert not thread.is_alive(), f"{thread.name} has not ended"

    return open_slots


class _Quotient:
    """A node of a graph."""

    def __call__(self, results: Mapping[str, int]) -> int:
        return results["a"] // results["b"]


class _Names(dict[bytes, bytes]):
    def __missing__(self, digest: bytes) -> bytes:
        return digest


async def test_a_slot_runs_what_is_offered_and_reports_value_size_type_and_time(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        run = slots.offer(1, pow, 2, 5)
        slots.wake()
        finished = await slots.outcome()
        assert isinstance(finished, Finished)
        assert finished.run is run
        assert (finished.value, finished.type_name) == (32, "int")
        assert finished.inline is not None
        assert finished.nbytes == len(finished.inline)
        assert finished.duration_s > 0


async def test_loading_a_function_for_the_first_time_is_not_part_of_its_first_calls_time(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1e9]

    def work() -> None:
        clock[0] += 5

    def load(digest: bytes, data: bytes, blobs: object) -> tuple[Callable[[], None], bool]:
        clock[0] += 100  # it imports its library
        return work, True

    async with open_slots() as slots:
        monkeypatch.setattr(executor_module, "perf_counter", lambda: clock[0])
        monkeypatch.setattr("trio_dask.worker.task_context.perf_counter", lambda: clock[0])
        monkeypatch.setattr(executor_module, "load_function", load)
        for number in (1, 2):
            slots.offer(number, work)
            slots.wake()
            finished = await slots.outcome()
            assert isinstance(finished, Finished)
            assert finished.duration_s == 5


async def test_a_value_above_the_limit_does_not_ride_along(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        slots.offer(1, bytes, 101)
        slots.wake()
        finished = await slots.outcome()
        assert isinstance(finished, Finished)
        assert finished.inline is None
        assert finished.nbytes > 100


async def test_a_task_of_a_graph_gets_what_its_nodes_give(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        slots.store.put("a", 7, 28)
        slots.store.put("b", 2, 28)
        plain = slots.run(1, pow, 0, exp=0)
        given = GivenArguments((_Quotient(), 1), {"mod": 5}, bytes([NODE, RESULT, VALUE]), ("a", "b"))
        call = NodePickler({}).pickle_call(given).call
        slots.ready.push(plain._replace(call=call, dependencies=(("a", ()), ("b", ())), extra={}))
        slots.wake()
        assert await slots.value() == 3**2 % 5
        slots.store.put("b", 0, 28)
        slots.ready.push(plain._replace(run=RunId(2), call=call, dependencies=(("a", ()), ("b", ())), extra={}))
        slots.wake()
        assert isinstance(await slots.error(), ZeroDivisionError)
        slots.ready.push(plain._replace(run=RunId(3), call=call, dependencies=(("a", ()), ("gone", ())), extra={}))
        slots.wake()
        gone = await slots.outcome()
        assert isinstance(gone, InputGone)
        assert gone.key == "gone"


async def test_who_is_known_for_large_results_passes_the_gate_and_so_does_who_is_not_known(
    open_slots: OpenSlots,
) -> None:
    passed: list[int] = []

    def take(nbytes: int) -> bool:
        passed.append(nbytes)
        return True

    reservations = Reservations(take, lambda: None)

    def unknown() -> int:
        return 1

    async with open_slots(reservations=reservations, reserve_from=1000) as slots:

        async def run(function: Callable[..., Any], *args: Any) -> Any:
            slots.offer(len(slots.bursts), function, *args)
            slots.wake()
            return await slots.value()

        await run(abs, -1)
        await run(bytes, 5000)
        assert passed == []  # nothing large was ever seen
        await run(abs, -1)
        assert passed == []
        await run(bytes, 2000)
        await run(unknown)
        await run(unknown)
        large = len(pickle.dumps(bytes(5000), 5))
        assert passed == [large, large * 7 // 8]  # what is expected fades, and of `unknown` nothing is the second time
        for _ in range(20):
            await run(bytes, 10)
        passed.clear()
        await run(bytes, 10)
        assert passed == []


async def test_a_run_that_waits_at_the_gate_is_not_on_the_board_yet(open_slots: OpenSlots) -> None:
    token, called = trio.lowlevel.current_trio_token(), trio.Event()
    reservations = Reservations(lambda nbytes: False, lambda: token.run_sync_soon(called.set))
    with RunningTable.create(1) as running_table:
        async with open_slots(1, running_table=running_table, reservations=reservations, reserve_from=1000) as slots:
            slots.offer(1, bytes, 5000)
            slots.wake()
            await slots.value()
            slots.offer(2, bytes, 5000)
            slots.wake()
            with trio.fail_after(PATIENCE_S):
                await called.wait()
            assert slots.executor.busy
            assert 2 not in running_table.running()
            reservations.close()
            await slots.value()


async def test_a_run_that_waits_at_the_gate_has_not_started(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, called = trio.lowlevel.current_trio_token(), trio.Event()
    reservations = Reservations(lambda nbytes: False, lambda: token.run_sync_soon(called.set))
    clock = [1e9]
    started = threading.Event()
    go_on = threading.Event()

    def work() -> bytes:
        started.set()
        assert go_on.wait(PATIENCE_S)
        clock[0] += 5
        return bytes(5000)

    async with open_slots(reservations=reservations, reserve_from=1000) as slots:
        go_on.set()
        slots.offer(1, work)
        slots.wake()
        await slots.value()
        go_on.clear()
        started.clear()
        monkeypatch.setattr(executor_module, "perf_counter", lambda: clock[0])
        run = slots.offer(2, work)
        slots.wake()
        with trio.fail_after(PATIENCE_S):
            await called.wait()
        assert slots.executor.running_for(0) == []
        assert not slots.executor.slots_are_free
        reservations.close()
        assert await trio.to_thread.run_sync(started.wait, PATIENCE_S)
        assert slots.executor.running_for(0) == [run]
        go_on.set()
        finished = await slots.outcome()
        assert isinstance(finished, Finished)
        assert finished.duration_s == 5


async def test_runs_of_one_slot_go_by_priority_whatever_comes_first(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        for number, priority in ((1, 3), (2, 1), (3, 2), (4, 1)):
            slots.offer(number, abs, number, priority=priority)
        slots.wake()
        assert [await slots.value() for _ in range(4)] == [2, 4, 3, 1]


async def test_outcomes_gather_while_the_loop_is_busy_and_come_as_one(open_slots: OpenSlots) -> None:
    last = threading.Event()
    async with open_slots() as slots:
        for number in range(100):
            slots.offer(number, abs, number)
        slots.offer(100, last.set)
        slots.wake()
        assert last.wait(PATIENCE_S)  # blocks the event loop, as any busy callback does
        for _ in range(101):
            await slots.value()
        assert len(slots.bursts) <= 2  # the last outcome may come just after the others were collected


async def test_as_many_run_at_once_as_there_are_slots_and_no_more(open_slots: OpenSlots) -> None:
    together = threading.Barrier(3)
    release = threading.Event()
    third = threading.Event()

    def meet() -> None:
        together.wait(PATIENCE_S)
        assert release.wait(PATIENCE_S)

    async with open_slots(2) as slots:
        slots.offer(1, meet)
        slots.offer(2, meet)
        slots.offer(3, third.set, priority=1)
        slots.wake()
        await trio.to_thread.run_sync(together.wait, PATIENCE_S)
        assert len(slots.executor.running_for(0)) == 2
        assert not third.is_set()
        release.set()
        for _ in range(3):
            await slots.value()


class _Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("I will not travel")


def _raise(kind: type[BaseException], *args: object) -> None:
    raise kind(*args)


def _recurse() -> None:
    _recurse()


def _generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "args", "expected", "text"),
    [
        pytest.param(_raise, (ValueError, "no"), "ValueError", "no", id="an exception"),
        pytest.param(sys.exit, (3,), "TaskExited", "SystemExit(3)", id="sys.exit"),
        pytest.param(_raise, (KeyboardInterrupt,), "TaskExited", "KeyboardInterrupt", id="KeyboardInterrupt"),
        pytest.param(_raise, (GeneratorExit,), "TaskExited", "GeneratorExit", id="GeneratorExit"),
        pytest.param(_raise, (StopIteration, 1), "StopIteration", "1", id="StopIteration"),
        pytest.param(_raise, (_Unpicklable, "x"), "RemoteError", "_Unpicklable", id="what cannot be pickled"),
        pytest.param(_recurse, (), "RecursionError", "maximum recursion", id="endless recursion"),
        pytest.param(threading.Lock, (), "SerializationError", "lock", id="a result that cannot be pickled"),
        pytest.param(_generator, (), "SerializationError", "generator", id="a generator as result"),
        pytest.param(_raise, (MemoryError,), "MemoryError", "", id="MemoryError"),
    ],
)
async def test_whatever_a_task_does_the_slot_lives_on(
    open_slots: OpenSlots, function: Callable[..., Any], args: tuple[Any, ...], expected: str, text: str
) -> None:
    async with open_slots() as slots:
        # Not pickled with the call: exceptions are arguments here.
        slots.offer(1, _bound(function, args))
        slots.offer(2, abs, -7)
        slots.wake()
        error = await slots.error()
        assert type(error).__name__ == expected
        assert text in str(error)
        assert await slots.value() == 7


def _bound(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    def call() -> Any:
        return function(*args)

    return call


async def test_a_thread_learns_of_its_cancellation_when_it_asks(open_slots: OpenSlots) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert cancelled.wait(PATIENCE_S)
        check_cancelled()

    async with open_slots() as slots:
        run = slots.offer(1, work)
        slots.wake()
        await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
        slots.executor.cancel(run)
        cancelled.set()
        assert isinstance(await slots.error(), TaskCancelled)


async def test_a_cancellation_that_overtakes_the_slot_is_not_lost(open_slots: OpenSlots) -> None:
    ran = threading.Event()
    async with open_slots() as slots:
        run = slots.offer(1, ran.set)
        slots.executor.cancel(run)  # as between the moments in which a slot takes a run and shows that it has it
        slots.wake()
        assert isinstance(await slots.error(), TaskCancelled)
        assert not ran.is_set()
        slots.offer(1, abs, -3)  # a namesake
        slots.wake()
        assert await slots.value() == 3
        assert not slots.executor.busy
        assert not vars(slots.executor)["_cancelled_runs"]


async def test_the_next_run_of_a_slot_does_not_inherit_a_cancellation(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        run = slots.offer(1, abs, -1)
        slots.wake()
        await slots.value()
        slots.executor.cancel(run)
        slots.offer(2, check_cancelled)
        slots.wake()
        assert await slots.value() is None


async def test_async_tasks_run_under_trio_in_the_loops_thread(open_slots: OpenSlots) -> None:
    async def work(number: int) -> int:
        await trio.lowlevel.checkpoint()
        assert threading.current_thread() is loop
        return number + 1

    loop = threading.current_thread()
    async with open_slots() as slots:
        slots.offer(1, work, 1)
        slots.wake()
        assert await slots.value() == 2


async def test_cancelling_an_async_task_cancels_its_code_and_frees_its_slot(open_slots: OpenSlots) -> None:
    begun, cleaned_up = trio.Event(), trio.Event()

    async def work() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cleaned_up.set()

    async with open_slots() as slots:
        run = slots.offer(1, work)
        slots.wake()
        await begun.wait()
        slots.executor.cancel(run)
        assert isinstance(await slots.error(), TaskCancelled)
        assert cleaned_up.is_set()
        slots.offer(2, abs, -1)
        slots.wake()
        assert await slots.value() == 1


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_what_an_async_task_raises_is_its_own_failure(open_slots: OpenSlots, kind: type[BaseException]) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise kind("no")

    async with open_slots() as slots:
        slots.offer(1, work)
        slots.offer(2, abs, -1)
        slots.wake()
        assert "no" in str(await slots.error()) or kind is KeyboardInterrupt
        assert await slots.value() == 1


async def test_async_tasks_count_against_the_slots(open_slots: OpenSlots) -> None:
    running: list[int] = []
    begun, release = trio.Event(), trio.Event()

    async def work(number: int) -> None:
        running.append(number)
        begun.set()
        await release.wait()

    async with open_slots(1) as slots:
        slots.offer(1, work, 1)
        slots.offer(2, work, 2)
        slots.wake()
        await begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert running == [1]
        release.set()
        await slots.value()
        await slots.value()
        assert running == [1, 2]


async def test_an_announced_run_waits_until_it_may_go(open_slots: OpenSlots) -> None:
    ran = threading.Event()
    async with open_slots() as slots:
        run = slots.offer(1, ran.set, announce=True)
        slots.wake()
        begun = await slots.outcome()
        assert isinstance(begun, Begun)
        assert begun.run is run
        assert begun.go is not None
        assert not ran.is_set()
        begun.go.put(None)
        await slots.value()
        assert ran.is_set()


async def test_inputs_are_values_and_one_that_is_gone_hands_the_run_back(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        shared = [3, 1, 2]
        slots.store.put("x", shared, 10)
        slots.offer(1, sorted, _ref("x"))
        slots.wake()
        assert await slots.value() == [1, 2, 3]
        slots.store.drop(["x"])
        run = slots.offer(2, sorted, _ref("x"))
        slots.wake()
        assert await slots.outcome() == InputGone(run, "x")


async def test_an_input_that_came_with_its_run_is_loaded_for_each_run_anew(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        source = pickle.dumps([3, 1, 2])
        for number in (1, 2):
            slots.ready.push(slots.run(number, list.append, _ref("x"), 0)._replace(dependencies=(("x", source),)))
            slots.wake()
            assert await slots.value() is None
        slots.ready.push(slots.run(3, sorted, _ref("x"))._replace(dependencies=(("x", source),)))
        slots.wake()
        assert await slots.value() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "comes_along"), [(7, True), ((1, "a"), True), (b"a" * 50, True), (b"a" * 300, False), ([0] * 500, False)]
)
async def test_only_a_very_small_result_comes_along_for_tasks_elsewhere(
    open_slots: OpenSlots, value: Any, comes_along: bool
) -> None:
    async with open_slots() as slots:
        slots.functions[b"value"] = lambda: value
        for shared in (True, False):
            slots.ready.push(slots.run(1, slots.functions[b"value"])._replace(wanted=False, shared=shared))
            slots.wake()
            finished = await slots.outcome()
            assert isinstance(finished, Finished)
            assert (finished.inline is not None) == (comes_along and shared)
            assert finished.inline is None or pickle.loads(finished.inline) == value


def _ref(key: str) -> Any:
    from tests.worker.kit import Ref

    return Ref(key)


async def test_a_slot_carries_its_result_to_what_follows_it(open_slots: OpenSlots) -> None:
    async with open_slots() as slots:
        predecessor = slots.offer(1, list, (3, 1, 2))
        follower = slots.run(2, sorted, _ref("k1"))
        assert slots.ready.chain_after(predecessor, follower)
        slots.wake()
        assert await slots.value() == [3, 1, 2]
        assert await slots.value() == [1, 2, 3]  # though nobody has put the first result into the store
        failing = slots.offer(3, int, "no number")
        assert slots.ready.chain_after(failing, slots.run(4, abs, _ref("k3")))
        slots.wake()
        assert isinstance(await slots.error(), ValueError)
        slots.offer(5, abs, -5)
        slots.wake()
        assert await slots.value() == 5


async def test_a_task_can_ask_where_it_runs(open_slots: OpenSlots) -> None:
    def work() -> tuple[str, int, str | int]:
        context = current_task()
        assert context is not None
        return context.key, context.attempt, get_worker().name

    async with open_slots() as slots:
        slots.offer(5, work, attempt=2)
        slots.wake()
        assert await slots.value() == ("k5", 2, "w")
    assert current_task() is None
    check_cancelled()  # outside of a task it does nothing
    with pytest.raises(ValueError, match="no worker"):
        get_worker()


async def test_leaving_tells_running_tasks_and_turns_away_async_ones(open_slots: OpenSlots) -> None:
    begun, asked = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert asked.wait(PATIENCE_S)
        check_cancelled()

    async with open_slots(2) as slots:
        slots.offer(1, work)
        slots.offer(2, trio.sleep_forever)
        slots.wake()
        await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
        asked.set()


@pytest.mark.parametrize("extra", [{}, {"announce": True}])
async def test_a_slot_that_asks_the_loop_after_its_end_is_turned_away(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    begun = threading.Event()

    async def never() -> None:
        await trio.sleep_forever()

    async with open_slots() as slots:

        def take() -> Run | None:
            run = ReadyQueue.take(slots.ready)
            begun.set()
            assert slots.closed.wait(PATIENCE_S)
            return run

        monkeypatch.setattr(slots.ready, "take", take)
        slots.offer(1, never, **extra)
        slots.wake()
        await trio.to_thread.run_sync(begun.wait, PATIENCE_S)


async def test_an_async_task_that_comes_while_the_slots_close_is_answered(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply: SimpleQueue[Callable[[], Any]] = SimpleQueue()
    async with open_slots() as slots:
        context = TaskContext(slots.run(1, trio.sleep_forever), slots.handle, slots.executor._seceded, 0)
        close = slots.executor._close

        def take_and_close() -> None:
            slots.executor._posted.append(AsyncCall(context, trio.sleep_forever, reply))
            slots.executor._deliver()
            close()

        monkeypatch.setattr(slots.executor, "_close", take_and_close)
    with pytest.raises(TaskCancelled):
        reply.get_nowait()()


async def test_no_more_tasks_begin_than_may_and_the_others_are_declined(open_slots: OpenSlots) -> None:
    release = threading.Event()

    def wait() -> None:
        assert release.wait(PATIENCE_S)

    async with open_slots(2, max_tasks=2) as slots:
        for number in range(1, 5):
            slots.offer(number, wait)
        slots.wake()
        begun = await slots.outcome()
        assert isinstance(begun, Begun)  # the last one that may: the loop is to know at once
        assert slots.executor.spent
        release.set()
        kinds = [type(await slots.outcome()) for _ in range(4)]
        assert (kinds.count(Finished), kinds.count(Declined)) == (2, 2)


async def test_what_a_slot_executes_stands_on_the_board_until_its_outcome_has_been_taken(open_slots: OpenSlots) -> None:
    seen: list[tuple[RunId, ...]] = []

    def look(error: type[Exception] | None) -> None:
        seen.append(running_table.running())
        if error is not None:
            raise error

    with RunningTable.create(1) as running_table:
        async with open_slots(1, running_table=running_table) as slots:
            slots.offer(7, look, None)
            slots.offer(8, look, ValueError)
            announced = slots.offer(9, look, None, announce=True)
            slots.wake()
            await slots.outcome()
            await slots.outcome()
            begun = await slots.outcome()
            assert isinstance(begun, Begun)
            assert (begun.run, running_table.running()) == (announced, ())
            assert begun.go is not None
            begun.go.put(None)
            await slots.outcome()
            assert seen == [(7,), (8,), (9,)]
            assert running_table.running() == ()


async def test_a_fault_of_ours_ends_it_whatever_async_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = trio.Event()

    async def work() -> None:
        begun.set()
        await trio.sleep_forever()

    kit = Slots(2)
    monkeypatch.setattr(kit.executor, "_blobs", _Names())
    monkeypatch.setattr(executor_module, "load_function", lambda _digest, data, _: (kit.functions[data], True))
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.executor.run, kit.take)
            await trio.testing.wait_all_tasks_blocked()
            kit.offer(1, work)
            kit.wake()
            with trio.fail_after(PATIENCE_S):
                await begun.wait()
                monkeypatch.setattr(kit, "take", None)
                monkeypatch.setattr(kit.executor, "_take", lambda outcomes: 1 // 0)
                kit.offer(2, abs, -1)
                kit.wake()
                await trio.sleep_forever()


# ------------------------------------------------------------------------------------------------- what can wait


def unwanted(run: Run) -> Run:
    """The same run, for whose result no client waits."""
    return run._replace(wanted=False)


async def test_a_result_that_can_wait_does_not_wait_for_the_task_after_it(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "REST_S", 0.05)
    go, on = threading.Event(), threading.Event()
    async with open_slots() as slots:
        for number, function, *args in ((1, pow, 2, 1), (2, go.wait), (3, on.wait), (4, pow, 2, 4)):
            slots.ready.push(unwanted(slots.run(number, function, *args)))
        slots.wake()
        assert await slots.value() == 2
        go.set()
        assert await slots.value()
        on.set()
        assert [await slots.value() for _ in range(2)] == [True, 16]


async def test_a_slot_that_runs_dry_reports_at_once(open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "REST_S", 1000.0)
    go = threading.Event()
    async with open_slots() as slots:
        slots.ready.push(unwanted(slots.run(1, pow, 2, 1)))
        slots.ready.push(unwanted(slots.run(2, go.wait)))
        slots.ready.push(unwanted(slots.run(3, pow, 2, 3)))
        slots.wake()
        assert await slots.value() == 2
        go.set()
        assert [await slots.value() for _ in range(2)] == [True, 8]


async def test_results_that_can_wait_leave_with_one_that_a_client_waits_for(
    open_slots: OpenSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "REST_S", 1000.0)
    go, on, more = threading.Event(), threading.Event(), threading.Event()
    async with open_slots() as slots:
        slots.ready.push(unwanted(slots.run(1, pow, 2, 1)))
        slots.ready.push(unwanted(slots.run(2, go.wait)))
        slots.ready.push(unwanted(slots.run(3, on.wait)))
        slots.ready.push(slots.run(4, pow, 2, 4))
        slots.ready.push(unwanted(slots.run(5, more.wait)))
        slots.wake()
        assert await slots.value() == 2
        go.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(slots.bursts) == 1
        on.set()
        assert [await slots.value() for _ in range(3)] == [True, True, 16]
        more.set()
