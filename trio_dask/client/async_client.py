"""The client that is native to Trio."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

from trio_dask.client import default_clients
from trio_dask.client.as_completed import as_completed
from trio_dask.client.call_forms import Timeout, awaitable
from trio_dask.client.client_base import IGNORED, BaseClient
from trio_dask.client.cluster_dump import AsyncDumps
from trio_dask.client.dataset_operations import AsyncDatasets
from trio_dask.client.engine import Engine
from trio_dask.client.futures import AsyncFuture
from trio_dask.client.hardware import AsyncHardware
from trio_dask.client.inspection import AsyncInspection
from trio_dask.client.local_runs import AsyncLocalRuns
from trio_dask.client.memory_manager import AsyncMemory
from trio_dask.client.metadata_operations import AsyncMetadata
from trio_dask.client.open_engine import address_of, client_tls, engine_for, settings_for
from trio_dask.client.operations import AsyncOperations
from trio_dask.client.plugin_operations import AsyncPlugins
from trio_dask.client.profiles import AsyncProfiles
from trio_dask.client.progress import progress_async
from trio_dask.client.task_stream import AsyncStreams
from trio_dask.client.topics import AsyncTopics
from trio_dask.client.wait import wait_async
from trio_dask.client.wait_signals import require_trio
from trio_dask.comm.captured_error import CapturedError
from trio_dask.errors import UsageError
from trio_dask.hooks import hooks

LONGEST_FAREWELL_S: Final = 30.0
"""The engine bounds its own farewell; this is for a bug in that."""


class AsyncClient(
    AsyncOperations,
    AsyncDatasets,
    AsyncMetadata,
    AsyncPlugins,
    AsyncTopics,
    AsyncInspection,
    AsyncStreams,
    AsyncProfiles,
    AsyncDumps,
    AsyncHardware,
    AsyncLocalRuns,
    AsyncMemory,
    BaseClient[AsyncFuture],
):
    """A client for Trio programs; everything that waits is `async`.

        async with AsyncClient("tcp://10.0.0.5:8786") as client:
            futures = client.map(f, range(1000))
            print(await client.submit(sum, futures))

    Entering it connects; leaving the block releases everything that only this client wanted. Its futures end with it.
    A cancel scope around `await future` ends the waiting; the task goes on until it is cancelled itself, or its last
    future is gone.

    The arguments are those of `Client`, and a lost connection is a delay as there. In the block it is the default
    client. Without an address, a scheduler file and a scheduler in the configuration, the block has a local cluster of
    its own, for which the `options` are.

    Raises, when it is entered:
      NoScheduler, RefusedError, ClusterError: as `Client` does.
      RuntimeError: this thread does not run Trio (a notebook, for example, runs asyncio: use `Client` there).
    """

    _own_options: dict[str, Any] | None = None
    """The arguments for a cluster of its own, if it has one."""
    _set_as_default = False

    def __init__(
        self,
        address: Any = None,
        timeout: Timeout = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: object = None,
        asynchronous: bool = True,
        name: str | None = None,
        cluster_key: str | os.PathLike[str] | None = None,
        auth: bool | None = None,
        **options: Any,
    ) -> None:
        if not asynchronous:
            raise UsageError("AsyncClient is for Trio; Client is the one that blocks")
        options = {option: value for option, value in options.items() if option not in IGNORED}
        if address is not None and not isinstance(address, str):
            self.cluster = address
        settings = settings_for(address_of(address), scheduler_file, timeout, name, cluster_key, auth)
        if settings.scheduler is None and settings.scheduler_file is None:
            self._own_options = {"security": security, **options}
            engine = engine_for(settings, find_address=lambda: str(self.cluster.scheduler_address))
        elif options:
            raise TypeError(f"AsyncClient() got an unexpected argument {min(options)!r}; there is a cluster already")
        else:
            engine = engine_for(settings, client_tls(security))
        self._scheduler_file = settings.scheduler_file
        self._set_as_default = set_as_default
        self._set_up(engine, name)

    @classmethod
    def over(cls, engine: Engine) -> AsyncClient:
        """Another view of a running engine, perhaps in another thread's loop; entering it does nothing."""
        client = cls.__new__(cls)
        client._set_up(engine, engine.client.name, is_view=True)
        return client

    def _set_up(self, engine: Engine, name: str | None, *, is_view: bool = False) -> None:
        super().__init__(engine, AsyncFuture, name)
        if not is_view:
            engine.bind_client(self, AsyncFuture)
        self._is_view = is_view
        self._block = self._view() if is_view else self._host()

    def __aenter__(self) -> Coroutine[Any, Any, AsyncClient]:
        require_trio("AsyncClient")
        return self._block.__aenter__()

    def __aexit__(self, *error: Any) -> Coroutine[Any, Any, bool | None]:
        return self._block.__aexit__(*error)

    @asynccontextmanager
    async def _host(self) -> AsyncGenerator[AsyncClient]:
        """Drive the engine beside the body. When both are cancelled, the body goes first: it may still need the client.

        The body's exception does not pass through the nursery, which would wrap it in a group.
        """
        body = CapturedError()
        async with self._own_cluster(), trio.open_nursery() as nursery:
            with body:
                await nursery.start(partial(self.engine.serve, outlive_cancellation=True))
                if self._set_as_default:
                    with default_clients.open_here(self):
                        yield self
                else:
                    yield self
            self.engine.stop()
            nursery.cancel_scope.deadline = trio.current_time() + LONGEST_FAREWELL_S
            nursery.cancel_scope.shield = True
        body.raise_it()

    @asynccontextmanager
    async def _own_cluster(self) -> AsyncGenerator[None]:
        """A cluster of its own around the block, if the arguments ask for one."""
        if self._own_options is None:
            yield
            return
        assert hooks.open_local_cluster is not None, "trio_dask sets it"
        async with hooks.open_local_cluster(**self._own_options) as self.cluster:
            yield

    @asynccontextmanager
    async def _view(self) -> AsyncGenerator[AsyncClient]:
        await trio.lowlevel.checkpoint()
        yield self

    async def aclose(self) -> None:
        """Say goodbye, release everything, and end a cluster of its own, as leaving the block does."""
        if self._is_view:
            await trio.lowlevel.checkpoint()
            return
        self.engine.stop()
        await self.engine.wait_stopped()
        if self._own_options is not None:
            await self.cluster.aclose()

    close = aclose

    asynchronous = True
    """For dask, which cannot wait for it: `await client.compute(x)`."""

    gather = awaitable(BaseClient[AsyncFuture]._gather)
    get = awaitable(BaseClient[AsyncFuture]._get, waits_if="sync")
    scatter = awaitable(BaseClient[AsyncFuture]._scatter)
    shutdown = awaitable(BaseClient[AsyncFuture]._shutdown)
    sync = awaitable(BaseClient[AsyncFuture]._sync)
    wait = staticmethod(wait_async)
    progress = staticmethod(progress_async)

    def as_completed(
        self,
        futures: Iterable[Any] | None = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: Timeout = None,
    ) -> as_completed:
        """Futures in the order in which they are done, for `async for`."""
        return as_completed(futures, None, with_results, raise_errors, timeout=timeout)
