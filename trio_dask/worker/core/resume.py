"""What a worker tells a scheduler that takes it back: first what may not have arrived, then all that is here.

Nobody can tell which of the last messages before a loss arrived. Most need not be said again: a result is in the
inventory, and a run that is not in it is placed anew. But a failure leaves nothing behind, nor does it show that a
client has put a value here. So these are remembered for a while. To hear them twice does the scheduler no harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import FromWorker, Inventory, NotAcquired, Run, RunFailed, Scattered
from trio_dask.protocol.wire_constants import MAX_INVENTORY_BYTES, MAX_ITEMS
from trio_dask.worker.core.held_keys import Held

__all__ = ["Unconfirmed", "take_inventory"]

MAX_REMEMBERED: Final = 1000
MAX_REMEMBERED_BYTES: Final = 16 * 2**20

STORED_S: Final = 60.0
"""What was said longer ago has arrived, or the scheduler has given this worker up."""

ROW_BYTES: Final = MAX_INVENTORY_BYTES // MAX_ITEMS
"""A row of the inventory has fewer bytes besides its texts, a run too; so there are fewer rows than a list may have."""


class Unconfirmed:
    """The last failures and stored values, and the copies that were being made, in case they are to be told again."""

    def __init__(self) -> None:
        self._failed: deque[RunFailed] = deque()
        self._failed_bytes = 0
        self._stored: deque[tuple[float, Scattered]] = deque(maxlen=MAX_REMEMBERED)
        self._not_acquired: dict[Key, None] = {}

    def failed(self, message: RunFailed) -> None:
        """This was said, or is to be said once there is somebody to hear it."""
        self._failed.append(message)
        self._failed_bytes += _size(message)
        while len(self._failed) > MAX_REMEMBERED or self._failed_bytes > MAX_REMEMBERED_BYTES:
            self._failed_bytes -= _size(self._failed.popleft())

    def stored(self, message: Scattered, now: float) -> None:
        """This was said."""
        self._stored.append((now, message))

    def session_lost(self, acquiring: Iterable[Key], now: float) -> None:
        """What was to be acquired in this session will not be."""
        self._not_acquired.update(dict.fromkeys(acquiring))
        while self._stored and self._stored[0][0] < now - STORED_S:
            self._stored.popleft()

    def tell(self, held: Mapping[Key, Held]) -> list[FromWorker]:
        """What is to be said again now."""
        stored = [message for _, message in self._stored if message.key in held]
        not_acquired = [NotAcquired(tuple(self._not_acquired))] if self._not_acquired else []
        self._not_acquired = {}
        return [*self._failed, *stored, *not_acquired]

    def clear(self) -> None:
        """Somebody else listens from now on, whom all this does not concern."""
        self._failed.clear()
        self._failed_bytes = 0
        self._stored.clear()
        self._not_acquired = {}


def take_inventory(held: Mapping[Key, Held], runs: Mapping[RunId, Run]) -> tuple[Inventory, tuple[Key, ...]]:
    """All that is here, and the keys for which there was no room: those are lost for the scheduler."""
    room = MAX_INVENTORY_BYTES - ROW_BYTES * len(runs)
    rows: list[tuple[Key, int, int, str]] = []
    beyond: list[Key] = []
    for key, value in held.items():
        # Texts of the user may be of any length, and a letter has up to four bytes.
        room -= ROW_BYTES + 4 * (len(key) + len(value.type_name))
        if room >= 0:
            rows.append((key, -1 if value.run is None else value.run, value.nbytes, value.type_name))
        else:
            beyond.append(key)
    return Inventory(tuple(rows), tuple(runs)), tuple(beyond)


def _size(message: RunFailed) -> int:
    return len(message.error or b"") + len(message.text)
