"""What a worker sends to a scheduler that takes it back: first what may not have arrived, then its inventory.

The worker cannot know which of its last messages arrived before the connection was lost. Most need no repetition: the
inventory lists results, and the scheduler places runs again that are missing from it. But a failure leaves no trace,
and the inventory does not say that a client has put a value here. So the worker remembers these messages for a while.
The scheduler ignores repetitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import FromWorker, Inventory, NotAcquired, Run, RunFailed, Scattered
from trio_dask.protocol.wire_constants import MAX_INVENTORY_BYTES, MAX_ITEMS
from trio_dask.worker.core.held_keys import Held

MAX_REMEMBERED: Final = 1000
MAX_REMEMBERED_BYTES: Final = 16 * 2**20

STORED_S: Final = 60.0
"""What was sent longer ago has arrived, or the scheduler has given this worker up."""

ROW_BYTES: Final = MAX_INVENTORY_BYTES // MAX_ITEMS
"""More than a row of the inventory has besides its texts, or a run; so the rows stay within the limit of a list."""


class ResendOnReturn:
    """The last failures, stored values and interrupted copies, in case they have to be sent again."""

    def __init__(self) -> None:
        self._failed: deque[RunFailed] = deque()
        self._failed_bytes = 0
        self._stored: deque[tuple[float, Scattered]] = deque(maxlen=MAX_REMEMBERED)
        self._not_acquired: dict[Key, None] = {}

    def failed(self, message: RunFailed) -> None:
        """Remember a message that was sent, or will be when there is a session."""
        self._failed.append(message)
        self._failed_bytes += _size(message)
        while len(self._failed) > MAX_REMEMBERED or self._failed_bytes > MAX_REMEMBERED_BYTES:
            self._failed_bytes -= _size(self._failed.popleft())

    def stored(self, message: Scattered, now: float) -> None:
        """Remember a message that was sent."""
        self._stored.append((now, message))

    def session_lost(self, acquiring: Iterable[Key], now: float) -> None:
        """The keys to acquire in this session will not be acquired."""
        self._not_acquired.update(dict.fromkeys(acquiring))
        while self._stored and self._stored[0][0] < now - STORED_S:
            self._stored.popleft()

    def take_messages(self, held: Mapping[Key, Held]) -> list[FromWorker]:
        """The messages to send again now."""
        stored = [message for _, message in self._stored if message.key in held]
        not_acquired = [NotAcquired(tuple(self._not_acquired))] if self._not_acquired else []
        self._not_acquired = {}
        return [*self._failed, *stored, *not_acquired]

    def clear(self) -> None:
        """Forget everything: the next scheduler is another one."""
        self._failed.clear()
        self._failed_bytes = 0
        self._stored.clear()
        self._not_acquired = {}


def take_inventory(held: Mapping[Key, Held], runs: Mapping[RunId, Run]) -> tuple[Inventory, tuple[Key, ...]]:
    """All values held here, and the keys without room in the message, which are lost for the scheduler."""
    room = MAX_INVENTORY_BYTES - ROW_BYTES * len(runs)
    rows: list[tuple[Key, int, int, str]] = []
    beyond: list[Key] = []
    for key, value in held.items():
        # Texts of the user can have any length, and a character takes up to four bytes.
        room -= ROW_BYTES + 4 * (len(key) + len(value.type_name))
        if room >= 0:
            rows.append((key, -1 if value.run is None else value.run, value.nbytes, value.type_name))
        else:
            beyond.append(key)
    return Inventory(tuple(rows), tuple(runs)), tuple(beyond)


def _size(message: RunFailed) -> int:
    return len(message.error or b"") + len(message.text)
