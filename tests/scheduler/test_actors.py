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


def test_a_lost_actor_says_how_its_worker_ended() -> None:
    for expected, why in ((False, "is lost: killed by SIGKILL"), (True, "left")):
        kit = Kit()
        client = kit.client()
        home = hosted(kit, client)
        home.leave(reason="killed by SIGKILL", expected=expected)
        kit.tick(0.1)
        (failed,) = client.take(m.KeyFailed)
        assert failed.text.endswith(f"lived on one worker: worker {home.name} {why}")


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


# ------------------------------------------------------------------------------------------ actors that move


def moving(kit: Kit, client: Client, home: Worker) -> tuple[Worker, m.HandOverActor]:
    """A worker to which the actor of `home` is to move, and the order for that."""
    other = kit.worker()
    client.send(m.Retire(1, (home.name,), 0))
    kit.tick(0.1)
    (order,) = home.take(m.HandOverActor)
    return other, order


def unrestricted(kit: Kit, client: Client, **options: Any) -> tuple[Worker, m.Run]:
    """The only worker, on which an actor lives that any worker may have, and the run that made it."""
    home = kit.worker(resources={"GPU": 1.0}, reconnect=True)
    client.submit("actor", actor=True, **options)
    (run,) = home.runs()
    home.finish(run)
    return home, run


def homes(kit: Kit, client: Client) -> Any:
    client.take(m.Reply)
    client.send(m.Query(77, "actor_home", ("actor",)))
    return payloads(client)[0]


def test_an_actor_moves_before_its_worker_leaves_and_keeps_the_run_that_made_it() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other, order = moving(kit, client, home)
    assert not home.take(m.Leave)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    (take,) = other.take(m.TakeActor)
    assert take == m.TakeActor("actor", run.run, order.order, home.address)
    assert homes(kit, client) == home.address
    other.send(m.ActorTaken("actor", order.order, b"proxy", ""))
    kit.tick(0.1)
    assert other.take(m.SettleActor) == [m.SettleActor("actor", True)]
    assert home.take(m.SettleActor) == [m.SettleActor("actor", False)]
    assert home.take(m.Free) == [m.Free(("actor",))]
    assert homes(kit, client) == other.address
    assert home.take(m.Leave)
    home.leave(expected=True)
    kit.tick(0.1)
    assert not client.take(m.KeyFailed)
    other.leave()
    assert [message.kind for message in client.take(m.KeyFailed)] == ["actor"], "now it stands and falls with this one"
    kit.assert_empty()


def test_only_a_worker_that_may_have_an_actor_gets_it() -> None:
    for options, gets_it in (
        ({"resources": {"GPU": 1.0}}, ["gpu"]),
        ({"workers": ("w2", "named")}, ["named"]),
        ({"workers": ("w2", "nowhere")}, []),
        ({"workers": ("w2", "nowhere"), "allow_other_workers": True}, ["plain", "named", "gpu"]),
    ):
        kit = Kit()
        client = kit.client()
        home, run = unrestricted(kit, client, **options)
        assert home.name == "w2"
        others = [kit.worker("plain"), kit.worker("named"), kit.worker("gpu", resources={"GPU": 1.0})]
        client.send(m.Retire(1, (home.name,), 0))
        kit.tick(0.1)
        if not gets_it:
            assert "no other worker is there that may have it" in payloads(client)[0]["refused"]
            continue
        (order,) = home.take(m.HandOverActor)
        home.send(m.ActorHeld("actor", order.order, run.run, ""))
        assert [other.name for other in others if other.take(m.TakeActor)] in [[name] for name in gets_it]


def test_an_actor_that_does_not_say_that_it_may_move_keeps_its_worker_and_the_refusal_says_why() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other, order = moving(kit, client, home)
    home.send(m.ActorHeld("actor", order.order, run.run, "it does not say so"))
    kit.tick(0.1)
    (refusal,) = payloads(client)
    assert refusal["refused"].startswith("the actor 'actor' lives on worker w2, and cannot move: it does not say so")
    assert home.take(m.SettleActor) == [m.SettleActor("actor", True)]
    assert not home.take(m.Leave)
    assert not other.take(m.TakeActor)
    client.submit("task", workers=(home.name,))
    assert home.runs(), "the worker takes tasks again"


def test_several_workers_may_fail_to_make_an_actor_then_it_stays() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    others = [kit.worker() for _ in range(4)]
    client.send(m.Retire(1, (home.name,), 0))
    tried: list[str] = []
    for _ in range(3):
        kit.tick(0.1)
        (order,) = home.take(m.HandOverActor)
        home.send(m.ActorHeld("actor", order.order, run.run, ""))
        (target,) = [other for other in others if other.take(m.TakeActor)]
        tried.append(target.name)
        assert not payloads(client)
        target.send(m.ActorTaken("actor", order.order, None, "ImportError: no"))
        assert home.take(m.SettleActor) == [m.SettleActor("actor", True)]
        assert target.take(m.SettleActor) == [m.SettleActor("actor", False)]
    kit.tick(0.1)
    assert len(set(tried)) == 3
    (refusal,) = payloads(client)
    assert f"worker {tried[-1]} could not make it anew: ImportError: no" in refusal["refused"]
    assert homes(kit, client) == home.address


def test_if_the_target_is_lost_the_actor_goes_on_at_home_and_another_worker_is_chosen() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other, order = moving(kit, client, home)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    third = kit.worker()
    other.leave()
    kit.tick(0.1)
    assert home.take(m.SettleActor) == [m.SettleActor("actor", True)]
    (again,) = home.take(m.HandOverActor)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    assert not third.take(m.TakeActor), "an answer to an order that was given up counts for nothing"
    home.send(m.ActorHeld("actor", again.order, run.run, ""))
    assert third.take(m.TakeActor)


def test_if_the_home_dies_meanwhile_the_actor_is_lost_and_the_target_drops_what_it_has() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    kit.state.settings = kit.state.settings._replace(reconnect_grace_s=0.0)
    other, order = moving(kit, client, home)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    home.leave()
    kit.tick(0.1)
    assert [message.kind for message in client.take(m.KeyFailed)] == ["actor"]
    assert other.take(m.SettleActor)[0] == m.SettleActor("actor", False)
    other.send(m.ActorTaken("actor", order.order, None, ""))
    kit.tick(0.1)
    assert set(other.take(m.SettleActor)) <= {m.SettleActor("actor", False)}
    assert other.take(m.Free)[-1] == m.Free(("actor",))


def test_a_home_that_was_away_hears_that_it_still_is_the_home_and_the_move_begins_anew() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other, order = moving(kit, client, home)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    home.leave()
    kit.tick(0.1)
    assert other.take(m.SettleActor) == [m.SettleActor("actor", False)]
    assert home.come_back()
    home.bring(("actor", run.run), ("\0actor\0actor", -1))
    kit.tick(0.1)
    assert home.take(m.SettleActor) == [m.SettleActor("actor", True)]
    assert home.take(m.Free) == [m.Free(("\0actor\0actor",))]
    assert home.take(m.HandOverActor)


def test_a_new_home_that_missed_the_word_hears_it_when_it_comes_back() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other = kit.worker(reconnect=True)
    client.send(m.Retire(1, (home.name,), 0))
    kit.tick(0.1)
    (order,) = home.take(m.HandOverActor)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    other.send(m.ActorTaken("actor", order.order, None, ""))
    other.leave()
    assert other.come_back()
    other.bring(("actor", -1))
    assert other.take(m.SettleActor) == [m.SettleActor("actor", True)]
    assert homes(kit, client) == other.address


def test_an_actor_that_is_released_while_it_moves_leaves_nothing() -> None:
    kit = Kit()
    client = kit.client()
    home, run = unrestricted(kit, client)
    other, order = moving(kit, client, home)
    home.send(m.ActorHeld("actor", order.order, run.run, ""))
    client.send(m.Release(("actor",)))
    other.send(m.ActorTaken("actor", order.order, None, ""))
    kit.tick(0.1)
    assert home.take(m.SettleActor) == [m.SettleActor("actor", True)]
    assert home.take(m.Free) == [m.Free(("actor",))]
    assert set(other.take(m.SettleActor)) == {m.SettleActor("actor", False)}
    assert other.take(m.Free)
    kit.assert_empty()


def test_a_worker_at_its_end_waits_for_its_actors_one_that_is_stopped_only_for_those_that_move() -> None:
    for reason, waits in (("lifetime", True), ("received SIGTERM", False)):
        kit = Kit()
        client = kit.client()
        home, run = unrestricted(kit, client)
        kit.worker()
        home.send(m.Drain(reason))
        kit.tick(0.1)
        (order,) = home.take(m.HandOverActor)
        kit.tick(5.0)
        assert not home.take(m.Leave)
        home.send(m.ActorHeld("actor", order.order, run.run, "it does not say so"))
        kit.tick(0.1)
        assert bool(home.take(m.Leave)) is not waits
        assert not home.take(m.HandOverActor)
