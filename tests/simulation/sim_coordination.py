"""Users of simulated clients that share locks, a semaphore, an event, a queue and a variable, and what must hold then.

What one user believes is compared with what all others believe: a lease is held from the moment in which it was given
to the user, by the scheduler or by another user of its client, until the user gives it back, or its client is gone. A
client that is away within its grace still holds it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tests.simulation.sim_client import SimClient
from tests.simulation.sim_network import Timeline
from trio_dask.client.core import local_leases
from trio_dask.client.core.key_state import Ended
from trio_dask.client.core.local_leases import KEEP_S, Lease, LeaseWaiter, Refused
from trio_dask.protocol.messages import Coordinate, EndRequest
from trio_dask.scheduler.core.state import State

LEASES: Final = {"lock": 1, "semaphore": 2}
LEASE_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {"lock": (True,), "semaphore": (True, 2)}
QUEUE_SIZE: Final = 2
SETTLED_S: Final = 5.0
"""After this time every link is whole again, and every lease was given back."""

Place: TypeAlias = tuple[str, str]
"""A kind and a name."""


@dataclass(eq=False)
class Wish:
    """One request of a user, and what became of it."""

    client: SimClient
    place: Place
    operation: str
    number: int = 0
    is_answered: bool = False
    is_abandoned: bool = False

    def __str__(self) -> str:
        return f"{self.operation} {self.number} of {self.client.name} at the {' '.join(self.place)}"


Then: TypeAlias = Callable[[Wish, str, Any], None]


class Sharing:
    """All that is shared in one history. It has a random source of its own, so that histories without it stay."""

    def __init__(self, seed: int, timeline: Timeline, clients: list[SimClient], *, shares: bool | None) -> None:
        self.timeline = timeline
        self.clients = clients
        self.rng = random.Random(seed ^ 0x5EED)
        draw = self.rng.random() < 0.5
        self.is_on = draw if shares is None else shares
        self.is_calm = False
        self.is_closing = False
        self.wishes: list[Wish] = []
        self.held: dict[Place, dict[Wish, None]] = {}
        self.last_granted: dict[tuple[str, Place], int] = {}
        self.first_granted: dict[tuple[str, int], float] = {}
        """When a client got each of its leases from the scheduler."""
        self.put: dict[int, None] = {}
        """Values that the queue has accepted."""
        self.got: dict[int, None] = {}
        self.values = 0
        self.asked = 0
        """How many leases users wanted, all told."""
        self.may_lose = False
        """A client is gone, which may have taken a value along."""
        if self.is_on:
            for _ in range(self.rng.choice((2, 6, 15))):
                timeline.at(self.rng.random() * 0.3, self._begin)

    # ------------------------------------------------------------------------------------------ what users do

    def _begin(self) -> None:
        """Some user does something, and perhaps some user something else after that."""
        there = [client for client in self.clients if client.open]
        if self.is_calm or not there:
            return
        rng = self.rng
        client = rng.choice(there)
        patience_s = rng.choice((None, None, 0.0, 0.01, 0.1))
        match rng.choice(("lock", "lock", "lock", "semaphore", "event", "queue", "queue", "variable")):
            case "lock":
                self._acquire(client, ("lock", rng.choice("ab")), patience_s)
            case "semaphore":
                self._acquire(client, ("semaphore", "s"), patience_s)
            case "event":
                operation = rng.choice(("wait", "wait", "set", "clear"))
                self._ask(client, ("event", "e"), operation, (), _nothing, patience_s)
            case "variable":
                operations: tuple[tuple[str, tuple[Any, ...]], ...]
                operations = ("get", (True,)), ("set", (_item(0),)), ("delete", ())
                operation, arguments = rng.choice(operations)
                self._ask(client, ("variable", "v"), operation, arguments, _nothing, patience_s)
            case _:
                if rng.random() < 0.5:
                    self._ask(client, ("queue", "q"), "get", (1, True), self._received, patience_s)
                else:
                    self._put(client)
        if rng.random() < 0.8:
            self.timeline.after(rng.random() * 0.1, self._begin)

    def _put(self, client: SimClient) -> None:
        self.values += 1
        value = self.values

        def is_in(wish: Wish, outcome: str, answer: Any) -> None:
            if outcome == "done":
                self.put[value] = None

        self._ask(client, ("queue", "q"), "put", (_item(value), QUEUE_SIZE, True), is_in, None)

    def _ask(
        self,
        client: SimClient,
        place: Place,
        operation: str,
        arguments: tuple[Any, ...],
        then: Then,
        patience_s: float | None = None,
    ) -> None:
        wish = Wish(client, place, operation)

        def answered(payload: Any, ended: Ended | None) -> None:
            wish.is_answered = True
            if ended is not None:
                return
            outcome, value = payload
            if not wish.is_abandoned:
                then(wish, outcome, value)
            elif place[0] == "queue" and outcome == "done" and value:
                client.core.request(lambda number: Coordinate(number, *place, "unget", (value,)), _unheard)

        wish.number = client.core.request(lambda number: Coordinate(number, *place, operation, arguments), answered)
        self.wishes.append(wish)
        client.pump()
        if patience_s is not None:
            self.timeline.after(patience_s, lambda: self._abandon(wish))

    def _acquire(self, client: SimClient, place: Place, patience_s: float | None) -> None:
        """A user wants a lease; it may come from the scheduler or from another user of the client."""
        self.asked += 1
        wish = Wish(client, place, "acquire", self.asked)
        waiter = LeaseWaiter(lambda: self._granted(wish, waiter))
        self.wishes.append(wish)
        client.leases.acquire(_shared(place), waiter)
        client.pump()
        if patience_s is not None:
            self.timeline.after(patience_s, lambda: self._leave(wish, waiter))

    def _granted(self, wish: Wish, waiter: LeaseWaiter) -> None:
        assert not wish.is_answered, f"{wish} was answered twice"
        wish.is_answered = True
        lease = waiter.answer
        if not isinstance(lease, Lease):
            # What a dead client held is free only after its grace; until then others may wait, and hear of the end.
            is_closed = isinstance(lease, Refused) and self.is_closing and self.may_lose
            assert is_closed or isinstance(lease, Ended), f"{wish} was answered with {lease}"
            return
        now = self.timeline.now
        first = self.first_granted.setdefault((wish.client.name, lease.number), now)
        assert now <= first + KEEP_S, (
            f"{wish.client.name} kept the {' '.join(wish.place)} for itself, for {now - first} s"
        )
        holders = {holder: None for holder in self.held.get(wish.place, {}) if holder.client.open}
        self.held[wish.place] = holders
        holders[wish] = None
        assert len(holders) <= LEASES[wish.place[0]], f"{', '.join(map(str, holders))}: all have it at once"
        row = (wish.client.name, wish.place)
        assert self.last_granted.get(row, -1) < wish.number, f"a later request has overtaken {wish}"
        self.last_granted[row] = wish.number
        # Its thread may be slow to run, and then release it or find that its time was up.
        seconds = self.rng.choice((0.0, 0.0005, 0.0005, 0.001, 0.01, 0.2))
        self.timeline.after(seconds, lambda: self._give_back(wish, lease))

    def _give_back(self, wish: Wish, lease: Lease) -> None:
        if wish.client.open and wish in self.held[wish.place]:
            del self.held[wish.place][wish]
            wish.client.leases.release(lease)
            wish.client.pump()

    def _leave(self, wish: Wish, waiter: LeaseWaiter) -> None:
        """A user waits no longer, and perhaps it has a lease by now and does not know it yet."""
        if wish.client.open and (not wish.is_answered or wish in self.held.get(wish.place, {})):
            wish.is_abandoned = True
            self.held.get(wish.place, {}).pop(wish, None)
            wish.client.leases.leave(_shared(wish.place), waiter)
            wish.client.pump()

    def _abandon(self, wish: Wish) -> None:
        """A user waits no longer: it was cancelled, or its time was up."""
        if not wish.is_answered and wish.client.open:
            wish.is_abandoned = True
            wish.client.core.tell(EndRequest(wish.number, *wish.place, False))
            wish.client.pump()

    def _received(self, wish: Wish, outcome: str, items: Any) -> None:
        for frames, _ in items if outcome == "done" else ():
            value = int(frames[0])
            assert value not in self.got, f"the value {value} came out of the queue twice"
            self.got[value] = None

    # ------------------------------------------------------------------------------------------ what must hold

    def calm(self) -> None:
        """No user begins anything new. Those that wait for an event or a value get it."""
        self.is_calm = True
        if self.is_on:
            self.may_lose = not all(client.open for client in self.clients)
            self._answer_waiting()
            self.timeline.after(SETTLED_S, self._empty)

    def _answer_waiting(self) -> None:
        self._by_one("event", "e", "set")
        self._by_one("variable", "v", "set", _item(0))

    def _empty(self) -> None:
        self._answer_waiting()  # again: a `clear` or `delete` from before may have come after it
        self._by_one("event", "e", "clear")
        self._by_one("variable", "v", "delete")
        self._by_one("queue", "q", "get_all")
        self.timeline.after(SETTLED_S, self._close)

    def _close(self) -> None:
        self.is_closing = True
        self._by_one("queue", "q", "close")
        self._by_one("semaphore", "s", "close")

    def _by_one(self, kind: str, name: str, operation: str, *arguments: Any) -> None:
        client = next(client for client in self.clients if client.open)
        self._ask(client, (kind, name), operation, arguments, self._received if operation == "get_all" else _nothing)

    def check(self) -> None:
        """Every user that waited has its answer, and no value was lost."""
        for wish in self.wishes:
            assert wish.is_answered or wish.is_abandoned or not wish.client.open, f"{wish} never had an answer"
        if self.is_on and not self.may_lose:
            lost: Sequence[int] = sorted(self.put.keys() - self.got.keys())
            assert not lost, f"the values {lost} were put into the queue, and never came out"


def check_forgotten(state: State) -> None:
    """A scheduler without clients has forgotten all that they shared."""
    assert not len(state.coordination), "a lock, queue or the like is left over"


def _shared(place: Place) -> local_leases.Place:
    kind, name = place
    return local_leases.Place(kind, name, LEASE_ARGUMENTS[kind])


def _item(value: int) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    return (str(value).encode(),), ()


def _nothing(wish: Wish, outcome: str, value: Any) -> None: ...


def _unheard(payload: Any, ended: Ended | None) -> None: ...
