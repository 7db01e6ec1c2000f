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


def test_the_client_hears_when_the_last_copy_is_there() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    others = [kit.worker(), kit.worker()]
    client.send(m.Replicate(1, tuple([("a", other.address) for other in (worker, *others)]), ()))
    assert [other.take(m.Acquire) for other in others] == [[m.Acquire((("a", (worker.address,)),))]] * 2
    assert not worker.take(m.Acquire), "it has the result"
    others[0].send(m.Replicas(("a",)))
    kit.tick(0.1)
    assert not replies(client)
    others[1].send(m.Replicas(("a",)))
    kit.tick(0.1)
    assert replies(client) == [{"missing": ()}]


def test_a_copy_that_failed_or_whose_worker_left_is_missing() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    others = [kit.worker(), kit.worker()]
    client.send(m.Replicate(1, tuple([("a", other.address) for other in others]), ()))
    others[0].send(m.NotAcquired(("a",)))
    kit.tick(0.1)
    assert not replies(client)
    others[1].leave()
    kit.tick(10.0)
    assert replies(client) == [{"missing": ("a", "a")}]


def test_a_result_that_is_released_meanwhile_keeps_no_client_waiting() -> None:
    kit = Kit()
    client = kit.client()
    held_by_one(kit, client)
    other = kit.worker()
    client.send(m.Replicate(1, (("a", other.address),), ()), m.Release(("a",)))
    other.send(m.Replicas(("a",)))
    kit.tick(1.0)
    assert replies(client) == [{"missing": ("a",)}]
    assert [key for free in other.take(m.Free) for key in free.keys] == ["a"]
    kit.assert_empty()


def test_surplus_copies_are_dropped_but_never_the_last_one() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    client.send(m.Replicate(1, (("a", other.address),), ()))
    other.send(m.Replicas(("a",)))
    client.send(m.Replicate(2, (), (("a", worker.address), ("a", other.address))))
    kit.tick(1.0)
    assert [key for free in worker.take(m.Free) for key in free.keys] == ["a"]
    assert not other.take(m.Free)
    assert replies(client) == [{"missing": ()}] * 2
    assert kit.states() == {"a": "memory"}


def test_what_is_not_there_is_no_reason_to_wait() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    client.send(m.Replicate(1, (("b", worker.address), ("a", "tcp://nowhere:1")), (("b", worker.address),)))
    kit.tick(0.1)
    assert replies(client) == [{"missing": ()}]
