"""Memory of large values is used again, by one at a time, for a short while, and up to a bound."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.comm.kit import background, channels, frame, tcp_pair
from trio_dask.comm import buffer_pool
from trio_dask.comm.buffer_pool import HUGE_PAGE_BYTES, KEEP_S, BufferPool
from trio_dask.comm.transport import ConnectionLost
from trio_dask.protocol.messages import Value

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such pages")

MIB = 2**20


class Shelf:
    """A pool whose time and thread are in the hands of a test."""

    def __init__(self, max_bytes: int = 64 * MIB) -> None:
        self.now = 1000.0
        self.thread: Callable[[], None] | None = None
        self.may_start = True
        self.while_asleep: Callable[[], None] = lambda: None
        self.pool = BufferPool(max_bytes, clock=lambda: self.now, sleep=self._sleep, start=self._start)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_asleep()

    def _start(self, work: Callable[[], None]) -> None:
        assert self.thread is None, "there are two threads"
        if not self.may_start:
            raise RuntimeError("can't start new thread")
        self.thread = work

    def run_thread(self) -> None:
        """Have it do its work; at the end there is none."""
        work, self.thread = self.thread, None
        assert work is not None
        work()


class StrictLock:
    """A lock for one thread, in which to wait for it would be to wait for ever."""

    def __init__(self, before_release: Callable[[], None] = lambda: None) -> None:
        self.is_held = False
        self.before_release = before_release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        assert not (self.is_held and blocking), "it waits for itself"
        if self.is_held:
            return False
        self.is_held = True
        return True

    def release(self) -> None:
        self.before_release()
        self.is_held = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def place(view: memoryview) -> int:
    return np.frombuffer(view, dtype="u1").ctypes.data


def fill(view: memoryview, number: int = 7) -> memoryview:
    view[:] = bytes([number]) * len(view)
    return view


# ------------------------------------------------------------------------------------------ one after the other


@pytest.mark.parametrize("size", [1, 4096, 4 * MIB, 4 * MIB + 1, 5_000_001])
def test_memory_is_plain_writeable_bytes(shelf: Shelf, size: int) -> None:
    view = shelf.pool.allocate(size)
    assert (view.format, view.itemsize, view.ndim, view.readonly) == ("B", 1, 1, False)
    assert len(view) == view.nbytes == size
    assert bytes(fill(view)) == b"\7" * size
    assert view.cast("c").cast("B")[0] == 7


def test_it_is_used_again_when_the_last_view_has_died(shelf: Shelf) -> None:
    view = shelf.pool.allocate(5 * MIB)
    first = place(view)
    del view
    assert shelf.pool.kept_bytes == 6 * MIB
    again = shelf.pool.allocate(5 * MIB)
    assert place(again) == first
    assert shelf.pool.kept_bytes == 0


def in_view(view: memoryview) -> object:
    return view[5:9].cast("c")


def in_array(view: memoryview) -> object:
    return np.frombuffer(view, dtype="f8", count=1000)[3:5].reshape(2, 1).view("u1")


def in_pickled_array(view: memoryview) -> object:
    frames: list[pickle.PickleBuffer] = []
    head = pickle.dumps(np.zeros((8, len(view) // 8), "u1"), protocol=5, buffer_callback=frames.append)
    return pickle.loads(head, buffers=[view]).T[1:]


@pytest.mark.parametrize("hold", [in_view, in_array, in_pickled_array, lambda view: [[view]], memoryview])
def test_nobody_gets_it_while_anything_looks_at_it(shelf: Shelf, hold: Callable[[memoryview], object]) -> None:
    view = shelf.pool.allocate(4 * MIB)
    first = place(view)
    holder = hold(view)
    del view
    gc.collect()
    assert shelf.pool.kept_bytes == 0
    assert place(shelf.pool.allocate(4 * MIB)) != first
    shelf.pool.give_back()
    del holder
    gc.collect()
    assert shelf.pool.kept_bytes == 4 * MIB


def test_what_fits_best_is_taken_and_nothing_much_too_large() -> None:
    shelf = Shelf(100 * MIB)
    views = [shelf.pool.allocate(size * MIB) for size in (16, 20, 18, 30)]
    by_size = dict(zip((16, 20, 18, 30), map(place, views), strict=True))
    views.clear()
    assert place(taken := shelf.pool.allocate(17 * MIB)) == by_size[18]
    assert place(more := shelf.pool.allocate(18 * MIB)) == by_size[20]
    fresh = shelf.pool.allocate(18 * MIB)
    assert place(fresh) not in by_size.values()
    assert shelf.pool.kept_bytes == 46 * MIB
    assert len(taken) + len(more) + len(fresh) == 53 * MIB


def test_of_the_same_size_the_last_that_came_back_is_taken(shelf: Shelf) -> None:
    first, second = shelf.pool.allocate(4 * MIB), shelf.pool.allocate(4 * MIB)
    last = place(first)
    del second
    del first
    assert place(shelf.pool.allocate(4 * MIB)) == last


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12 * MIB), st.integers(0, 10)), max_size=30))
def test_no_two_values_ever_share_memory(history: list[tuple[bool, int, int]]) -> None:
    shelf = Shelf(20 * MIB)
    held: list[memoryview] = []
    for grows, size, which in history:
        if grows or not held:
            held.append(shelf.pool.allocate(size))
        else:
            held.pop(which % len(held))
        assert shelf.pool.kept_bytes <= 20 * MIB
        spans = sorted((place(view), place(view) + len(view)) for view in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    held.clear()
    shelf.pool.give_back()


def test_fresh_memory_comes_in_huge_pages(shelf: Shelf) -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("they are switched off")
    view = fill(shelf.pool.allocate(9 * MIB))
    start, counts = place(view), False
    assert start % HUGE_PAGE_BYTES == 0 or os.uname().release < "6.7"
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            low, high = (int(word, 16) for word in line.split(" ")[0].split("-"))
            counts = low <= start < high
        elif counts and line.startswith("VmFlags:"):
            assert "hg" in line.split()  # whether there were any depends on the machine
            return
    pytest.fail("the memory is not there")


# ------------------------------------------------------------------------------------------ bounds


def test_no_more_than_the_limit_is_kept_and_the_newest_stays(shelf: Shelf) -> None:
    views = [shelf.pool.allocate(size * MIB) for size in (30, 30, 30, 66)]
    places = [place(view) for view in views]
    del views[0], views[0], views[0]
    assert shelf.pool.kept_bytes == 60 * MIB
    views.clear()  # which is too large by itself, and drives out nobody
    assert shelf.pool.kept_bytes == 60 * MIB
    assert {place(shelf.pool.allocate(30 * MIB)) for _ in range(2)} <= {*places[1:3]}


def test_the_limit_can_be_lowered_and_not_raised(shelf: Shelf) -> None:
    views = [shelf.pool.allocate(10 * MIB) for _ in range(3)]
    views.clear()
    shelf.pool.keep_at_most(25 * MIB)
    assert shelf.pool.kept_bytes == 20 * MIB
    shelf.pool.keep_at_most(2**40)
    views = [shelf.pool.allocate(10 * MIB) for _ in range(3)]
    views.clear()
    assert shelf.pool.kept_bytes == 20 * MIB


def test_what_nobody_wants_is_given_back_in_time(shelf: Shelf) -> None:
    early, late = shelf.pool.allocate(8 * MIB), shelf.pool.allocate(4 * MIB)
    del early
    shelf.now += KEEP_S - 2
    del late
    seen: list[tuple[float, int]] = []
    shelf.while_asleep = lambda: seen.append((shelf.now - 1000, shelf.pool.kept_bytes))
    shelf.run_thread()
    assert seen == [(KEEP_S, 12 * MIB), (2 * KEEP_S - 2, 4 * MIB)]
    assert shelf.pool.kept_bytes == 0
    assert shelf.thread is None


def test_what_is_used_again_and_again_stays(shelf: Shelf) -> None:
    view = shelf.pool.allocate(4 * MIB)
    first = place(view)
    del view
    rounds = 0

    def use() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 100:
            assert place(shelf.pool.allocate(4 * MIB)) == first

    shelf.while_asleep = use
    shelf.run_thread()
    assert rounds == 100
    assert shelf.pool.kept_bytes == 0


def test_there_is_a_thread_exactly_while_something_is_kept(shelf: Shelf) -> None:
    view = shelf.pool.allocate(4 * MIB)
    assert shelf.thread is None
    del view
    assert shelf.thread is not None
    shelf.run_thread()
    assert shelf.thread is None
    shelf.pool.allocate(4 * MIB)
    shelf.run_thread()
    assert shelf.thread is None


def test_without_a_thread_nothing_is_kept(shelf: Shelf) -> None:
    shelf.may_start = False
    view = shelf.pool.allocate(4 * MIB)
    del view
    assert shelf.pool.kept_bytes == 0
    shelf.may_start = True
    view = shelf.pool.allocate(4 * MIB)
    del view
    assert shelf.pool.kept_bytes == 4 * MIB
    assert shelf.thread is not None


def test_what_comes_back_as_the_thread_ends_has_a_thread(shelf: Shelf) -> None:
    views = [shelf.pool.allocate(4 * MIB)]
    shelf.pool._watched = cast("threading.Lock", StrictLock(views.clear))
    view = shelf.pool.allocate(6 * MIB)
    del view
    shelf.run_thread()
    assert shelf.pool.kept_bytes == 4 * MIB
    assert shelf.thread is not None
    shelf.run_thread()
    assert shelf.pool.kept_bytes == 0


def test_where_memory_is_lacking_what_is_kept_makes_room(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = buffer_pool._fresh

    def scarce(size: int) -> object:
        if shelf.pool.kept_bytes:
            raise OSError(12, "Cannot allocate memory")
        return fresh(size)

    view = shelf.pool.allocate(8 * MIB)
    del view
    monkeypatch.setattr(buffer_pool, "_fresh", scarce)
    assert len(shelf.pool.allocate(20 * MIB)) == 20 * MIB


def test_what_is_kept_belongs_to_no_child(shelf: Shelf) -> None:
    kept, held = shelf.pool.allocate(4 * MIB), shelf.pool.allocate(6 * MIB)
    del kept
    shelf.pool._lock.acquire()
    shelf.thread = None  # a child has no other threads, and what they had locked stays so
    shelf.pool.forget()
    assert shelf.pool.kept_bytes == 0
    del held
    assert shelf.pool.kept_bytes == 6 * MIB
    assert shelf.thread is not None


# ------------------------------------------------------------------------------------------ in the middle of anything


def test_a_value_may_die_in_another_thread(shelf: Shelf) -> None:
    held = [shelf.pool.allocate(4 * MIB)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert shelf.pool.kept_bytes == 4 * MIB


def test_a_value_may_die_where_the_lock_is_held(shelf: Shelf) -> None:
    """As if garbage was collected in the middle of our own work, in this thread, where to wait is to wait for ever."""
    view = shelf.pool.allocate(4 * MIB)
    dying = [shelf.pool.allocate(4 * MIB) for _ in range(2)]
    del view
    shelf.pool._lock = cast("threading.Lock", StrictLock())
    cut = shelf.pool._cut

    def cut_and_collect(count: int) -> list[buffer_pool._Kept]:
        dying.clear()
        return cut(count)

    shelf.pool._cut = cut_and_collect  # type: ignore[method-assign]  # the moment in which garbage is collected
    shelf.pool.give_back()
    assert shelf.pool.kept_bytes == 8 * MIB


def test_who_finds_the_lock_held_takes_fresh_memory(shelf: Shelf) -> None:
    view = shelf.pool.allocate(4 * MIB)
    first = place(view)
    del view
    shelf.pool._lock = cast("threading.Lock", StrictLock())
    with shelf.pool._lock:
        assert place(shelf.pool.allocate(4 * MIB)) != first


def test_values_may_die_as_garbage(shelf: Shelf) -> None:
    class Node:
        me: Node
        view: memoryview

    views = [shelf.pool.allocate(4 * MIB) for _ in range(3)]
    gc.disable()
    try:
        while views:
            node = Node()
            node.me, node.view = node, views.pop()
        del node
        assert shelf.pool.kept_bytes == 0
    finally:
        gc.enable()
    gc.collect()
    assert shelf.pool.kept_bytes == 12 * MIB


def test_threads_that_take_and_let_go_at_once_do_not_disturb_one_another() -> None:
    shelf = Shelf(12 * MIB)
    problems: list[str] = []

    def work(number: int) -> None:
        for _ in range(300):
            view = shelf.pool.allocate(4 * MIB)
            view[:8] = view[-8:] = bytes([number]) * 8
            if bytes(view[:8]) + bytes(view[-8:]) != bytes([number]) * 16:
                problems.append("somebody else wrote there")
            del view

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not problems
    assert 0 < shelf.pool.kept_bytes <= 12 * MIB


# ------------------------------------------------------------------------------------------ on a channel


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> BufferPool:
    monkeypatch.setattr(buffer_pool, "pool", shelf.pool)
    return shelf.pool


async def test_values_that_come_in_one_after_the_other_use_the_same_memory(own_pool: BufferPool) -> None:
    near, far = channels(tcp_pair())
    places = set()
    for number in range(3):
        content = bytes([number]) * (5 * MIB + number)
        received: list[memoryview] = []

        async def receive(into: list[memoryview] = received) -> None:
            into += (await far.receive())[1]

        async with background(receive):
            await near.send(Value("key", (len(content),)), [content])
        assert bytes(received[0]) == content
        places.add(place(received[0]))
        received.clear()
    assert len(places) == 1
    near.abort()
    far.abort()


async def test_a_value_that_is_cut_off_shows_nothing_of_the_one_before(own_pool: BufferPool) -> None:
    view = fill(own_pool.allocate(5 * MIB), 99)
    del view
    near, far = tcp_pair()
    _, receiver = channels((near, far))
    shown: list[object] = []

    async def receive() -> None:
        with pytest.raises(ConnectionLost):
            shown.append(await receiver.receive())

    async with background(receive):
        await near.send_all(frame(Value("key", (5 * MIB,))) + bytes(1000))
        await near.aclose()
    assert not shown
    assert own_pool.kept_bytes == 6 * MIB


async def test_memory_that_a_thread_still_writes_to_is_nobody_elses(
    own_pool: BufferPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trio_dask.comm import cross_memory_attach

    near, far = channels(tcp_pair())
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    come_back = own_pool._come_back

    def come_back_and_tell(mapping: mmap.mmap) -> None:
        come_back(mapping)
        done.set()

    monkeypatch.setattr(own_pool, "_come_back", come_back_and_tell)

    def read_remote(_: object, views: list[memoryview]) -> bool:
        begun.set()
        go_on.wait(50)
        fill(views[0])
        return True

    monkeypatch.setattr(cross_memory_attach, "read_remote", read_remote)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send, Value("key", (5 * MIB,)), [bytes(5 * MIB)])
        nursery.start_soon(far.receive)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
    assert own_pool.kept_bytes == 0
    other = fill(own_pool.allocate(5 * MIB), 1)
    go_on.set()
    while not await trio.to_thread.run_sync(done.wait, 0.01):
        gc.collect()  # what was cancelled may have left its frames behind in a cycle
    assert own_pool.kept_bytes == 6 * MIB
    assert bytes(other) == b"\1" * (5 * MIB)


# ------------------------------------------------------------------------------------------ a real process


PROGRAM = """
import os, sys, threading
from trio_dask.comm.buffer_pool import pool
pool._keep_s = 1e6
held = [pool.allocate(5 << 20) for _ in range(3)]
del held[0]
assert pool.kept_bytes == 6 << 20
assert len(os.listdir("/proc/self/task")) == 2
assert threading.active_count() == 1
child = os.fork()
if not child:
    assert pool.kept_bytes == 0
    del held[0]
    assert pool.kept_bytes == 6 << 20
    assert len(os.listdir("/proc/self/task")) == 2
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
kept_until_the_end = [held]
kept_until_the_end.append(kept_until_the_end)
"""


def test_neither_the_end_of_a_process_nor_a_fork_is_disturbed() -> None:
    """Its memory would be kept for days: the process ends now, or not before this test is out of patience."""
    flags = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run([sys.executable, *flags, "-c", PROGRAM], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
