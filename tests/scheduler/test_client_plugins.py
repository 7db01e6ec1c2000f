"""Plugins that clients register, as the scheduler's core sees them."""

from typing import Any

from tests.scheduler.kit import Kit, Peer
from trio_dask.protocol import messages as m

PLUGIN = (b"pickle",)


def set_up_by(peer: Peer) -> list[str]:
    """The names of the plugins that this peer was sent; it answers for none."""
    return [message.name for message in peer.inbox if isinstance(message, m.SetUpPlugin)]


def answer_all(peer: Peer, text: str = "") -> None:
    torn_down = peer.take(m.TearDownPlugin)
    for message in peer.take(m.SetUpPlugin):
        peer.send(m.PluginDone(message.plugin, False, None, text))
    for gone in torn_down:
        peer.send(m.PluginDone(gone.plugin, True, None, ""))


def payloads(peer: Peer) -> list[Any]:
    return [reply.payload for reply in peer.take(m.Reply)]


def test_a_registration_is_answered_when_every_worker_has_answered() -> None:
    kit = Kit()
    client = kit.client()
    one, two = kit.worker(), kit.worker()
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    answer_all(one)
    assert not payloads(client)
    answer_all(two)
    (answer,) = payloads(client)
    assert [text for _, _, text in answer["outcomes"]] == ["", ""]
    client.send(m.RegisterPlugin(2, "worker", "p", PLUGIN, True))
    assert payloads(client) == [{"outcomes": ()}]
    assert not one.take(m.SetUpPlugin)


def test_a_worker_that_joins_gets_no_task_before_its_plugins_are_set_up() -> None:
    kit = Kit()
    client = kit.client()
    client.send(m.RegisterPlugin(1, "worker", "a", PLUGIN, False), m.RegisterPlugin(2, "worker", "b", PLUGIN, False))
    worker = kit.worker()
    client.submit("x")
    assert set_up_by(worker) == ["a", "b"]
    assert not worker.runs()
    worker.send(m.Capacity(1))
    assert not worker.runs()
    answer_all(worker, "ValueError: no")
    assert worker.finish_all() == 1
    assert payloads(client)[-1] == {"outcomes": ()}


def test_a_question_about_ready_workers_waits_for_the_plugins_of_those_that_it_names() -> None:
    kit = Kit()
    client = kit.client()
    there = kit.worker("there")
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    answer_all(there)
    payloads(client)
    joins, hangs = kit.worker("joins"), kit.worker("hangs")
    client.send(m.Query(2, "ready_workers", ("there",)), m.Query(3, "ready_workers", ("joins",)))
    client.send(m.Query(4, "ready_workers", ()))
    (first,) = client.take(m.Reply)
    assert (first.request, [worker["name"] for worker in first.payload["workers"].values()]) == (2, ["there"])
    answer_all(joins)
    (second,) = client.take(m.Reply)
    assert (second.request, [worker["name"] for worker in second.payload["workers"].values()]) == (3, ["joins"])
    hangs.leave()
    (third,) = client.take(m.Reply)
    assert third.request == 4
    assert {"there", "joins"} <= {worker["name"] for worker in third.payload["workers"].values()}


def test_a_registration_that_fails_anywhere_is_taken_back_everywhere() -> None:
    kit = Kit()
    client = kit.client()
    good, bad = kit.worker(), kit.worker()
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    answer_all(bad, "ValueError: no")
    answer_all(good)
    assert len(good.take(m.TearDownPlugin)) == len(bad.take(m.TearDownPlugin)) == 1
    assert not set_up_by(kit.worker())
    client.send(m.UnregisterPlugin(2, "worker", "p"))
    outcomes, refusal = payloads(client)
    assert sorted(text for _, _, text in outcomes["outcomes"]) == ["", "ValueError: no"]
    assert "refused" in refusal


def test_a_worker_that_is_lost_is_not_waited_for() -> None:
    kit = Kit()
    client = kit.client()
    stays, leaves = kit.worker(), kit.worker()
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    answer_all(stays)
    leaves.leave()
    (answer,) = payloads(client)
    assert len(answer["outcomes"]) == 1


def test_a_worker_whose_nanny_reports_its_death_is_not_waited_for() -> None:
    """Its connection is closed then, and nobody tells the core that the session has ended."""
    kit = Kit()
    client = kit.client()
    kit.worker(process="process-1")
    nanny = kit.nanny("process-1")
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    nanny.send(m.WorkerExited("process-1", False, "killed", True, (), {}))
    assert payloads(client) == [{"outcomes": ()}]


def test_a_worker_that_comes_back_before_it_has_answered_is_not_waited_for() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    assert worker.come_back(), "its old session seemed alive"
    assert payloads(client) == [{"outcomes": ()}]
    assert set_up_by(worker) == ["p"]


def test_a_plugin_that_was_unregistered_while_a_worker_set_it_up_is_torn_down_there() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    (order,) = worker.take(m.SetUpPlugin)
    worker.leave()
    client.send(m.UnregisterPlugin(2, "worker", "p"))
    assert worker.come_back()
    worker.bring()
    worker.send(m.PluginDone(order.plugin, False, None, ""))
    assert worker.take(m.TearDownPlugin) == [m.TearDownPlugin(order.plugin)]


def test_a_replaced_plugin_is_torn_down_first_and_the_new_one_comes_last() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    for number, name in enumerate("aba"):
        client.send(m.RegisterPlugin(number, "worker", name, PLUGIN, False))
    kinds = [type(message) for message in worker.inbox if isinstance(message, m.SetUpPlugin | m.TearDownPlugin)]
    assert kinds == [m.SetUpPlugin, m.SetUpPlugin, m.TearDownPlugin, m.SetUpPlugin]
    assert set_up_by(kit.worker()) == ["b", "a"]


def test_the_plugins_of_a_client_outlive_it() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.send(m.RegisterPlugin(1, "worker", "p", PLUGIN, False))
    client.leave(expected=True)
    answer_all(worker)
    assert set_up_by(kit.worker()) == ["p"]


def test_a_nanny_hears_when_it_has_all_plugins() -> None:
    kit = Kit()
    client = kit.client()
    client.send(m.RegisterPlugin(1, "nanny", "p", PLUGIN, False), m.RegisterPlugin(2, "worker", "q", PLUGIN, False))
    nanny = kit.nanny("process")
    assert [type(message) for message in nanny.inbox] == [m.SetUpPlugin, m.PluginsSent]
    assert set_up_by(nanny) == ["p"]
    nanny.inbox.clear()
    client.send(m.UnregisterPlugin(3, "nanny", "p"))
    answer_all(nanny)
    assert len(payloads(client)[-1]["outcomes"]) == 1
