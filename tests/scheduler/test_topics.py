"""Topics keep the last events, and tell the clients that subscribe; nothing is left of a client that is gone."""

from typing import Any

import pytest

from tests.scheduler.kit import Client, Kit
from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.protocol import messages as m
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH
from trio_dask.scheduler.core.topics import KEPT_OF_A_TOPIC, Logged, Topics

ALICE, BOB = PeerId(1), PeerId(2)


def heard(client: Client) -> list[tuple[str, Any]]:
    return [(event.topic, event.payload) for event in client.take(m.TopicEvent)]


def test_clients_hear_of_the_topics_that_they_subscribe_to_in_order() -> None:
    kit = Kit()
    alice, bob, worker = kit.client(), kit.client(), kit.worker()
    alice.send(m.Subscribe("weather", True))
    bob.send(m.LogEvent(("weather", "news"), b"fine"))
    worker.send(m.LogEvent(("weather",), b"rain"))
    assert heard(alice) == [("weather", b"fine"), ("weather", b"rain")]
    assert heard(bob) == []
    alice.send(m.Subscribe("weather", False), m.Subscribe("never", False))
    bob.send(m.LogEvent(("weather",), b"snow"))
    assert heard(alice) == []


def test_what_tasks_print_is_heard_by_every_client_once_but_by_no_task() -> None:
    kit = Kit()
    worker = kit.worker()
    alice, task = kit.client(), kit.client(worker=worker.info.incarnation)
    alice.send(m.Subscribe("print", True))
    worker.send(m.LogEvent(("print",), b"hello"))
    assert heard(alice) == [("print", b"hello")]
    assert heard(task) == []


def test_the_last_events_can_be_asked_for_with_their_times() -> None:
    kit = Kit(unix_offset_s=1000.0)
    client = kit.client()
    for number in range(KEPT_OF_A_TOPIC + 1):
        client.send(m.LogEvent(("numbers",), str(number).encode()))
    kit.core.log_event("plain", {"a": 1}, 10, kit.now)
    client.send(m.Query(1, "events", ()), m.Query(2, "events", ("plain", "unknown")))
    every, plain = client.take(m.Reply)
    assert [payload for _, payload in every.payload["numbers"]] == [
        str(number).encode() for number in range(1, KEPT_OF_A_TOPIC + 1)
    ]
    assert plain.payload == {"plain": ((kit.now + 1000.0, ({"a": 1},)),)}


def test_the_topics_that_were_used_least_recently_make_room() -> None:
    topics = Topics(kept_bytes=10)
    for topic in ("a", "b", "a"):
        topics.add(topic, Logged(0.0, b"", 3))
    topics.add("c", Logged(0.0, b"", 3))
    assert {topic: len(events) for topic, events in topics.events.items()} == {"a": 2, "c": 1}
    assert topics.nbytes == 9
    topics.add("huge", Logged(0.0, b"", 100))
    assert not topics.events
    assert topics.nbytes == 0


def test_nothing_is_left_of_a_client_that_is_gone() -> None:
    topics = Topics()
    topics.subscribe("a", ALICE)
    topics.subscribe("a", BOB)
    topics.subscribe("b", ALICE)
    topics.client_left(ALICE)
    assert topics.subscribers == {"a": {BOB: None}}
    topics.unsubscribe("a", BOB)
    assert topics.subscribers == {}

    kit = Kit()
    client, other = kit.client(), kit.client()
    client.send(m.Subscribe("a", True))
    client.leave(expected=True)
    other.send(m.LogEvent(("a",), b""))
    assert not kit.state.topics.subscribers


@pytest.mark.parametrize(
    "message",
    [
        m.LogEvent(("fine", "t" * (MAX_KEY_LENGTH + 1)), b""),
        m.LogEvent(("a",), bytes(2**21)),
        m.Subscribe("t" * (MAX_KEY_LENGTH + 1), True),
    ],
    ids=["long topic", "large event", "long subscription"],
)
def test_what_is_too_long_is_refused_and_changes_nothing(message: m.LogEvent | m.Subscribe) -> None:
    kit = Kit()
    client = kit.client()
    with pytest.raises(ProtocolError):
        kit.core.handle(client.peer, message, kit.now)
    assert not kit.state.topics.events
    assert not kit.state.topics.subscribers
