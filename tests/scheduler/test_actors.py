"""The result of a task that makes an actor stands and falls with the worker that ran it."""

from __future__ import annotations

from typing import Any

from tests.scheduler.kit import Client, Kit, Worker
from trio_dask.protocol import messages as m


def hosted(kit: Kit, client: Client, key: str = "actor") -> Worker:
    """The worker on which an actor lives."""
    worker = kit.worker()
    client.submit(key, workers=(worker.name,), actor=True)
    (run,) = worker.runs()
    assert run.extra["actor"] is True
    worker.finish(run)
    return worker


def payloads(client: Client) -> list[Any]:
    return [reply.payload for reply in client.take(m.Reply)]


def test_an_actor_is_lost_with_its_worker_though_others_have_its_proxy() -> None:
    kit = Kit()
    client = kit.client()
    home = hosted(kit, client)
    other = kit.worker()
    client.submit("task", needs=("actor",), workers=(other.name,))
    (run,) = other.runs()
    assert run.dependencies == (("actor", (home.address,)),)
    other.send(m.Replicas(("actor",)))
    kit.tick(0.1)
    client.take(m.KeyReady)
    home.leave()
    kit.tick(0.1)
    failed = client.take(m.KeyFailed)
    assert sorted((message.key, message.blamed, message.kind) for message in failed) == [
        ("actor", "actor", "actor"),
        ("task", "actor", "actor"),
    ]
    kit.tick(0.1)
    assert other.take(m.CancelRuns) == [m.CancelRuns((run.run,))]
    assert other.take(m.Free) == [m.Free(("actor",))]
    assert not other.runs(), "it is made again by itself"
    client.send(m.Retry(("actor",)))
    kit.worker(name="again")
    client.send(m.Release(("actor", "task")))
    kit.tick(0.1)
    kit.assert_empty()


def test_an_actor_outlives_those_that_have_its_proxy_or_cannot_reach_it() -> None:
    kit = Kit()
    client = kit.client()
    home = hosted(kit, client)
    other = kit.worker()
    client.submit("task", needs=("actor",), workers=(other.name,))
    (run,) = other.runs()
    other.send(m.InputMissing(run.run, "actor", home.address))
    client.send(m.FetchFailed("actor", home.address))
    other.send(m.Replicas(("actor",)))
    other.leave()
    kit.tick(0.1)
    assert kit.states()["actor"] == "memory"
    assert not home.take(m.Free)


def test_an_actor_that_its_own_worker_does_not_have_is_lost() -> None:
    kit = Kit()
    client = kit.client()
    home = hosted(kit, client)
    home.send(m.Lost(("actor",)))
    assert [message.kind for message in client.take(m.KeyFailed)] == ["actor"]


def test_an_actor_is_neither_copied_nor_dropped_as_surplus() -> None:
    kit = Kit()
    client = kit.client()
    home = hosted(kit, client)
    other = kit.worker()
    client.send(m.Replicate(1, ("actor",), 0, (), 2), m.Replicate(2, ("actor",), 1, (other.address,), 2))
    client.send(m.Rebalance(3, (), ()))
    kit.tick(0.1)
    assert payloads(client) == [{"missing": ()}] * 3
    assert not other.take(m.Acquire)
    assert not home.take(m.Free)


def test_a_worker_with_an_actor_is_retired_neither_by_name_nor_by_number() -> None:
    kit = Kit()
    client = kit.client()
    home = hosted(kit, client)
    other = kit.worker()
    client.send(m.Retire(1, (home.name,), 0))
    (refusal,) = payloads(client)
    assert "the actor 'actor' lives on worker" in refusal["refused"]
    client.send(m.Retire(2, (), 1))
    kit.tick(1.0)
    assert other.take(m.Leave)
    assert not home.take(m.Leave)


def test_an_actor_that_is_made_on_a_retiring_worker_keeps_it() -> None:
    kit = Kit()
    client = kit.client()
    home, _ = kit.worker(), kit.worker()
    client.submit("actor", workers=(home.name,), actor=True)
    (run,) = home.runs()
    home.send(m.Started((run.run,)))
    client.send(m.Retire(1, (home.name,), 0))
    home.finish(run)
    kit.tick(1.0)
    (refusal,) = payloads(client)
    assert "lives on worker" in refusal["refused"]
    assert not home.take(m.Leave)


def test_a_worker_at_the_end_of_its_lifetime_waits_for_its_actors_one_that_is_stopped_does_not() -> None:
    for reason, waits in (("lifetime", True), ("received SIGTERM", False)):
        kit = Kit()
        client = kit.client()
        home = hosted(kit, client)
        other = kit.worker()
        home.send(m.Drain(reason))
        kit.tick(1.0)
        assert not other.take(m.Acquire)
        assert bool(home.take(m.Leave)) is not waits
        if waits:
            client.send(m.Release(("actor",)))
            kit.tick(1.0)
            assert home.take(m.Leave)


def test_an_actor_of_a_worker_that_returns_is_still_there() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("actor", actor=True)
    (run,) = worker.runs()
    worker.finish(run)
    client.take(m.KeyReady)
    worker.leave()
    assert worker.come_back()
    worker.bring(("actor", run.run))
    kit.tick(10.0)
    assert kit.states() == {"actor": "memory"}
    assert not client.take(m.KeyFailed)
