"""Leases that go from caller to caller within a client: single properties; the simulation has whole histories."""

from __future__ import annotations

from collections import deque

import pytest

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended
from trio_dask.client.core.local_leases import KEEP_S, Lease, LeaseWaiter, LocalLeases, Place, Refused
from trio_dask.ids import PeerId
from trio_dask.protocol.messages import Coordinate, EndRequest, Reply
from trio_dask.scheduler.core.coordination.requests import Answer, Request
from trio_dask.scheduler.core.coordination.table import Coordination

LOCK = Place("lock", "x", (True,))


class Scheduler:
    """The scheduler's table, and the clients that ask it."""

    def __init__(self) -> None:
        self.table = Coordination()
        self.clients: list[Client] = []

    def carry(self) -> int:
        """Bring all messages to where they go, until none is left; how many there were."""
        count = 0
        while messages := [(client, message) for client in self.clients for message in client.core.drain()]:
            for client, message in messages:
                count += 1
                if isinstance(message, Coordinate):
                    number, kind, name, operation, arguments = message
                    self.table.begin(Request(client.peer, number), kind, name, operation, arguments)
                elif isinstance(message, EndRequest):
                    self.table.end(Request(client.peer, message.request), message.kind, message.name, is_taken=False)
            for effect in self.table.take_effects():
                assert isinstance(effect, Answer)
                client = self.clients[effect.request.peer]
                client.core.handle(Reply(effect.request.number, (effect.outcome, effect.value)))
        return count


class Client:
    """A client's core, and its callers by name: what each of them was told, in this order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.now = 0.0
        self.core = ClientCore()
        self.core.connected("scheduler", None)
        self.leases = LocalLeases(self.core, lambda: self.now)
        self.peer = PeerId(len(scheduler.clients))
        scheduler.clients.append(self)
        self.told: deque[str] = deque()

    def acquire(self, name: str, place: Place = LOCK) -> LeaseWaiter:
        waiter = LeaseWaiter(lambda: self.told.append(name))
        self.leases.acquire(place, waiter)
        return waiter

    def release(self, waiter: LeaseWaiter) -> None:
        assert isinstance(waiter.answer, Lease)
        self.leases.release(waiter.answer)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def client(scheduler: Scheduler) -> Client:
    return Client(scheduler)


def test_callers_take_turns_without_a_message(scheduler: Scheduler, client: Client) -> None:
    holder, waiting = client.acquire("a"), client.acquire("b")
    scheduler.carry()
    for _ in range(10):
        client.release(holder)
        holder, waiting = waiting, client.acquire("again")
    assert len(client.told) == 11
    assert scheduler.carry() == 0


def test_after_a_while_the_one_that_asked_next_has_it_wherever_it_is(scheduler: Scheduler, client: Client) -> None:
    other = Client(scheduler)
    holder = client.acquire("a")
    scheduler.carry()
    elsewhere = other.acquire("elsewhere")
    scheduler.carry()
    client.acquire("b")
    scheduler.carry()
    client.now = KEEP_S
    client.release(holder)
    scheduler.carry()
    assert (list(client.told), list(other.told)) == (["a"], ["elsewhere"])
    other.release(elsewhere)
    scheduler.carry()
    assert list(client.told) == ["a", "b"]


def test_others_wait_for_no_more_than_one_such_while(scheduler: Scheduler, client: Client) -> None:
    other = Client(scheduler)
    holder, waiting = client.acquire("a"), client.acquire("b")
    scheduler.carry()
    other.acquire("elsewhere")
    scheduler.carry()
    while not other.told:
        client.now += KEEP_S / 4
        client.release(holder)
        holder, waiting = waiting, client.acquire("again")
        scheduler.carry()
    # Once for the lease, and once for the place of "b", which was before that of the other client.
    assert client.now == 2 * KEEP_S


def test_callers_are_served_in_the_order_in_which_they_came(scheduler: Scheduler, client: Client) -> None:
    waiters = [client.acquire(name) for name in "abc"]
    scheduler.carry()
    client.now = KEEP_S
    client.release(waiters[0])  # to the scheduler
    scheduler.carry()
    client.release(waiters[1])  # to a caller
    client.release(waiters[2])
    scheduler.carry()
    assert "".join(client.told) == "abc"
    assert not len(scheduler.table)
    assert not len(client.leases)


def test_a_caller_that_waits_no_longer_leaves_no_trace(scheduler: Scheduler, client: Client) -> None:
    holder, tired, patient = (client.acquire(name) for name in ("a", "tired", "patient"))
    scheduler.carry()
    client.leases.leave(LOCK, tired)
    client.release(holder)
    client.leases.leave(LOCK, patient)  # it has it by now, and does not know it
    scheduler.carry()
    assert list(client.told) == ["a", "patient"]
    assert not len(scheduler.table)
    assert not len(client.leases)


def test_a_grant_that_comes_after_its_caller_has_left_goes_to_the_next(scheduler: Scheduler, client: Client) -> None:
    tired = client.acquire("tired")
    client.leases.leave(LOCK, tired)
    client.acquire("b")
    scheduler.carry()
    assert list(client.told) == ["b"]


def test_a_lease_of_a_session_that_has_ended_is_given_to_nobody(scheduler: Scheduler, client: Client) -> None:
    holder, waiting = client.acquire("a"), client.acquire("b")
    scheduler.carry()
    scheduler.table.session_ended(client.peer)
    client.core.end_session(Ended(True, "lost"))
    assert waiting.answer == Ended(True, "lost")
    client.core.connected("scheduler", None)
    other = Client(scheduler)
    other.acquire("elsewhere")
    scheduler.carry()
    late = client.acquire("late")
    client.release(holder)
    scheduler.carry()
    assert late.answer is None
    assert list(other.told) == ["elsewhere"]


def test_what_the_scheduler_refuses_is_told_to_each_that_waits(scheduler: Scheduler, client: Client) -> None:
    two, three = Place("semaphore", "x", (True, 2)), Place("semaphore", "x", (True, 3))
    client.acquire("a", two)
    refused = [client.acquire(name, three) for name in "bc"]
    scheduler.carry()
    text = "this semaphore has 2 leases, not 3"
    assert [waiter.answer for waiter in refused] == [Refused("refused", text)] * 2
