"""What dask calls to compute collections while a client is current: it hands them to the client that is current there.

dask has one configuration for the whole program, and each thread and each Trio task may have another client. So the
configuration names this object, which asks where it is called. Where no client is current, it computes in threads, as
dask does by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Final

import trio

from trio_dask.client.import_hook import DASK, when_imported
from trio_dask.hooks import client_here

IN_TRIO: Final = (
    "computing a collection blocks, which would stall the Trio loop of this thread: "
    "use `await client.compute(collection)`, `persist`, or compute in a thread, with `trio.to_thread.run_sync`"
)

SHUFFLE: Final = "dataframe.shuffle.method"
"""dask's own choice is "disk" where `distributed` is not there, which is wrong where workers have other disks."""


class ClusterScheduler:
    """dask calls this to compute, and finds `persist` on it."""

    def __eq__(self, other: object) -> bool:
        """It stands for the `get` of the client that is current here, and programs compare it with that."""
        client = None if other is self else _current_client()
        return other is self or (client is not None and other == client.get)

    __hash__ = object.__hash__

    def __call__(self, expr: Any, keys: Any, **options: Any) -> Any:
        """The results of these keys, in the same nested lists.

        In a plain thread it also computes by an `AsyncClient`, whose Trio loop runs in another thread.

        Raises `RuntimeError` in a Trio loop.
        """
        client = _current_client()
        if client is None:
            return import_module("dask.threaded").get(expr, keys, **options)
        if not client.asynchronous:
            return client.get(expr, keys, **options)
        if trio.lowlevel.in_trio_run():
            raise RuntimeError(IN_TRIO)
        return client.engine.call(partial(client.get, expr, keys, **options))

    def persist(self, collections: Sequence[Any], **options: Any) -> Any:
        """The collections with futures in the place of their tasks; with values, where no client is current."""
        client = _current_client()
        if client is None:
            from trio_dask.client.collections.dask_names import base

            return base.persist(*collections, scheduler="threads", traverse=False, **options)
        return client.persist(collections, **options)


def computes_in_cluster(get: Any) -> bool:
    """Whether this function, by which dask would compute, uses a cluster of ours."""
    if isinstance(get, ClusterScheduler):
        return _current_client() is not None
    return hasattr(getattr(get, "__self__", None), "engine")  # a client's own `get`


def _current_client() -> Any:
    try:
        return client_here()
    except ValueError:  # there is none
        return None


class DaskConfiguration:
    """Puts the scheduler into dask's configuration while there is a reason to: a client is open, or a worker runs."""

    def __init__(self) -> None:
        self._scheduler = ClusterScheduler()
        self._reasons = 0
        self._before: dict[str, Any] = {}
        self._lock = threading.RLock()

    @contextmanager
    def during(self) -> Generator[None]:
        """Around code with a current client."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """One reason more."""
        with self._lock:
            self._reasons += 1
            if self._reasons == 1:
                when_imported(DASK, self._apply)

    def end(self) -> None:
        """One reason less. With the last one dask is configured as before, but for what was changed meanwhile."""
        with self._lock:
            self._reasons -= 1
            if self._reasons == 0:
                self._restore()

    def _apply(self, _: object) -> None:
        with self._lock:
            if not self._reasons or self._before:
                return
            config = import_module("dask.config")
            wanted = {"scheduler": self._scheduler, SHUFFLE: "tasks"}
            self._before = {name: config.get(name, None) for name in wanted}
            for name, value in wanted.items():
                if self._before[name] is None:
                    config.set({name: value})

    def _restore(self) -> None:
        if not self._before:
            return
        config = import_module("dask.config")
        before, self._before = self._before, {}
        for name, value in {"scheduler": self._scheduler, SHUFFLE: "tasks"}.items():
            if config.get(name, None) == value and before[name] is None:
                config.set({name: None})


dask_configuration: Final = DaskConfiguration()
