"""Keys that are to come from peers: because runs here wait for them, or because they are to be kept here."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from trio_dask.ids import Key
from trio_dask.worker.core.effects import FetchId
from trio_dask.worker.core.fetch_plan import FetchPlan, UnfetchableKey

__all__ = ["WantedKeys"]


class WantedKeys:
    """A key stays in the `plan` as long as it is in `awaited`, by runs, or is being acquired.

    `cancel` is called with a fetch of which nothing is of use any more.
    """

    def __init__(self, plan: FetchPlan, awaited: Container[Key], cancel: Callable[[FetchId], None]) -> None:
        self.acquiring: dict[Key, None] = {}
        """Keys that are to be kept here, whether or not a run waits for them."""
        self._plan = plan
        self._awaited = awaited
        self._cancel = cancel

    def acquire(self, key: Key, holders: Iterable[str]) -> None:
        """Fetch this key from one of these peers (at least one, or it is being acquired already), and keep it."""
        self._plan.seek(key, holders)
        self.acquiring[key] = None

    def cancel_acquire(self, keys: Iterable[Key]) -> None:
        """These need not be kept here after all."""
        for key in keys:
            if key in self.acquiring:
                del self.acquiring[key]
                self.look(key)

    def cancel_all(self) -> tuple[Key, ...]:
        """Acquire nothing any more, and say what was still to come."""
        keys = tuple(self.acquiring)
        self.cancel_acquire(keys)
        return keys

    def look(self, key: Key) -> None:
        """Fetch this key no longer if nobody wants it any more."""
        if key in self._plan.sought and key not in self._awaited and key not in self.acquiring:
            self._drop(key)

    def came(self, key: Key) -> bool:
        """This key is here, from wherever it came first; True if it was to be acquired."""
        if key in self._plan.sought:
            self._drop(key)
        if key not in self.acquiring:
            return False
        del self.acquiring[key]
        return True

    def missed(self, given_up: Iterable[UnfetchableKey]) -> tuple[Key, ...]:
        """No peer could give these keys; says which of them were to be acquired."""
        missed = tuple(key for key, _ in given_up if key in self.acquiring)
        for key in missed:
            del self.acquiring[key]
        return missed

    def _drop(self, key: Key) -> None:
        fetch = self._plan.drop(key)
        if fetch is not None:
            self._cancel(fetch)
