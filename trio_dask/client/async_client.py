"""The client that is native to Trio."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

from trio_dask.client.as_completed import as_completed
from trio_dask.client.call_forms import Timeout, awaitable
from trio_dask.client.client_base import BaseClient
from trio_dask.client.engine import Engine
from trio_dask.client.futures import AsyncFuture
from trio_dask.client.inspection import AsyncInspection
from trio_dask.client.local_runs import AsyncLocalRuns
from trio_dask.client.open_engine import address_of, client_tls, engine_for, settings_for
from trio_dask.client.operations import AsyncOperations
from trio_dask.client.progress import progress_async
from trio_dask.client.topics import AsyncTopics
from trio_dask.client.wait import wait_async
from trio_dask.client.wait_signals import require_trio
from trio_dask.comm.captured_error import CapturedError
from trio_dask.errors import UsageError

LONGEST_FAREWELL_S: Final = 30.0
"""The engine bounds its own farewell; this is for a bug in that."""


class AsyncClient(AsyncOperations, AsyncTopics, AsyncInspection, AsyncLocalRuns, BaseClient[AsyncFuture]):
    """A client for Trio programs; everything that waits is `async`.

        async with AsyncClient("tcp://10.0.0.5:8786") as client:
            futures = client.map(f, range(1000))
            print(await client.submit(sum, futures))

    Entering it connects; leaving the block releases everything that only this client wanted. Its futures end with it.
    A cancel scope around `await future` ends the waiting; the task goes on until it is cancelled itself, or its last
    future is gone.

    The arguments are those of `Client`, and a lost connection is a delay as there. It starts no cluster: without an
    address, a scheduler file and a scheduler in the configuration it raises `UsageError`.

    Raises, when it is entered:
      NoScheduler, RefusedError: as `Client` does.
      RuntimeError: this thread does not run Trio (a notebook, for example, runs asyncio: use `Client` there).
    """

    def __init__(
        self,
        address: Any = None,
        timeout: Timeout = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        cluster_key: str | os.PathLike[str] | None = None,
        auth: bool | None = None,
        security: object = None,
    ) -> None:
        settings = settings_for(address_of(address), scheduler_file, timeout, name, cluster_key, auth)
        if settings.scheduler is None and settings.scheduler_file is None:
            raise UsageError("AsyncClient needs an address or scheduler_file=; open_local_cluster() starts a cluster")
        self._set_up(engine_for(settings, client_tls(security)), name)

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
        async with trio.open_nursery() as nursery:
            with body:
                await nursery.start(partial(self.engine.serve, outlive_cancellation=True))
                yield self
            self.engine.stop()
            nursery.cancel_scope.deadline = trio.current_time() + LONGEST_FAREWELL_S
            nursery.cancel_scope.shield = True
        body.raise_it()

    @asynccontextmanager
    async def _view(self) -> AsyncGenerator[AsyncClient]:
        await trio.lowlevel.checkpoint()
        yield self

    async def aclose(self) -> None:
        """Say goodbye and release everything, as leaving the block does."""
        if self._is_view:
            await trio.lowlevel.checkpoint()
            return
        self.engine.stop()
        await self.engine.wait_stopped()

    close = aclose

    asynchronous = True
    """For dask, which cannot wait for it: `await client.compute(x)`."""

    gather = awaitable(BaseClient[AsyncFuture]._gather)
    get = awaitable(BaseClient[AsyncFuture]._get, waits_if="sync")
    scatter = awaitable(BaseClient[AsyncFuture]._scatter)
    shutdown = awaitable(BaseClient[AsyncFuture]._shutdown)
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
