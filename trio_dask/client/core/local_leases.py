"""Leases of locks and semaphores: within one client they go from caller to caller, without the scheduler.

The scheduler gives leases to the session of a client, by the order of the requests, and not to its callers. So a caller
that releases a lease for which another one waits here lets it have the lease at once. The request that was sent for
that one stays in the scheduler's line; it is a place of this client, for whichever caller waits first when its turn
comes, and for the next one that would have to ask.

Others wait for that, so it lasts for `KEEP_S` after the scheduler gave the lease. What is held for longer than that
goes by the scheduler's order alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended
from trio_dask.protocol.messages import Coordinate, EndRequest

KEEP_S: Final = 0.002
"""How long after its grant a lease may still go from caller to caller."""


class Place(NamedTuple):
    """A lock or semaphore, and what callers ask of it: those of one place can take each other's leases."""

    kind: str
    name: str
    arguments: tuple[Any, ...]


class Lease(NamedTuple):
    """What a caller holds. Its number is that of the request for which the scheduler gave it."""

    place: Place
    number: int
    session: int
    granted_at: float


class Refused(NamedTuple):
    """The scheduler gives no lease: `refused` or `closed`, and a sentence."""

    outcome: str
    text: str


Answer: TypeAlias = Lease | Refused | Ended


class LeaseWaiter:
    """A caller that waits for a lease, and what it is told; then it is woken."""

    __slots__ = ("answer", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.answer: Answer | None = None

    def tell(self, answer: Answer) -> None:
        """It waits no longer."""
        self.answer = answer
        self.wake()


class _Line:
    """The callers that wait at one place, and this client's requests in the scheduler's line; both by their order.

    There are never fewer requests than callers. More of them there are only while a lease is held here.
    """

    __slots__ = ("requests", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[LeaseWaiter, None] = {}
        self.requests: dict[int, None] = {}


class LocalLeases:
    """All that callers of one client wait for. To be called under the lock of its core."""

    def __init__(self, core: ClientCore, clock: Callable[[], float]) -> None:
        self._core = core
        self._clock = clock
        self._lines: dict[Place, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def acquire(self, place: Place, waiter: LeaseWaiter) -> None:
        """Have this caller wait for a lease."""
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line()
        line.waiters[waiter] = None
        if len(line.requests) < len(line.waiters):
            self._ask(place, line)

    def leave(self, place: Place, waiter: LeaseWaiter) -> None:
        """This caller waits no longer; a lease that it has got meanwhile goes to the next one."""
        if isinstance(waiter.answer, Lease):
            self.release(waiter.answer)
            return
        line = self._lines.get(place)
        if line is not None and waiter in line.waiters:
            del line.waiters[waiter]
            if len(line.requests) > len(line.waiters):
                self._end_last(place, line)
            self._forget_unused(place, line)

    def release(self, lease: Lease) -> None:
        """Give a lease to the caller here that waits first, if it may still have it; else to the scheduler."""
        line = self._lines.get(lease.place)
        if line is not None and lease.session == self._core.sessions:
            if line.waiters and self._clock() < lease.granted_at + KEEP_S:
                _serve_first(line, lease)
                return
            while len(line.requests) > len(line.waiters):
                self._end_last(lease.place, line)
            self._forget_unused(lease.place, line)
        self._end(lease.place, lease.number)

    def _ask(self, place: Place, line: _Line) -> None:
        number = 0

        def make(given: int) -> Coordinate:
            nonlocal number
            # Here, since an interrupt may come before `request` returns: then what was sent must be ended.
            number = given
            line.requests[given] = None
            return Coordinate(given, place.kind, place.name, "acquire", place.arguments)

        self._core.request(make, lambda payload, ended: self._answered(place, number, payload, ended))

    def _answered(self, place: Place, number: int, payload: Any, ended: Ended | None) -> None:
        line = self._lines.get(place)
        if line is None or number not in line.requests:
            return  # it was ended, and with it what the answer brings
        del line.requests[number]
        if ended is not None:
            while line.waiters:
                _serve_first(line, ended)
        elif payload[0] != "done":
            if line.waiters:
                _serve_first(line, Refused(*payload))
        elif line.waiters:
            _serve_first(line, Lease(place, number, self._core.sessions, self._clock()))
        else:
            self._end(place, number)
        self._forget_unused(place, line)

    def _end_last(self, place: Place, line: _Line) -> None:
        number, _ = line.requests.popitem()
        self._end(place, number)

    def _end(self, place: Place, number: int) -> None:
        self._core.tell(EndRequest(number, place.kind, place.name, False))

    def _forget_unused(self, place: Place, line: _Line) -> None:
        if not line.requests and not line.waiters:
            self._lines.pop(place, None)


def _serve_first(line: _Line, answer: Answer) -> None:
    waiter = next(iter(line.waiters))
    del line.waiters[waiter]
    waiter.tell(answer)
