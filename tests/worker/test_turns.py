"""Turns alone, with threads: the order in which tasks go on, and what ends their waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.worker.kit import NoSlots
from trio_dask.errors import TaskCancelled
from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.worker import turns as turns_module
from trio_dask.worker.task_context import TaskContext, WorkerHandle
from trio_dask.worker.turns import Turn, Turns

PATIENCE_S = 10


class Tasks:
    """Tasks in slots, some of which wait in threads of their own."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.running: list[TaskContext] = []
        self.turns.add(lambda: self.running)
        self._threads = ThreadPoolExecutor(10)
        self._worker = WorkerHandle(name="w", nthreads=1)

    def begin(self, number: int) -> TaskContext:
        run = Run(RunId(number), f"task-{number}", b"", b"\x80", (), 0, {})
        context = TaskContext(run, self._worker, NoSlots(), number)
        context.on_cancel(self.turns.wake)
        self.running.append(context)
        return context

    def end(self, context: TaskContext, *, has_turn: bool = False) -> None:
        self.running.remove(context)
        if has_turn:
            self.turns.release(context)
        else:
            self.turns.wake()

    def start(self, wait: Callable[[TaskContext], None], context: TaskContext) -> Future[None]:
        """Wait in a thread, and return when it waits or has gone on."""
        began = threading.Event()

        def call() -> None:
            began.set()
            wait(context)

        future = self._threads.submit(call)
        assert began.wait(PATIENCE_S)
        while not (future.done() or context in self.turns._waiting):
            threading.Event().wait(0.001)
        return future


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


def test_a_turn_begins_when_those_that_run_have_ended(tasks: Tasks) -> None:
    other, first = tasks.begin(0), tasks.begin(1)
    turn = tasks.start(tasks.turns.take, first)
    assert not turn.done()
    tasks.end(other)
    turn.result(PATIENCE_S)
    assert tasks.turns.busy
    tasks.end(first, has_turn=True)
    assert not tasks.turns.busy


def test_tasks_go_on_in_the_order_in_which_they_came(tasks: Tasks) -> None:
    first, reader, second = (tasks.begin(number) for number in range(3))
    tasks.running = [first]
    tasks.start(tasks.turns.take, first).result(PATIENCE_S)
    tasks.running += [reader, second]
    reading = tasks.start(tasks.turns.wait, reader)
    following = tasks.start(tasks.turns.take, second)
    tasks.end(first, has_turn=True)
    reading.result(PATIENCE_S)
    assert not following.done()
    tasks.end(reader)
    following.result(PATIENCE_S)


@pytest.mark.parametrize("way", ["take", "wait"])
def test_a_task_that_is_cancelled_waits_no_longer_and_holds_nobody_up(tasks: Tasks, way: str) -> None:
    first, second = tasks.begin(0), tasks.begin(1)
    tasks.running = [first]
    tasks.start(tasks.turns.take, first).result(PATIENCE_S)
    tasks.running.append(second)
    waiting: Future[Any] = tasks.start(getattr(tasks.turns, way), second)
    second.cancel()
    with pytest.raises(TaskCancelled, match="task-1"):
        waiting.result(PATIENCE_S)
    tasks.end(second)
    tasks.end(first, has_turn=True)
    assert not tasks.turns.busy


def test_a_turn_of_an_executor_that_has_ended_holds_nobody_up(tasks: Tasks) -> None:
    lasting, first = tasks.begin(9), tasks.begin(0)

    def others() -> list[TaskContext]:
        return [lasting]

    tasks.running = []
    tasks.turns.add(others)
    tasks.start(tasks.turns.take, lasting).result(PATIENCE_S)
    tasks.running = [first]
    turn = tasks.start(tasks.turns.take, first)
    assert not turn.done()
    tasks.turns.remove(others)
    turn.result(PATIENCE_S)
    tasks.turns.release(lasting)
    assert tasks.turns.busy


def test_tasks_of_an_executor_that_has_ended_are_not_waited_for(tasks: Tasks) -> None:
    lasting = tasks.begin(9)

    def others() -> list[TaskContext]:
        return [lasting]

    tasks.running = []
    tasks.turns.add(others)
    first = tasks.begin(0)
    turn = tasks.start(tasks.turns.take, first)
    assert not turn.done()
    tasks.turns.remove(others)
    turn.result(PATIENCE_S)


def test_those_that_wait_go_on_when_a_task_ends_that_gave_its_turn_away(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "turns", tasks.turns)
    first, second = tasks.begin(0), tasks.begin(1)
    tasks.running = [first]
    tasks.start(tasks.turns.take, first).result(PATIENCE_S)
    turn = Turn(first)
    turn.give_away()
    tasks.running.append(second)
    waiting = tasks.start(tasks.turns.take, second)
    assert not waiting.done()
    tasks.running.remove(first)
    turn.end()
    waiting.result(PATIENCE_S)
