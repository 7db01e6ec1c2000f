"""What we offer to libraries that know how to use a cluster, once the program has imported them.

joblib gets a backend. dask's collections can be awaited under Trio, as with distributed under asyncio. dask and xarray
get locks for writing, where their own only exclude the threads of one process: they ask which scheduler computes, and
know distributed's by its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import trio

from trio_dask.client.collections.cluster_scheduler import computes_in_cluster
from trio_dask.client.import_hook import when_imported


@cache
def serve_libraries() -> None:
    """For clients, and for workers, whose tasks may use these libraries."""
    when_imported("joblib.parallel", _offer_backend)
    when_imported("dask.utils", _offer_lock_to_dask)
    when_imported("dask.base", _offer_waiting_to_dask)
    when_imported("xarray.backends.locks", _offer_locks_to_xarray)


def _offer_backend(parallel: Any) -> None:
    """Under our name, and under that of dask if distributed, which joblib means by it, is not there."""

    def make(**params: Any) -> Any:
        from trio_dask.client.joblib import make_backend

        return make_backend(**params)

    parallel.register_parallel_backend("trio_dask", make)
    if find_spec("distributed") is None and "dask" not in parallel.BACKENDS:
        parallel.register_parallel_backend("dask", make)


def _offer_lock_to_dask(utils: Any) -> None:
    """`da.store(lock=True)` and others ask for this; two tasks may write different parts of one chunk of a target."""
    original = utils.get_scheduler_lock

    @wraps(original)
    def get_scheduler_lock(collection: Any = None, scheduler: Any = None) -> Any:
        from trio_dask.client.collections.dask_names import base, config
        from trio_dask.client.collections.file_lock import lock_in

        if computes_in_cluster(base.get_scheduler(collections=[collection], scheduler=scheduler)):
            return lock_in(config.get("temporary-directory", None))
        return original(collection, scheduler)

    _replace("dask", "get_scheduler_lock", original, get_scheduler_lock)


def _offer_waiting_to_dask(base: Any) -> None:
    """`collection = await client.persist(collection)` returns it once its blocks are done."""
    mixin = base.DaskMethodsMixin
    original = mixin.__await__

    @wraps(original)
    def __await__(self: Any) -> Generator[Any, Any, Any]:
        return _done(self).__await__() if trio.lowlevel.in_trio_run() else original(self)

    mixin.__await__ = __await__


async def _done(collection: Any) -> Any:
    from trio_dask.client.nested_futures import futures_found
    from trio_dask.client.wait import wait_async

    if futures := futures_found(collection):
        await wait_async(futures)
    else:
        await trio.lowlevel.checkpoint()
    return collection


def _offer_locks_to_xarray(locks: Any) -> None:
    """xarray closes a file after each write, as it must, for a scheduler that it knows as "distributed"."""
    name = "get_dask_scheduler" if hasattr(locks, "get_dask_scheduler") else "_get_scheduler"
    find, make_maker = getattr(locks, name), locks._get_lock_maker

    @wraps(find)
    def get_dask_scheduler(get: Any = None, collection: Any = None) -> Any:
        return "distributed" if _cluster_computes(get, collection) else find(get, collection)

    @wraps(make_maker)
    def get_lock_maker(scheduler: Any = None) -> Any:
        if scheduler == "distributed" and _cluster_computes():
            from trio_dask.client.collections.file_lock import lock_beside

            return lock_beside
        return make_maker(scheduler)

    _replace("xarray.backends", name, find, get_dask_scheduler)
    _replace("xarray.backends", "_get_lock_maker", make_maker, get_lock_maker)


def _cluster_computes(get: Any = None, collection: Any = None) -> bool:
    from trio_dask.client.collections.dask_names import base

    return computes_in_cluster(base.get_scheduler(get, collection))


def _replace(package: str, name: str, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Also where modules have imported it by its name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(package) and vars(module).get(name) is original:
            setattr(module, name, replacement)
