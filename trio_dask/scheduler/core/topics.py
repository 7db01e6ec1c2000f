"""What programs, tasks and plugins have logged under topics: the last events of each, and the clients that hear more.

What clients and workers log is opaque bytes. A plugin logs a plain value, which stands alone in a tuple.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, TypeAlias

from trio_dask.ids import PeerId

KEPT_OF_A_TOPIC: Final = 1000
KEPT_BYTES: Final = 32 * 2**20
"""Of all topics. A message can carry as much, so one answer can have all of it."""

EVENT_BYTES: Final = 200
"""What an event takes beside its payload."""

FOR_ALL: Final = ("print", "warn")
"""Topics that all clients hear, except those of tasks."""

Payload: TypeAlias = bytes | tuple[object]


class Logged(NamedTuple):
    """An event of a topic: when, in seconds since 1970, what, and how much memory it takes."""

    at: float
    payload: Payload
    nbytes: int


class Topics:
    """The topic that was logged last stands last. What is dropped first is old, and of a topic that is not used."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.events: dict[str, deque[Logged]] = {}
        self.subscribers: dict[str, dict[PeerId, None]] = {}
        self.nbytes = 0
        self._kept_bytes = kept_bytes

    def add(self, topic: str, event: Logged) -> None:
        """Keep an event, and drop what is too much."""
        events = self.events[topic] = self.events.pop(topic, deque())
        events.append(event)
        self.nbytes += event.nbytes
        if len(events) > KEPT_OF_A_TOPIC:
            self._drop_oldest(topic)
        while self.nbytes > self._kept_bytes:
            self._drop_oldest(next(iter(self.events)))

    def _drop_oldest(self, topic: str) -> None:
        events = self.events[topic]
        self.nbytes -= events.popleft().nbytes
        if not events:
            del self.events[topic]

    def subscribe(self, topic: str, peer: PeerId) -> None:
        """From now on this client hears of the topic."""
        self.subscribers.setdefault(topic, {})[peer] = None

    def unsubscribe(self, topic: str, peer: PeerId) -> None:
        """This client hears of the topic no more, if it did."""
        subscribers = self.subscribers.get(topic, {})
        subscribers.pop(peer, None)
        if not subscribers:
            self.subscribers.pop(topic, None)

    def client_left(self, peer: PeerId) -> None:
        """A client is gone."""
        for topic in [topic for topic, subscribers in self.subscribers.items() if peer in subscribers]:
            self.unsubscribe(topic, peer)
