"""Which results to fetch next, and from which worker.

Keys wait in one queue per worker. A request asks a worker for several keys; at most `REQUESTS_PER_WORKER` requests to
one worker run at a time, and at most `REQUESTS` in all.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from trio_dask.client.core.key_state import KeyState
from trio_dask.protocol.wire_constants import MAX_KEYS_PER_FETCH

REQUESTS: Final = 16
REQUESTS_PER_WORKER: Final = 2
REQUEST_BYTES: Final = 64 * 1024 * 1024


class FetchRequest(NamedTuple):
    """Fetch these keys from `address`; report each to the core, then the end of the request."""

    address: str
    states: tuple[KeyState, ...]


class FetchQueue:
    """The keys that wait, and the requests that run."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[KeyState]] = {}
        """The keys that wait, by worker."""
        self._running: dict[str, int] = {}
        self._total = 0

    def enqueue(self, state: KeyState) -> None:
        """Put a key into the shortest queue among its holders' (the first such, so that the choice is repeatable)."""
        address = min(state.holders, key=self._load)
        state.fetching = address
        self.queues.setdefault(address, deque()).append(state)

    def ended(self, address: str) -> None:
        """One request to this worker has ended."""
        self._total -= 1
        left = self._running[address] - 1
        if left:
            self._running[address] = left
        else:
            del self._running[address]

    def next(self) -> list[FetchRequest]:
        """The requests that can start now."""
        if not self.queues:
            return []
        requests: list[FetchRequest] = []
        for address in list(self.queues):
            while self._total < REQUESTS and self._running.get(address, 0) < REQUESTS_PER_WORKER:
                states = self._cut(address)
                if not states:
                    break
                requests.append(FetchRequest(address, states))
                self._running[address] = self._running.get(address, 0) + 1
                self._total += 1
        return requests

    def clear(self) -> None:
        """No key waits any more."""
        self.queues.clear()

    def _load(self, address: str) -> int:
        queue = self.queues.get(address)
        return (len(queue) if queue else 0) + self._running.get(address, 0)

    def _cut(self, address: str) -> tuple[KeyState, ...]:
        """The head of a queue, as much as one request may carry, without the keys that have no readers."""
        queue = self.queues.get(address)
        states: list[KeyState] = []
        size = 0
        while queue and len(states) < MAX_KEYS_PER_FETCH:
            if not queue[0].readers or queue[0].fetching != address:
                state = queue.popleft()
                if state.fetching == address:
                    state.fetching = ""
                continue
            if states and size + queue[0].nbytes > REQUEST_BYTES:
                break
            state = queue.popleft()
            size += state.nbytes
            states.append(state)
        if not queue:
            self.queues.pop(address, None)
        return tuple(states)
