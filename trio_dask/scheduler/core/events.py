"""What happens in the cluster, in order, for whoever listens. Nothing is noted while nobody does.

The core notes events as they happen; the service takes them and hands them on, see `scheduler.plugins`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from trio_dask.ids import Key

EVENTS_KEPT: Final = 100_000
"""Some 30 MB, and what a busy scheduler does in two seconds."""


class TaskMoved(NamedTuple):
    """A task has changed its state. `worker` is the address of the worker that ran or runs it, or ""."""

    at: float
    key: Key
    start: str
    finish: str
    why: str
    worker: str


class WorkerAdded(NamedTuple):
    """A worker is registered. One that comes back after a lost connection is not registered again."""

    at: float
    address: str


class WorkerRemoved(NamedTuple):
    """A worker has left, or is lost for good; its tasks have been placed anew."""

    at: float
    address: str
    why: str


class ClientAdded(NamedTuple):
    """A client has come."""

    at: float
    client: str


class ClientRemoved(NamedTuple):
    """A client has gone for good."""

    at: float
    client: str


class GraphAdded(NamedTuple):
    """A client has brought tasks. `keys` are those that it waits for, `tasks` those that are new."""

    at: float
    client: str
    keys: tuple[Key, ...]
    tasks: tuple[Key, ...]
    dependencies: Mapping[Key, tuple[Key, ...]]


class Noted(NamedTuple):
    """A plugin, or another module of the operator, has something to tell."""

    at: float
    topic: str
    message: object


Event: TypeAlias = TaskMoved | WorkerAdded | WorkerRemoved | ClientAdded | ClientRemoved | GraphAdded | Noted


class EventRing:
    """The last events, oldest first. If too many come before they are taken, the oldest are dropped, and counted."""

    def __init__(self, length: int = EVENTS_KEPT) -> None:
        self.events: deque[Event] = deque(maxlen=length)
        self._noted = 0

    def note(self, event: Event) -> None:
        """Add an event."""
        self.events.append(event)
        self._noted += 1

    def take(self) -> tuple[list[Event], int]:
        """The events since the last call, and how many had to be dropped before them."""
        events, noted = list(self.events), self._noted
        self.events.clear()
        self._noted = 0
        return events, noted - len(events)
