"""A thread that would take more memory than there is waits its turn, and none waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trio_dask.worker.memory_reservations import Reservations

PATIENCE_S = 10


class Door:
    """Reservations of this much memory, and threads that make them."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.calls = 0
        self.reservations = Reservations(lambda nbytes: nbytes <= self.room, self.call)
        self.inside: list[str] = []

    def call(self) -> None:
        self.calls += 1

    def visitor(self, name: str, *sizes: int) -> Callable[[], None]:
        """A thread that reserves each size, one within the other; returns a function that ends it."""
        leave = threading.Event()

        def visit() -> None:
            for size in sizes:
                self.reservations.reserve(size)
            self.inside.append(name)
            assert leave.wait(PATIENCE_S)
            for size in sizes:
                self.reservations.release(size)
            self.inside.remove(name)

        thread = threading.Thread(target=visit)
        thread.start()

        def end() -> None:
            leave.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

        return end

    def until(self, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_at, (self.inside, self.calls)
            time.sleep(0.001)


def test_what_fits_is_admitted_and_counts_until_it_is_released() -> None:
    door = Door(10)
    first = door.visitor("a", 6)
    door.until(lambda: door.inside == ["a"])
    assert door.calls == 0
    second = door.visitor("b", 6)
    door.until(lambda: door.calls == 1)
    assert door.reservations.admit(helpless=True, urgent=False) == 12  # what is at work may come to an end
    first()
    door.until(lambda: door.calls == 2)
    assert door.reservations.admit(helpless=False, urgent=False) == 0
    door.until(lambda: door.inside == ["b"])
    second()


def test_where_no_room_can_be_made_threads_are_admitted_one_at_a_time() -> None:
    door = Door(0)
    ends = [door.visitor("a", 5)]
    door.until(lambda: door.calls == 1)
    ends.append(door.visitor("b", 5))
    door.until(lambda: door.calls == 2)
    assert door.reservations.admit(helpless=False, urgent=False) == 5
    assert door.inside == []
    assert door.reservations.admit(helpless=True, urgent=False) == 10
    door.until(lambda: door.inside == ["a"])
    ends[0]()
    assert door.reservations.admit(helpless=True, urgent=False) == 0
    door.until(lambda: door.inside == ["b"])
    ends[1]()


def test_an_admitted_thread_may_need_those_that_are_not() -> None:
    door = Door(5)
    first, second = door.visitor("a", 5), None
    door.until(lambda: door.inside == ["a"])
    second = door.visitor("b", 5)
    door.until(lambda: door.calls == 1)
    assert door.reservations.admit(helpless=True, urgent=True) == 0
    door.until(lambda: sorted(door.inside) == ["a", "b"])
    second()
    first()


def test_tasks_that_each_wait_for_more_do_not_wait_for_each_other() -> None:
    door = Door(10)
    ends = [door.visitor("a", 5, 7)]
    door.until(lambda: door.calls == 1)
    ends.append(door.visitor("b", 5))  # behind the one that waits
    door.until(lambda: door.calls == 2)
    door.reservations.admit(helpless=True, urgent=False)
    door.until(lambda: door.inside == ["a"])
    ends[0]()
    door.reservations.admit(helpless=True, urgent=False)
    door.until(lambda: door.inside == ["b"])
    ends[1]()


def test_after_the_end_no_thread_waits() -> None:
    door = Door(0)
    first = door.visitor("a", 5)
    door.until(lambda: door.calls == 1)
    door.reservations.close()
    door.until(lambda: door.inside == ["a"])
    second = door.visitor("b", 5)
    door.until(lambda: "b" in door.inside)
    first()
    second()
