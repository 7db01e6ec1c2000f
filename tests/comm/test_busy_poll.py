"""Polling before a wait: only where waits are short, only for so long, and not where the processor is scarce."""

import os
import select
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio

from trio_dask.comm import busy_poll
from trio_dask.comm.busy_poll import ENOUGH, REST_S, SCARCE_S, BusyPoll

LIMIT_S = 0.5e-3
LOOK_S = 10e-6

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is nothing to poll with")


class Bench:
    """A clock that moves when the processor is given away, and descriptors that are readable from some time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.looks = 0
        self.readable_at = float("inf")
        self.yield_s = LOOK_S
        monkeypatch.setattr(busy_poll, "perf_counter", lambda: self.now)
        monkeypatch.setattr(os, "sched_yield", self._give_way)
        monkeypatch.setattr(busy_poll, "select", SimpleNamespace(epoll=lambda: self, EPOLLIN=1))  # Trio needs its own

    def _give_way(self) -> None:
        self.now += self.yield_s

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def register(self, fd: int, events: int) -> None:
        pass

    def unregister(self, fd: int) -> None:
        pass

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        assert timeout == 0
        self.looks += 1
        return [(0, 1)] if self.now >= self.readable_at else []

    def wait(self, polling: BusyPoll, seconds: float, timeout: float = float("inf")) -> int:
        """What Trio does around a wait that ends this many seconds from now. Returns how often it polled."""
        self.looks = 0
        self.readable_at = self.now + seconds
        until = self.now + min(seconds, timeout)
        polling.before_io_wait(timeout)
        self.now = max(self.now, until)
        polling.after_io_wait(timeout)
        return self.looks


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def run(limit_s: float, body: Callable[[BusyPoll], None], *, watched: int | None = 0) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        polling = BusyPoll(limit_s)
        with polling.running(), polling.watching(watched):
            trio.lowlevel.remove_instrument(polling)  # the waits of this loop itself are none of its business
            try:
                body(polling)
            finally:
                trio.lowlevel.add_instrument(polling)

    trio.run(main)


def test_it_looks_again_and_again_once_some_waits_were_short(bench: Bench) -> None:
    def body(polling: BusyPoll) -> None:
        for _ in range(ENOUGH):
            assert bench.wait(polling, LIMIT_S / 5) == 0
        assert bench.wait(polling, LIMIT_S / 5) == pytest.approx(LIMIT_S / 5 / LOOK_S, abs=3)

    run(LIMIT_S, body)


def test_a_wait_that_is_longer_ends_it_and_costs_no_more_than_the_limit(bench: Bench) -> None:
    def body(polling: BusyPoll) -> None:
        for _ in range(ENOUGH):
            bench.wait(polling, LIMIT_S / 5)
        assert bench.wait(polling, 10 * LIMIT_S) <= LIMIT_S / LOOK_S + 1
        for _ in range(ENOUGH):
            assert bench.wait(polling, LIMIT_S / 5) == 0

    run(LIMIT_S, body)


def test_it_looks_no_longer_than_until_trio_has_something_to_do(bench: Bench) -> None:
    def body(polling: BusyPoll) -> None:
        for _ in range(ENOUGH):
            bench.wait(polling, LIMIT_S / 5)
        began = bench.now
        bench.wait(polling, LIMIT_S, timeout=LIMIT_S / 10)
        assert bench.now - began <= LIMIT_S / 10 + LOOK_S
        assert bench.wait(polling, LIMIT_S, timeout=0) == 0

    run(LIMIT_S, body)


def test_where_the_processor_is_scarce_it_sleeps_for_a_while(bench: Bench) -> None:
    def body(polling: BusyPoll) -> None:
        for _ in range(ENOUGH):
            bench.wait(polling, LIMIT_S / 5)
        bench.yield_s = 2 * SCARCE_S  # somebody computes there
        assert bench.wait(polling, LIMIT_S / 5) == 1
        bench.yield_s = LOOK_S
        rests_until = bench.now + REST_S
        while bench.now < rests_until - LIMIT_S:
            assert bench.wait(polling, LIMIT_S / 5) == 0
        bench.now = rests_until + LIMIT_S
        assert bench.wait(polling, LIMIT_S / 5) > 1

    run(LIMIT_S, body)


@pytest.mark.parametrize(("limit_s", "watched"), [(0.0, 0), (LIMIT_S, None)])
def test_without_a_limit_or_anything_to_watch_it_never_looks(bench: Bench, limit_s: float, watched: int | None) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        polling = BusyPoll(limit_s)
        with polling.running(), polling.watching(watched):
            for _ in range(3 * ENOUGH):
                assert bench.wait(polling, LIMIT_S / 5) == 0

    trio.run(main)


@needs_epoll
def test_a_descriptor_may_be_closed_before_it_is_let_go() -> None:
    async def main() -> None:
        polling = BusyPoll(LIMIT_S)
        ours, theirs = socket.socketpair()
        with theirs, polling.running():
            with polling.watching(ours.fileno()):
                ours.close()
            with socket.socket() as other, polling.watching(other.fileno()):
                await trio.lowlevel.checkpoint()

    trio.run(main)
    trio.run(main)  # and it has left nothing in the loop
