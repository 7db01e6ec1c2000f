"""Which peer is asked for which key, and which are left to try.

A pending key is in exactly one place: in the queue of one address, or in one active fetch. When that place fails the
key moves to the next holder. When no holder is left the key is unfetchable, and the caller hears which address failed
last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from trio_dask.ids import Key
from trio_dask.protocol.wire_constants import MAX_KEYS_PER_FETCH
from trio_dask.worker.core.effects import FetchId, StartFetch


class FetchLimits(NamedTuple):
    """How much is fetched at once. The peer that serves the values bounds the bytes, as it knows them."""

    fetches: int = 16
    fetches_per_address: int = 2
    keys_per_fetch: int = MAX_KEYS_PER_FETCH // 2


class UnfetchableKey(NamedTuple):
    """No holder of `key` is left to ask; `address` was the last."""

    key: Key
    address: str


class PendingKey:
    """A key that has to come from a peer. `fetch` is None while it waits for its turn at `address`."""

    __slots__ = ("address", "fetch", "tried", "untried")

    def __init__(self, address: str, untried: dict[str, None]) -> None:
        self.address = address
        self.fetch: FetchId | None = None
        self.untried = untried
        self.tried: dict[str, None] = {}


class ActiveFetch(NamedTuple):
    """A fetch under way, and the keys it has not answered yet."""

    address: str
    keys: dict[Key, None]


class FetchPlan:
    """All that this worker wants from its peers."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._pending: dict[Key, PendingKey] = {}
        self._queues: dict[str, dict[Key, None]] = {}
        self._active: dict[FetchId, ActiveFetch] = {}
        self._active_at: dict[str, int] = {}
        self._last_fetch = 0

    @property
    def limits(self) -> FetchLimits:
        return self._limits

    @property
    def pending(self) -> Mapping[Key, PendingKey]:
        """Every key that is wanted from a peer."""
        return self._pending

    @property
    def queues(self) -> Mapping[str, Mapping[Key, None]]:
        """Keys that wait for their turn, by address."""
        return self._queues

    @property
    def active(self) -> Mapping[FetchId, ActiveFetch]:
        """The fetches under way."""
        return self._active

    def seek(self, key: Key, holders: Iterable[str]) -> None:
        """Want a key from any of these peers (at least one), or from these too if it is pending already."""
        pending = self._pending.get(key)
        if pending is None:
            untried = dict.fromkeys(holders)
            address = self._least_busy(untried)
            del untried[address]
            self._pending[key] = PendingKey(address, untried)
            self._queues.setdefault(address, {})[key] = None
            return
        for holder in holders:
            if holder != pending.address and holder not in pending.tried:
                pending.untried[holder] = None

    def drop(self, key: Key) -> FetchId | None:
        """This key is not wanted any more. Returns a fetch that is of no use now."""
        pending = self._pending.pop(key)
        if pending.fetch is None:
            self._unqueue(pending.address, key)
            return None
        fetch = self._active[pending.fetch]
        del fetch.keys[key]
        if fetch.keys:
            return None
        self._end(pending.fetch)
        return pending.fetch

    def expects(self, number: FetchId, key: Key) -> bool:
        """Whether this fetch is current and has not answered this key yet."""
        fetch = self._active.get(number)
        return fetch is not None and key in fetch.keys

    def arrived(self, number: FetchId, key: Key) -> bool:
        """The value of `key` came; False if this fetch is not asked for it, or not any more."""
        if not self.expects(number, key):
            return False
        del self._active[number].keys[key]
        del self._pending[key]
        return True

    def absent(self, number: FetchId, key: Key) -> UnfetchableKey | None:
        """The peer does not have `key`: ask the next holder, or give it up."""
        if not self.expects(number, key):
            return None
        fetch = self._active[number]
        del fetch.keys[key]
        return self._next_holder(key, fetch.address)

    def ended(self, number: FetchId, *, unreachable: bool) -> list[UnfetchableKey]:
        """The fetch is over: ask others for what it has not answered, and if the peer is gone for its queue too."""
        fetch = self._active.get(number)
        if fetch is None:
            return []
        self._end(number)
        failed = list(fetch.keys)
        if unreachable:
            failed += self._queues.pop(fetch.address, {})
        return [given_up for key in failed if (given_up := self._next_holder(key, fetch.address)) is not None]

    def launch(self) -> list[StartFetch]:
        """Start what the limits allow."""
        starts: list[StartFetch] = []
        for address in list(self._queues) if self._queues else ():
            while address in self._queues and self._active_at.get(address, 0) < self._limits.fetches_per_address:
                if len(self._active) >= self._limits.fetches:
                    return starts
                starts.append(self._start(address))
        return starts

    def clear(self) -> list[FetchId]:
        """Want nothing any more. Returns the fetches to cancel."""
        running = list(self._active)
        self._pending.clear()
        self._queues.clear()
        self._active.clear()
        self._active_at.clear()
        return running

    def _start(self, address: str) -> StartFetch:
        self._last_fetch += 1
        number = FetchId(self._last_fetch)
        queue = self._queues[address]
        keys = tuple(islice(queue, self._limits.keys_per_fetch))
        for key in keys:
            self._unqueue(address, key)
            self._pending[key].fetch = number
        self._active[number] = ActiveFetch(address, dict.fromkeys(keys))
        self._active_at[address] = self._active_at.get(address, 0) + 1
        return StartFetch(number, address, keys)

    def _end(self, number: FetchId) -> None:
        address = self._active.pop(number).address
        self._active_at[address] -= 1
        if not self._active_at[address]:
            del self._active_at[address]

    def _next_holder(self, key: Key, failed: str) -> UnfetchableKey | None:
        pending = self._pending[key]
        pending.tried[failed] = None
        if not pending.untried:
            del self._pending[key]
            return UnfetchableKey(key, failed)
        pending.address = self._least_busy(pending.untried)
        pending.fetch = None
        del pending.untried[pending.address]
        self._queues.setdefault(pending.address, {})[key] = None
        return None

    def _least_busy(self, holders: Mapping[str, None]) -> str:
        """The holder with the fewest keys of ours to send; the first of several."""
        return min(holders, key=self._load)

    def _load(self, address: str) -> int:
        return len(self._queues.get(address, ())) + self._active_at.get(address, 0) * self._limits.keys_per_fetch

    def _unqueue(self, address: str, key: Key) -> None:
        queue = self._queues[address]
        del queue[key]
        if not queue:
            del self._queues[address]
