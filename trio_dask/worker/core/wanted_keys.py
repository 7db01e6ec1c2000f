"""Keys wanted from peers: because runs here wait for them, or because this worker is to hold a replica."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from trio_dask.ids import Key
from trio_dask.worker.core.effects import FetchId
from trio_dask.worker.core.fetch_plan import FetchPlan, UnfetchableKey


class WantedKeys:
    """A key stays in the `plan` as long as it is `awaited` by runs, or is being acquired.

    `cancel` is called with a fetch that is of no use any more.
    """

    def __init__(self, plan: FetchPlan, awaited: Container[Key], cancel: Callable[[FetchId], None]) -> None:
        self.acquiring: dict[Key, None] = {}
        """Keys to hold here, whether or not a run waits for them."""
        self._plan = plan
        self._awaited = awaited
        self._cancel = cancel

    def acquire(self, key: Key, holders: Iterable[str]) -> None:
        """Fetch this key from one of these peers (at least one, or it is being acquired already), and hold it."""
        self._plan.seek(key, holders)
        self.acquiring[key] = None

    def cancel_acquire(self, keys: Iterable[Key]) -> None:
        """These keys need not be held here after all."""
        for key in keys:
            if key in self.acquiring:
                del self.acquiring[key]
                self.drop_unwanted(key)

    def cancel_all(self) -> tuple[Key, ...]:
        """Acquire nothing any more, and return the keys still to come."""
        keys = tuple(self.acquiring)
        self.cancel_acquire(keys)
        return keys

    def drop_unwanted(self, key: Key) -> None:
        """Stop fetching this key if it is not wanted any more."""
        if key in self._plan.pending and key not in self._awaited and key not in self.acquiring:
            self._drop(key)

    def arrived(self, key: Key) -> bool:
        """This key is here, from wherever it came first; True if it was to be acquired."""
        if key in self._plan.pending:
            self._drop(key)
        if key not in self.acquiring:
            return False
        del self.acquiring[key]
        return True

    def missed(self, given_up: Iterable[UnfetchableKey]) -> tuple[Key, ...]:
        """No peer could give these keys; returns those that were to be acquired."""
        missed = tuple(key for key, _ in given_up if key in self.acquiring)
        for key in missed:
            del self.acquiring[key]
        return missed

    def _drop(self, key: Key) -> None:
        fetch = self._plan.drop(key)
        if fetch is not None:
            self._cancel(fetch)
