"""Virtual time and links between simulated processes: seeded delays, order kept, cuts that lose what is under way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final

from trio_dask.protocol import codec
from trio_dask.protocol.messages import Message

MAX_STEPS: Final = 200_000
"""More events than any healthy run has: beyond it the cores are chasing each other."""


class Timeline:
    """Events in virtual time, in a fixed order for a fixed seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do this at that time."""
        self._count += 1
        heappush(self._events, (when, self._count, action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Do this after a delay in seconds."""
        self.at(self.now + delay, action)

    def run(self, until: float = float("inf")) -> bool:
        """Let time pass; False if nothing is left to happen."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heappop(self._events)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise AssertionError(f"more than {MAX_STEPS} events: the cores never come to rest")
            action()
        if self._events:
            self.now = until
        return bool(self._events)


class Pipe:
    """One direction of a link. Messages pass through the real codec and arrive in order, in batches."""

    def __init__(
        self, timeline: Timeline, allowed: codec.Allowed, deliver: Callable[[Sequence[Message]], None]
    ) -> None:
        self._timeline = timeline
        self._allowed = allowed
        self._deliver = deliver
        self._under_way: list[tuple[float, bytes]] = []
        self.is_open = True
        self.drop_next = False

    def send(self, messages: Sequence[Message]) -> None:
        """Send one batch."""
        if not self.is_open or not messages:
            return
        if self.drop_next:
            self.drop_next = False
            messages = messages[1:]
            if not messages:
                return
        rng = self._timeline.rng
        delay = rng.choice((0.0, 0.0005, 0.001, rng.expovariate(200.0)))
        arrival = self._timeline.now + delay
        if self._under_way:
            arrival = max(arrival, self._under_way[-1][0])
        self._under_way.append((arrival, codec.encode(messages)))
        self._timeline.at(arrival, self._arrive)

    def close(self) -> None:
        """Nothing more arrives."""
        self.is_open = False
        self._under_way.clear()

    def _arrive(self) -> None:
        if not self.is_open or not self._under_way or self._under_way[0][0] > self._timeline.now:
            return
        messages: list[Message] = []
        while self._under_way and self._under_way[0][0] <= self._timeline.now:
            messages += codec.decode(self._under_way.pop(0)[1], self._allowed)
        self._deliver(messages)


class Link:
    """A connection between a peer and the scheduler."""

    def __init__(self, to_scheduler: Pipe, to_peer: Pipe) -> None:
        self.to_scheduler = to_scheduler
        self.to_peer = to_peer

    @property
    def is_open(self) -> bool:
        """Whether it has not been cut."""
        return self.to_scheduler.is_open

    def cut(self) -> None:
        """Lose what is under way, both ways."""
        self.to_scheduler.close()
        self.to_peer.close()
