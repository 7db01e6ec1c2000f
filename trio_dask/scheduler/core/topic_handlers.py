"""The messages about topics, and how an event reaches the clients that hear of its topic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import LogEvent, Message, Subscribe, TopicEvent
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH
from trio_dask.scheduler.core.events import Noted
from trio_dask.scheduler.core.state import Client, LogLine, State, Worker
from trio_dask.scheduler.core.topics import EVENT_BYTES, FOR_ALL, Logged, Payload

LARGEST_EVENT_BYTES: Final = 2**20 + 2**10
"""Clients and workers refuse those above 1 MiB."""

LARGEST_UNREAD_BYTES: Final = 64 * 2**20
"""A client that has not handled so much of what it was told of topics is told no more for a while: the scheduler keeps
all of it, and may have to for as long as the client may be away."""


def log_event(state: State, sender: Client | Worker, message: LogEvent) -> None:
    """A client or a task logs something.

    Raises `ProtocolError` if a name or the payload is too long.
    """
    if len(message.payload) > LARGEST_EVENT_BYTES:
        raise ProtocolError(f"an event of {len(message.payload)} bytes is too large")
    for topic in message.topics:
        _check(topic)
    for topic in message.topics:
        publish(state, topic, message.payload, len(message.payload))


def subscribe(state: State, client: Client, message: Subscribe) -> None:
    """A client wants to hear of a topic, or no longer.

    Raises `ProtocolError` if its name is too long.
    """
    _check(message.topic)
    if message.wanted:
        state.topics.subscribe(message.topic, client.peer)
    else:
        state.topics.unsubscribe(message.topic, client.peer)


def publish(state: State, topic: str, payload: Payload, nbytes: int) -> None:
    """Keep an event, and tell the clients and plugins that hear of it."""
    at = state.now + state.settings.unix_offset_s
    state.topics.add(topic, Logged(at, payload, nbytes + len(topic) + EVENT_BYTES))
    hearers = state.topics.subscribers.get(topic, {})
    if topic in FOR_ALL:
        hearers = {**hearers, **{peer: None for peer, client in state.clients.items() if client.worker is None}}
    message = TopicEvent(topic, at, payload)
    for peer in hearers:
        _tell(state, state.clients[peer], message)
    if state.events is not None:
        state.events.note(Noted(state.now, topic, payload if isinstance(payload, bytes) else payload[0]))


def _tell(state: State, client: Client, event: TopicEvent) -> None:
    if client.grace_s and client.unread_bytes > LARGEST_UNREAD_BYTES:
        if not client.missed:
            text = f"Client {client.name} reads events more slowly than they come: it misses some"
            state.requests.append(LogLine(text, serious=True))
        client.missed += 1
        return
    if client.grace_s:  # else nothing is kept for it
        client.unread_bytes += _size(event)
    state.send(client.peer, event)


def events_were_read(state: State, client: Client, messages: Iterable[Message]) -> None:
    """A client has handled these messages. If it had missed events, and has room again, it hears how many."""
    if not client.unread_bytes:
        return
    client.unread_bytes -= unread_bytes(messages)
    if client.missed and client.unread_bytes <= LARGEST_UNREAD_BYTES // 2:
        text = f"{client.missed} events were lost, as this client read them more slowly than they came"
        client.missed = 0
        _tell(state, client, TopicEvent("warn", state.now + state.settings.unix_offset_s, (text,)))


def unread_bytes(messages: Iterable[Message]) -> int:
    """What the events among these messages take."""
    return sum([_size(event) for event in messages if isinstance(event, TopicEvent)])


def _size(event: TopicEvent) -> int:
    return EVENT_BYTES + len(event.topic) + (len(event.payload) if isinstance(event.payload, bytes) else 0)


def events(state: State, topics: tuple[str, ...]) -> dict[str, list[tuple[float, Any]]]:
    """The events of these topics, or of all, oldest first."""
    kept = state.topics.events
    return {topic: [event[:2] for event in kept[topic]] for topic in topics or kept if topic in kept}


def _check(topic: str) -> None:
    if len(topic) > MAX_KEY_LENGTH:
        raise ProtocolError(f"the name of a topic has {len(topic)} characters")
