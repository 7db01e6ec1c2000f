"""Copies of results that a client orders, and those that it does not want any more."""

from __future__ import annotations

from typing import Any

from tests.scheduler.kit import Client, Kit, Worker
from trio_dask.protocol import messages as m


def replies(client: Client) -> list[Any]:
    return [reply.payload for reply in client.take(m.Reply)]


def held_by_one(kit: Kit, client: Client) -> Worker:
    """The worker that holds the result `a`."""
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    return worker


def replicate(client: Client, number: int, *workers: Worker, fan_out: int = 2) -> None:
    client.send(m.Replicate(1, ("a",), number, tuple([worker.address for worker in workers]), fan_out))


def copy(worker: Worker) -> None:
    """The worker does what it was told to."""
    for order in worker.take(m.Acquire):
        worker.send(m.Replicas(tuple([key for key, _ in order.keys]), order.order))


def freed(worker: Worker) -> list[str]:
    return [key for free in worker.take(m.Free) for key in free.keys]


def test_the_client_hears_when_the_last_copy_is_there() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    others = [kit.worker(), kit.worker()]
    replicate(client, 0)
    orders = [order for other in others for order in other.take(m.Acquire)]
    assert [order.keys for order in orders] == [(("a", (worker.address,)),)] * 2
    assert not worker.take(m.Acquire), "it has the result"
    others[0].send(m.Replicas(("a",), orders[0].order))
    kit.tick(0.1)
    assert not replies(client)
    others[1].send(m.Replicas(("a",), orders[1].order))
    kit.tick(0.1)
    assert replies(client) == [{"missing": ()}]


def test_copies_spread_as_a_tree() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    others = [kit.worker() for _ in range(7)]
    replicate(client, 0, fan_out=1)
    told = [worker.address]
    for number in (1, 2, 4):
        round_ = [(other, order) for other in others for order in other.take(m.Acquire)]
        assert len(round_) == number, "each that has it gives it to one other"
        sources = [order.keys[0][1][0] for _, order in round_]
        assert sorted(sources) == sorted(told)
        for other, order in round_:
            other.send(m.Replicas(("a",), order.order))
        told += [other.address for other, _ in round_]
    assert replies(client) == [{"missing": ()}]


def test_another_worker_takes_the_place_of_one_that_is_lost_or_cannot() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    others = [kit.worker() for _ in range(3)]
    replicate(client, 2)
    (order,) = others[0].take(m.Acquire)
    others[0].send(m.NotAcquired(("a",), order.order))
    assert others[1].take(m.Acquire)
    others[1].leave()
    copy(others[0])
    copy(others[2])
    kit.tick(1.0)
    assert replies(client) == [{"missing": ()}]


def test_a_copy_that_fails_again_and_again_or_has_no_worker_is_missing() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    other = kit.worker()
    replicate(client, 2)
    tried = 0
    while orders := other.take(m.Acquire):
        tried += 1
        other.send(m.NotAcquired(("a",), orders[0].order))
    assert tried == 4
    replicate(client, 2)
    other.leave()
    kit.tick(10.0)
    assert replies(client) == [{"missing": ("a",)}] * 2


def test_a_result_that_is_released_meanwhile_keeps_no_client_waiting() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    other = kit.worker()
    replicate(client, 0)
    client.send(m.Release(("a",)))
    kit.tick(1.0)
    assert replies(client) == [{"missing": ()}]
    assert freed(other) == ["a"]
    copy(other)
    assert not freed(other), "it knows already"
    kit.assert_empty()


def test_a_copy_that_crosses_its_withdrawal_is_no_copy_of_the_next_result_of_the_key() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    replicate(client, 0)
    (order,) = other.take(m.Acquire)
    client.send(m.Release(("a",)))
    client.submit("a", workers=(worker.name,))
    worker.finish(worker.runs()[0], value=None)
    client.send(m.Query(2, "who_has", ("a",)))
    other.send(m.Replicas(("a",), order.order))
    client.send(m.Query(3, "who_has", ("a",)))
    assert replies(client)[1:] == [{"a": (worker.address,)}] * 2


def test_a_result_whose_only_worker_is_lost_meanwhile_is_missing() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    kit.worker()
    replicate(client, 0)
    worker.leave()
    kit.tick(1.0)
    assert replies(client) == [{"missing": ("a",)}]


def test_surplus_copies_are_dropped_but_never_the_last_one() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    replicate(client, 0)
    copy(other)
    replicate(client, 1)
    kit.tick(1.0)
    assert sorted([freed(worker), freed(other)]) == [[], ["a"]]
    assert replies(client) == [{"missing": ()}] * 2
    assert kit.states() == {"a": "memory"}


def test_a_surplus_copy_goes_when_no_run_needs_it_there_any_more() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    replicate(client, 0)
    copy(other)
    client.submit("b", needs=("a",), workers=(worker.name,))
    client.submit("c", needs=("a",), workers=(other.name,))
    (run,), (later,) = worker.runs(), other.runs()
    replicate(client, 1, worker, other)
    kit.tick(1.0)
    assert not freed(worker)
    assert not freed(other)
    worker.finish(run)
    other.finish(later)
    kit.tick(1.0)
    assert sorted([freed(worker), freed(other)]) == [[], ["a"]]
    kit.assert_empty()


def test_what_is_not_there_is_no_reason_to_wait() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    client.send(m.Replicate(1, ("b",), 1, (), 2), m.Replicate(1, ("a",), 1, ("elsewhere",), 2))
    kit.tick(0.1)
    assert replies(client) == [{"refused": "there is no worker 'elsewhere'"}, {"missing": ()}]
