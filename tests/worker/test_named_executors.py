"""Tasks in executors of users, by real slots: in threads of this process, and in other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
import trio

from tests.worker import test_executor
from tests.worker.test_executor import PATIENCE_S, OpenSlots, Slots
from trio_dask.errors import Reschedule, TaskCancelled, UsageError
from trio_dask.protocol.pickled_nodes import NODE, VALUE, GivenArguments, NodePickler
from trio_dask.worker import call_stacks
from trio_dask.worker.executor import Finished, Rescheduled
from trio_dask.worker.named_executors import NamedExecutors
from trio_dask.worker.secede import Rejoined, Seceded
from trio_dask.worker.task_context import check_cancelled, current_task, get_worker, rejoin, secede

open_slots = test_executor.open_slots


@pytest.fixture
def gpu() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="gpu") as executor:
        yield executor


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as executor:
        yield executor


@pytest.fixture
async def slots(open_slots: OpenSlots, gpu: Executor, processes: Executor) -> AsyncIterator[Slots]:
    async with open_slots(1) as slots:
        slots.handle.executors["gpu"] = gpu
        slots.handle.executors["processes"] = processes
        yield slots


async def value_of(slots: Slots, function: Callable[..., Any], *args: Any, **extra: Any) -> Any:
    slots.offer(1, function, *args, **extra)
    slots.wake()
    return await slots.value()


async def error_of(slots: Slots, function: Callable[..., Any], *args: Any, **extra: Any) -> BaseException:
    slots.offer(1, function, *args, **extra)
    slots.wake()
    return await slots.error()


def look() -> tuple[str, Any, Any]:
    context = current_task()
    return threading.current_thread().name, None if context is None else context.key, get_worker().name


async def test_a_task_in_a_thread_of_an_executor_is_a_task_like_others(slots: Slots) -> None:
    assert await value_of(slots, look, executor="gpu") == ("gpu_0", "k1", "w")
    assert await value_of(slots, look) == ("slot-0", "k1", "w")
    assert not slots.executor.busy


def in_another_process(numbers: list[int]) -> tuple[int, Any, list[int]]:
    return os.getpid(), current_task(), [2 * number for number in numbers]


async def test_a_task_in_another_process_is_pickled_there_and_back(slots: Slots) -> None:
    process, task, doubled = await value_of(slots, in_another_process, [1, 2], executor="processes")
    assert process != os.getpid()
    assert task is None
    assert doubled == [2, 4]
    offset = 5
    assert await value_of(slots, lambda x: x + offset, 1, executor="processes") == 6, "as plain pickle cannot do it"
    error = await error_of(slots, threading.Lock, executor="processes")
    assert "cannot pickle" in str(error)
    error = await error_of(slots, len, threading.Lock, executor="processes")
    assert isinstance(error, TypeError)


class Pickling(Executor):
    """It pickles what it is given, and runs that at once: a process that was forked here has our context variables."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_result(pickle.loads(pickle.dumps(fn))(*args, **kwargs))
        return future


async def test_no_task_is_running_where_a_call_was_pickled(slots: Slots) -> None:
    slots.handle.executors["pickling"] = Pickling()
    assert await value_of(slots, in_another_process, [1], executor="pickling") == (os.getpid(), None, [2])


class Odd(Exception):
    """Its pickle does not load: that alone would break an executor with processes."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one + two}")


def fail(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


@pytest.mark.parametrize("where", ["gpu", "processes"])
async def test_what_a_task_raises_is_raised(slots: Slots, where: str) -> None:
    error = await error_of(slots, fail, LookupError, "no", executor=where)
    assert isinstance(error, LookupError)
    assert "def fail" in "".join(traceback_lines(error))
    assert len([note for note in error.__notes__ if note.startswith("in task")]) == 1
    assert "odd 3" in str(await error_of(slots, fail, Odd, 1, 2, executor=where))
    assert "SystemExit" in str(await error_of(slots, fail, SystemExit, 1, executor=where))
    slots.offer(1, fail, Reschedule, executor=where)
    slots.wake()
    assert isinstance(await slots.outcome(), Rescheduled)
    assert await value_of(slots, abs, -1, executor=where) == 1


def traceback_lines(error: BaseException) -> list[str]:
    found, step = [], error.__traceback__
    while step is not None:
        found.append(f"def {step.tb_frame.f_code.co_name}")
        step = step.tb_next
    return found


async def test_an_executor_that_is_not_there_fails_the_task_alone(slots: Slots) -> None:
    error = await error_of(slots, abs, -1, executor="bad")
    assert isinstance(error, UsageError)
    assert str(error) == "Invalid executor 'bad'; expected one of: ['default', 'gpu', 'processes']"
    assert await value_of(slots, abs, -1) == 1


async def test_async_tasks_are_refused_in_one_sentence(slots: Slots) -> None:
    async def work() -> None: ...

    error = await error_of(slots, work, executor="gpu")
    assert str(error).startswith("`async def` tasks run under Trio, not in executor 'gpu'")


async def test_an_executor_that_was_shut_down_fails_the_task(slots: Slots, gpu: ThreadPoolExecutor) -> None:
    gpu.shutdown()
    error = await error_of(slots, abs, -1, executor="gpu")
    assert isinstance(error, RuntimeError)
    assert "after shutdown" in str(error)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_an_executor_that_breaks_fails_the_tasks(slots: Slots) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as breaks:
        slots.handle.executors["breaks"] = breaks
        for function in (kill_me, os.getpid):
            error = await error_of(slots, function, executor="breaks")
            assert isinstance(error, BrokenProcessPool)
        assert await value_of(slots, abs, -1) == 1


async def test_a_task_that_waits_for_its_executor_is_cancelled_at_once(
    slots: Slots, gpu: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    gpu.submit(release.wait, PATIENCE_S)
    submitted = threading.Event()
    submit = gpu.submit

    def note_submit(*args: Any) -> Any:
        future = submit(*args)
        submitted.set()
        return future

    monkeypatch.setattr(gpu, "submit", note_submit)
    run = slots.offer(1, abs, -1, executor="gpu")
    slots.wake()
    assert await trio.to_thread.run_sync(submitted.wait, PATIENCE_S)
    slots.executor.cancel(run)
    error = await slots.error()
    assert isinstance(error, TaskCancelled)
    assert "before executor 'gpu' began it" in str(error)
    submitted.clear()
    slots.offer(2, abs, -1, executor="gpu")
    slots.wake()
    assert await trio.to_thread.run_sync(submitted.wait, PATIENCE_S)
    gpu.shutdown(wait=False, cancel_futures=True)
    error = await slots.error()
    assert str(error).startswith("executor 'gpu' was shut down before it began task 'k2'")
    release.set()


async def test_a_task_in_a_thread_of_an_executor_learns_of_its_cancellation(slots: Slots) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert cancelled.wait(PATIENCE_S)
        check_cancelled()

    run = slots.offer(1, work, executor="gpu")
    slots.wake()
    assert await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
    slots.executor.cancel(run)
    cancelled.set()
    assert isinstance(await slots.error(), TaskCancelled)


async def test_a_task_in_a_thread_of_an_executor_can_leave_its_slot(slots: Slots) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        secede()
        begun.set()
        assert go_on.wait(PATIENCE_S)
        rejoin()
        return threading.current_thread().name

    slots.offer(1, work, executor="gpu")
    slots.wake()
    assert await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
    slots.offer(2, abs, -2)
    slots.wake()
    assert await finished(slots) == 2
    go_on.set()
    assert await finished(slots) == "gpu_0"


async def finished(slots: Slots) -> Any:
    """The next value, without what is told of slots."""
    while not isinstance(outcome := await slots.outcome(), Finished):
        assert isinstance(outcome, Seceded | Rejoined)
    return outcome.value


async def test_a_slot_is_taken_while_its_task_runs_elsewhere_and_shows_where(slots: Slots) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait_here() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    slots.offer(1, wait_here, executor="gpu")
    slots.offer(2, abs, -2)
    slots.wake()
    assert await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
    assert not slots.executor.slots_are_free
    assert len(slots.executor.threads) == 2
    (stack,) = call_stacks.call_stacks().values()
    assert "in wait_here" in stack[0]
    assert len(slots.ready) == 1
    go_on.set()
    assert [await slots.value(), await slots.value()] == [None, 2]
    assert len(slots.executor.threads) == 1


class ThreadOf:
    """A node of a graph: computed by the worker, before the function is called."""

    def __call__(self, results: Any) -> tuple[str, int]:
        return threading.current_thread().name, os.getpid()


def both(found: tuple[str, int], number: int) -> Iterator[Any]:
    yield found
    yield number


@pytest.mark.parametrize("where", ["gpu", "processes"])
async def test_arguments_that_are_computed_are_computed_there(slots: Slots, where: str) -> None:
    given = GivenArguments((ThreadOf(), 5), {}, bytes([NODE, VALUE]), ())
    run = slots.run(1, both, executor=where)
    slots.ready.push(run._replace(call=NodePickler({}).pickle_call(given).call))
    slots.wake()
    (thread, process), number = await slots.value()
    assert number == 5
    assert (thread == "gpu_0") == (process == os.getpid()) == (where == "gpu")


def test_an_executor_has_a_name_of_its_own_and_can_be_submitted_to(gpu: ThreadPoolExecutor) -> None:
    executors = NamedExecutors()
    executors.update(gpu=gpu)
    assert dict(executors) == {"gpu": gpu}
    assert executors.names == ["default", "gpu"]
    assert repr(executors) == "<executors default, gpu>"
    with pytest.raises(UsageError, match="'default' stands for the worker's own threads"):
        executors["default"] = gpu
    for name in ("", 1):
        with pytest.raises(UsageError, match="the name of an executor is a text"):
            executors[name] = gpu  # type: ignore[index]
    with pytest.raises(TypeError, match="'gpu' has to be a"):
        executors["gpu"] = print  # type: ignore[assignment]
    del executors["gpu"]
    assert len(executors) == 0
