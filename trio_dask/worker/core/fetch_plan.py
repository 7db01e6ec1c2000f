"""Keys wanted from peers, for runs that wait for them or to hold a replica: which peer is asked, which are left to try.

A pending key is in exactly one place: in the queue of one address, or in one active fetch. When that place fails the
key moves to the next holder. When no holder is left the key is unfetchable, and the caller hears which address failed
last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    """All that this worker wants from its peers.

    A key is pending as long as runs wait for it (`is_awaited`), or it is being acquired. `cancel` is called with a
    fetch that is of no use any more.
    """

    def __init__(
        self, limits: FetchLimits, is_awaited: Callable[[Key], bool], cancel: Callable[[FetchId], None]
    ) -> None:
        self.limits = limits
        self.pending: dict[Key, PendingKey] = {}
        """Every key that is wanted from a peer."""
        self.acquiring: dict[Key, int] = {}
        """The keys to hold here, whether or not a run waits for them, and the order for each."""
        self.queues: dict[str, dict[Key, None]] = {}
        """Keys that wait for their turn, by address."""
        self.active: dict[FetchId, ActiveFetch] = {}
        """The fetches under way."""
        self._is_awaited = is_awaited
        self._cancel = cancel
        self._active_at: dict[str, int] = {}
        self._last_fetch = 0

    def seek(self, key: Key, holders: Iterable[str]) -> None:
        """Want a key from any of these peers (at least one), or from these too if it is pending already."""
        pending = self.pending.get(key)
        if pending is None:
            untried = dict.fromkeys(holders)
            address = self._least_busy(untried)
            del untried[address]
            self.pending[key] = PendingKey(address, untried)
            self.queues.setdefault(address, {})[key] = None
            return
        for holder in holders:
            if holder != pending.address and holder not in pending.tried:
                pending.untried[holder] = None

    def acquire(self, key: Key, holders: Iterable[str], order: int) -> None:
        """Fetch this key from one of these peers (at least one, or it is being acquired already), and hold it."""
        self.seek(key, holders)
        self.acquiring[key] = order

    def cancel_acquire(self, keys: Iterable[Key]) -> None:
        """These keys need not be held here after all."""
        for key in keys:
            if key in self.acquiring:
                del self.acquiring[key]
                self.drop_unwanted(key)

    def drop_unwanted(self, key: Key) -> None:
        """Stop fetching this key if it is not wanted any more."""
        if key in self.pending and not self._is_awaited(key) and key not in self.acquiring:
            self._drop(key)

    def came(self, key: Key) -> int | None:
        """This key is here, from wherever it came first; returns the order by which it was to be acquired, if any."""
        if key in self.pending:
            self._drop(key)
        return self.acquiring.pop(key, None)

    def missed(self, given_up: Iterable[UnfetchableKey]) -> dict[int, list[Key]]:
        """No peer could give these keys; returns those that were to be acquired, by order."""
        missed: dict[int, list[Key]] = {}
        for key, _ in given_up:
            if key in self.acquiring:
                missed.setdefault(self.acquiring.pop(key), []).append(key)
        return missed

    def expects(self, number: FetchId, key: Key) -> bool:
        """Whether this fetch is current and has not answered this key yet."""
        fetch = self.active.get(number)
        return fetch is not None and key in fetch.keys

    def arrived(self, number: FetchId, key: Key) -> bool:
        """The value of `key` came; False if this fetch is not asked for it, or not any more."""
        if not self.expects(number, key):
            return False
        del self.active[number].keys[key]
        del self.pending[key]
        return True

    def absent(self, number: FetchId, key: Key) -> UnfetchableKey | None:
        """The peer does not have `key`: ask the next holder, or give it up."""
        if not self.expects(number, key):
            return None
        fetch = self.active[number]
        del fetch.keys[key]
        return self._next_holder(key, fetch.address)

    def ended(self, number: FetchId, *, unreachable: bool) -> list[UnfetchableKey]:
        """The fetch is over: ask others for what it has not answered, and if the peer is gone for its queue too."""
        fetch = self.active.get(number)
        if fetch is None:
            return []
        self._end(number)
        failed = list(fetch.keys)
        if unreachable:
            failed += self.queues.pop(fetch.address, {})
        return [given_up for key in failed if (given_up := self._next_holder(key, fetch.address)) is not None]

    def launch(self) -> list[StartFetch]:
        """Start what the limits allow."""
        starts: list[StartFetch] = []
        for address in list(self.queues) if self.queues else ():
            while address in self.queues and self._active_at.get(address, 0) < self.limits.fetches_per_address:
                if len(self.active) >= self.limits.fetches:
                    return starts
                starts.append(self._start(address))
        return starts

    def clear(self) -> None:
        """Drop every key and fetch."""
        for fetch in self.active:
            self._cancel(fetch)
        for table in (self.pending, self.acquiring, self.queues, self.active, self._active_at):
            table.clear()

    def _drop(self, key: Key) -> None:
        pending = self.pending.pop(key)
        if pending.fetch is None:
            self._unqueue(pending.address, key)
            return
        fetch = self.active[pending.fetch]
        del fetch.keys[key]
        if not fetch.keys:
            self._end(pending.fetch)
            self._cancel(pending.fetch)

    def _start(self, address: str) -> StartFetch:
        self._last_fetch += 1
        number = FetchId(self._last_fetch)
        queue = self.queues[address]
        keys = tuple(islice(queue, self.limits.keys_per_fetch))
        for key in keys:
            self._unqueue(address, key)
            self.pending[key].fetch = number
        self.active[number] = ActiveFetch(address, dict.fromkeys(keys))
        self._active_at[address] = self._active_at.get(address, 0) + 1
        return StartFetch(number, address, keys)

    def _end(self, number: FetchId) -> None:
        address = self.active.pop(number).address
        self._active_at[address] -= 1
        if not self._active_at[address]:
            del self._active_at[address]

    def _next_holder(self, key: Key, failed: str) -> UnfetchableKey | None:
        pending = self.pending[key]
        pending.tried[failed] = None
        if not pending.untried:
            del self.pending[key]
            return UnfetchableKey(key, failed)
        pending.address = self._least_busy(pending.untried)
        pending.fetch = None
        del pending.untried[pending.address]
        self.queues.setdefault(pending.address, {})[key] = None
        return None

    def _least_busy(self, holders: Mapping[str, None]) -> str:
        """The holder with the fewest keys of ours to send; the first of several."""
        return min(holders, key=self._load)

    def _load(self, address: str) -> int:
        return len(self.queues.get(address, ())) + self._active_at.get(address, 0) * self.limits.keys_per_fetch

    def _unqueue(self, address: str, key: Key) -> None:
        queue = self.queues[address]
        del queue[key]
        if not queue:
            del self.queues[address]
