"""Tasks that give their slot back: what the scheduler is told, and who gets which slot."""

import threading

import pytest
import trio
import trio.testing

from trio_dask.ids import RunId
from trio_dask.protocol.messages import Blob, CancelRuns, Capacity, Run
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.secede import NO_SLOT, Rejoined, Seceded, SecededTasks
from trio_dask.worker.task_context import TaskContext, WorkerHandle

FUNCTION = b"f" * 16


def run(number: int) -> Run:
    return Run(RunId(number), f"k{number}", FUNCTION, b"call", (), number, {})


class Core:
    """A worker core with one slot, in a session."""

    def __init__(self) -> None:
        self.core = WorkerCore(1, grace_s=0.2)
        self.core.session_began("tcp://w:1")
        self.core.handle(Blob(FUNCTION, 1, b"f"), 0.0)
        self.core.take_effects()

    def take(self, number: int) -> Run:
        self.core.handle(run(number), 0.0)
        taken = self.core.ready.take()
        assert taken is not None
        return taken

    def capacities(self) -> list[int]:
        return [message.slots for message in self.core.take_effects().messages if isinstance(message, Capacity)]


def test_the_scheduler_is_told_that_another_task_can_run() -> None:
    kit = Core()
    outer = kit.take(1)
    kit.core.seceded(outer)
    assert kit.capacities() == [2]
    inner = kit.take(2)
    kit.core.seceded(inner)
    assert kit.capacities() == [3]
    kit.core.rejoined(inner)
    kit.core.finished(inner, 1, "int", b"v", 0.1)
    kit.core.rejoined(outer)
    assert kit.capacities() == [2, 1]


def test_a_cancelled_task_outside_of_the_slots_is_not_taken_for_a_stuck_slot() -> None:
    kit = Core()
    outer = kit.take(1)
    kit.core.seceded(outer)
    kit.core.take_effects()
    kit.core.handle(CancelRuns((RunId(1),)), 0.0)
    assert kit.capacities() == [1]
    kit.core.tick(10.0)
    assert kit.capacities() == []
    kit.core.rejoined(outer)
    kit.core.finished(outer, 1, "int", b"v", 0.1)
    assert kit.core.capacity == 1


def test_a_stuck_slot_that_its_task_gives_back_counts_again() -> None:
    kit = Core()
    outer = kit.take(1)
    kit.core.handle(CancelRuns((RunId(1),)), 0.0)
    kit.core.tick(10.0)
    assert kit.capacities() == [0]
    kit.core.seceded(outer)
    assert kit.capacities() == [1]


def test_what_waits_outside_means_nothing_to_the_next_scheduler() -> None:
    kit = Core()
    kit.core.seceded(kit.take(1))
    kit.core.reset(0.0)
    kit.core.session_began("tcp://w:1")
    assert kit.capacities() == []


class Desk:
    """Slots without threads: what was started, posted and woken."""

    def __init__(self, slots: int, places: int = 0) -> None:
        self.slots: list[TaskContext | None] = [None] * slots
        self.cells = [0] * (slots + places)
        self.started: list[int] = []
        self.posted: list[Seceded | Rejoined] = []
        self.woken = 0
        self.has_threads = True
        self.secession = SecededTasks(self.slots, self.cells, start=self.start, post=self.posted.append, wake=self.wake)

    def start(self, slot: int) -> None:
        if not self.has_threads:
            raise RuntimeError("can't start new thread")
        self.started.append(slot)

    def wake(self, number: int) -> None:
        self.woken += number

    def begin(self, number: int, slot: int) -> TaskContext:
        context = TaskContext(run(number), WorkerHandle(name="w", nthreads=1), self.secession, slot)
        self.slots[slot], self.cells[slot] = context, number
        return context


def test_a_slot_is_given_back_once_and_another_taken() -> None:
    desk = Desk(2)
    context = desk.begin(7, 1)
    assert desk.secession.secede(context)
    assert not desk.secession.secede(context)
    assert (desk.slots, desk.cells, desk.started) == ([None, None], [0, 0], [1])
    assert list(desk.secession.outside) == [context]
    assert not desk.secession.hand_over(0)  # nobody wants it
    thread = threading.Thread(target=desk.secession.rejoin, args=(context,))
    thread.start()
    while not desk.woken:
        pass
    assert desk.secession.hand_over(0)
    thread.join(10)
    assert (desk.slots, desk.cells, context.slot) == ([context, None], [7, 0], 0)
    assert [type(outcome) for outcome in desk.posted] == [Seceded, Rejoined]
    assert not list(desk.secession.outside)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_who_is_cancelled_while_it_waits_keeps_no_slot(handed_over: bool) -> None:
    desk = Desk(1)
    context = desk.begin(7, 0)
    desk.secession.secede(context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.secession.rejoin_async, context)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        if handed_over:
            assert desk.secession.hand_over(0)
    assert desk.started == ([0, 0] if handed_over else [0])
    assert not desk.secession.hand_over(0)
    assert context.slot is None


def test_nobody_waits_for_slots_that_are_closed() -> None:
    desk = Desk(1)
    context = desk.begin(7, 0)
    desk.secession.secede(context)
    thread = threading.Thread(target=desk.secession.rejoin, args=(context,))
    thread.start()
    while not desk.woken:
        pass
    desk.secession.close()
    thread.join(10)
    desk.secession.rejoin(context)
    assert context.slot is None
    assert context.cancelled
    assert NO_SLOT not in desk.started
    assert not desk.secession.secede(desk.begin(8, 0))


def test_there_is_a_limit_to_those_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.worker.secede.MAX_SECEDED", 1)
    desk = Desk(1)
    desk.secession.secede(desk.begin(1, 0))
    with pytest.raises(RuntimeError, match="no more are allowed"):
        desk.secession.secede(desk.begin(2, 0))


def rejoin(desk: Desk, context: TaskContext, slot: int) -> None:
    """Have a task back in this slot."""
    desk.woken = 0
    thread = threading.Thread(target=desk.secession.rejoin, args=(context,))
    thread.start()
    while not desk.woken:
        pass
    assert desk.secession.hand_over(slot)
    thread.join(10)


def test_who_is_outside_stands_on_the_board_as_long_as_there_are_places() -> None:
    desk = Desk(1, places=1)
    first, second = desk.begin(7, 0), None
    desk.secession.secede(first)
    assert desk.cells == [0, 7]
    second = desk.begin(8, 0)
    desk.secession.secede(second)
    assert desk.cells == [0, 7]
    rejoin(desk, first, 0)
    assert desk.cells == [7, 0]
    desk.secession.ended(second)  # for which there was no place
    assert desk.secession.secede(first)
    assert desk.cells == [0, 7]
    desk.secession.ended(first)
    assert desk.cells == [0, 7]  # until it is settled
    desk.secession.secede(desk.begin(9, 0))
    assert desk.cells == [0, 9]


def test_if_there_can_be_no_more_threads_the_task_keeps_its_slot() -> None:
    desk = Desk(1, places=1)
    desk.has_threads = False
    context = desk.begin(7, 0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        desk.secession.secede(context)
    assert (desk.slots, desk.cells, context.slot) == ([context], [7, 0], 0)
    assert (desk.posted, list(desk.secession.outside)) == ([], [])
    desk.has_threads = True
    assert desk.secession.secede(context)
    assert desk.cells == [0, 7]
