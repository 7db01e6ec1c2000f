"""What a client does with dask's collections: compute and keep them, and find its futures in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, SupportsFloat, TypeVar, cast

from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture
from trio_dask.client.nested_futures import futures_found
from trio_dask.client.task_options import Options
from trio_dask.errors import UsageError

F = TypeVar("F", bound=BaseFuture)


class CollectionOperations(Generic[F]):
    """The calls of both clients; none of them waits, unless it is told to."""

    engine: Engine
    _future: Callable[[Engine, KeyState], F]

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: SupportsFloat = 0,
        fifo_timeout: Any = None,
        actors: bool = False,
        traverse: bool = True,
        time_limit: Any = None,
        output: Literal["forward"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute dask collections in the cluster; does not wait for results: there is a future in the place of each.

        One collection gives one future; a list, tuple or set gives a list, and is one graph. What is no collection
        stays as it is. With `traverse` an item may be a container with collections inside, which is one future. With
        `sync` it waits, and gives the results themselves.

        The graph is made and sent by another thread; what that raises is the error of the futures. A blocking client
        returns when the graph is sent, so what stands in it may change then. In a Trio loop this returns after 50 ms at
        the latest, so values in a graph that takes longer must not change before a future is done.

        Options are those of `submit`, for all tasks; annotations of tasks (`dask.annotate`) come first, where dask
        keeps them: it drops those of arrays and bags when it fuses tasks, which `optimize_graph=False` prevents (for
        arrays `dask.config.set({"optimization.fuse.active": False})` as well), and those of dataframes. An annotation
        around the call itself counts for all tasks. `executor` names one that the workers have; other keywords mean
        nothing.
        """
        if actors:
            raise UsageError("actors are not supported")
        from trio_dask.client.collections.collection_calls import compute

        options: Options = {
            "workers": workers,
            "allow_other_workers": allow_other_workers,
            "resources": resources,
            "retries": retries,
            "priority": priority,
            "time_limit": time_limit,
            "output": output,
            "executor": kwargs.get("executor"),
        }
        found = compute(
            self.engine, self._future, collections, options, optimize_graph=optimize_graph, traverse=traverse
        )
        return cast("Any", self).gather(found) if sync else found

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: SupportsFloat = 0,
        fifo_timeout: Any = None,
        actors: bool = False,
        time_limit: Any = None,
        output: Literal["forward"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute dask collections in the cluster and keep the results there; does not wait for them.

        For each collection it gives one of the same kind, whose tasks are futures: what is computed from it begins with
        these results, which stay as long as it does. All else is as in `compute`.

        Raises `TypeError` for what is no collection.
        """
        if actors:
            raise UsageError("actors are not supported")
        from trio_dask.client.collections.collection_calls import persist

        options: Options = {
            "workers": workers,
            "allow_other_workers": allow_other_workers,
            "resources": resources,
            "retries": retries,
            "priority": priority,
            "time_limit": time_limit,
            "output": output,
            "executor": kwargs.get("executor"),
        }
        return persist(self.engine, self._future, collections, options, optimize_graph=optimize_graph)

    def normalize_collection(self, collection: Any) -> Any:
        """The same dask collection with futures in the place of those of its tasks that this client has futures of.

        What is computed of it then does not compute these again, however it is optimized.

        Raises `TypeError` for what is no collection.
        """
        from trio_dask.client.collections.collection_calls import normalize_collection

        return normalize_collection(self.engine, self._future, collection)

    def futures_of(self, futures: Any) -> list[BaseFuture]:
        """The futures in this, as `trio_dask.futures_of` finds them."""
        return futures_found(futures)
