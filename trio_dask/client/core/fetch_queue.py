"""Which results to fetch next, and from which worker.

Keys wait in one line per worker. A worker is asked for several keys in one request, by at most `REQUESTS_PER_WORKER`
requests at a time, and no more than `REQUESTS` run at all.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from trio_dask.client.core.key_state import KeyState

__all__ = ["FetchKeys", "Fetches"]

REQUESTS: Final = 16
REQUESTS_PER_WORKER: Final = 2
REQUEST_KEYS: Final = 512
REQUEST_BYTES: Final = 64 * 1024 * 1024


class FetchKeys(NamedTuple):
    """Ask of whoever drives the core: fetch these keys from `address`; report each, then the end of the request."""

    address: str
    states: tuple[KeyState, ...]


class Fetches:
    """The lines, and what is under way."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[KeyState]] = {}
        self._running: dict[str, int] = {}
        self._total = 0

    def __bool__(self) -> bool:
        """Whether anything stands in line."""
        return bool(self._lines)

    def enqueue(self, state: KeyState) -> None:
        """Put a key into the shortest line among its holders' (the first such, so that the choice is repeatable)."""
        address = min(state.holders, key=self._load)
        state.fetching = address
        self._lines.setdefault(address, deque()).append(state)

    def ended(self, address: str) -> None:
        """One request to this worker is over."""
        self._total -= 1
        left = self._running[address] - 1
        if left:
            self._running[address] = left
        else:
            del self._running[address]

    def next(self) -> list[FetchKeys]:
        """The requests that can start now."""
        if not self._lines:
            return []
        requests: list[FetchKeys] = []
        for address in list(self._lines):
            while self._total < REQUESTS and self._running.get(address, 0) < REQUESTS_PER_WORKER:
                states = self._cut(address)
                if not states:
                    break
                requests.append(FetchKeys(address, states))
                self._running[address] = self._running.get(address, 0) + 1
                self._total += 1
        return requests

    def clear(self) -> None:
        """Nothing waits any more."""
        self._lines.clear()

    def _load(self, address: str) -> int:
        line = self._lines.get(address)
        return (len(line) if line else 0) + self._running.get(address, 0)

    def _cut(self, address: str) -> tuple[KeyState, ...]:
        """The head of a line, as much as one request may carry; keys nobody waits for any more fall out."""
        line = self._lines.get(address)
        states: list[KeyState] = []
        size = 0
        while line and len(states) < REQUEST_KEYS:
            if not line[0].readers or line[0].fetching != address:
                state = line.popleft()
                if state.fetching == address:
                    state.fetching = ""
                continue
            if states and size + line[0].nbytes > REQUEST_BYTES:
                break
            state = line.popleft()
            size += state.nbytes
            states.append(state)
        if not line:
            self._lines.pop(address, None)
        return tuple(states)
