"""The client that is native to Trio."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal

import trio

from trio_dask.client import operations
from trio_dask.client.as_completed import DoneAndNotDone, ReturnWhen, as_completed, wait_async
from trio_dask.client.client_base import BaseClient
from trio_dask.client.dask_graphs import flat_keys, shaped_like
from trio_dask.client.engine import Engine
from trio_dask.client.futures import AsyncFuture, Timeout
from trio_dask.client.nested_futures import concrete, filled, futures_in, own_states, skips, values_of
from trio_dask.client.open_engine import address_of, engine_for, settings_for
from trio_dask.client.option_conflicts import unambiguous
from trio_dask.client.scatter import parcels_of, put_all, reshaped
from trio_dask.client.task_options import Workers, understood
from trio_dask.client.wait_signals import require_trio
from trio_dask.comm.captured_error import CapturedError
from trio_dask.errors import DataLost, UsageError
from trio_dask.ids import Key

__all__ = ["AsyncClient"]


class AsyncClient(BaseClient[AsyncFuture]):
    """A client for Trio programs; everything that waits is `async`.

        async with AsyncClient("tcp://10.0.0.5:8786") as client:
            futures = client.map(f, range(1000))
            print(await client.submit(sum, futures))

    Entering it connects; leaving the block releases everything that only this client wanted. Its futures end with it.
    A cancel scope around `await future` ends the waiting; the task goes on until it is cancelled itself, or its last
    future is gone.

    A lost link is a delay: the client dials again for up to `timeout`, futures stay valid, calls wait. If another
    scheduler answers then, or the first one says goodbye or cannot be reached in time, all futures and waiting calls
    fail at once with `SchedulerLost`, and stay so. The client itself goes on: what is asked next is asked of the
    scheduler that is there by then; if need be it is dialled for up to `timeout` again.

    Args:
      address: of the scheduler, such as "tcp://host:8786" or "host", or a cluster; else the environment variable
        `DASK_SCHEDULER_ADDRESS` names it.
      scheduler_file: instead of an address, the file that the scheduler writes; it is waited for.
      timeout: for connecting, at first and again, in seconds or as a text such as "30s".
      name: how this client is called in the scheduler's answers and logs.

    Raises, when it is entered:
      NoScheduler: none could be reached within `timeout`; the message says why. It is an `OSError`.
      RefusedError: the scheduler refuses this client, for example for its version of Python.
      RuntimeError: this thread does not run Trio (a notebook, for example, runs asyncio: use `Client` there).
    """

    def __init__(
        self,
        address: Any = None,
        timeout: Timeout = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        settings = settings_for(address_of(address), scheduler_file, timeout, name)
        if settings.scheduler is None and settings.scheduler_file is None:
            raise UsageError("AsyncClient needs an address or scheduler_file=; open_local_cluster() starts a cluster")
        self._set_up(engine_for(settings), name)

    @classmethod
    def over(cls, engine: Engine) -> AsyncClient:
        """Another view of a running engine, which may live in the loop of another thread; entering it does nothing."""
        client = cls.__new__(cls)
        client._set_up(engine, engine.facade.name, is_view=True)
        return client

    def _set_up(self, engine: Engine, name: str | None, *, is_view: bool = False) -> None:
        super().__init__(engine, AsyncFuture, name)
        if not is_view:
            engine.belong_to(self, AsyncFuture)
        self._is_view = is_view
        self._block = self._view() if is_view else self._host()

    def __aenter__(self) -> Coroutine[Any, Any, AsyncClient]:
        require_trio("AsyncClient")
        return self._block.__aenter__()

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        return self._block.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _host(self) -> AsyncGenerator[AsyncClient]:
        """Drive the engine beside the body. When both are cancelled, the body goes first: it may still need the client.

        The nursery is left without the body's exception, which it would wrap in a group.
        """
        body = CapturedError()
        async with trio.open_nursery() as nursery:
            with body:
                await nursery.start(partial(self._engine.serve, outlive_cancellation=True))
                yield self
            self._engine.stop()
            nursery.cancel_scope.shield = True  # it ends soon: the engine bounds its own farewell
        body.raise_it()

    @asynccontextmanager
    async def _view(self) -> AsyncGenerator[AsyncClient]:
        await trio.lowlevel.checkpoint()
        yield self

    async def aclose(self) -> None:
        """Say goodbye and release everything. Leaving the block does it as well."""
        if self._is_view:
            await trio.lowlevel.checkpoint()
            return
        self._engine.stop()
        await self._engine.wait_stopped()

    close = aclose

    # ------------------------------------------------------------------------------------------------ results

    async def gather(self, futures: Any, errors: Literal["raise", "skip"] = "raise", direct: object = None) -> Any:
        """The results of futures, in the same lists, tuples, sets and dicts.

        The first error is raised; with `errors="skip"` what failed is left out.
        """
        skip = skips(errors)
        futures = concrete(futures)
        states = own_states(self._engine, list(futures_in(futures)))
        reading = await self._engine.read_async(states, on_failure=not skip)
        return filled(futures, values_of(self._engine, reading, states, skip=skip))

    async def wait(self, fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> DoneAndNotDone:
        """Wait until all of these futures are done, or the first is. An error counts as done and is not raised.

        Raises:
          TimeoutError: the time was up before.
          FutureCancelledError: one of them was cancelled.
        """
        return await wait_async(fs, timeout, return_when)

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

    async def get(self, dsk: Mapping[Any, Any], keys: Any, *, sync: bool = True, **options: Any) -> Any:
        """Compute keys of a plain graph (a dict of tasks), and return their values in the shape of `keys`.

        Without `sync` it does not wait, and futures stand in the place of values that have to be computed.

        Raises `KeyError` for a key that is neither in the graph nor at the scheduler.
        """
        found = self._submit_graph(dsk, flat_keys(keys), understood(options))
        try:
            values = await self.gather(found) if sync else found
        except DataLost:
            self._refuse_unknown(dsk, found)
            raise
        return shaped_like(keys, values)

    async def scatter(
        self,
        data: Any,
        workers: Workers = None,
        broadcast: bool = False,
        direct: object = None,
        hash: bool = True,
        timeout: Timeout = None,
    ) -> Any:
        """Put values onto workers; futures in the shape of `data` (a list, tuple, set, dict, or a single value).

        Equal values have equal keys, unless `hash` is False. With `broadcast` every worker gets a copy. Scattered data
        cannot be computed again: with the last copy it is lost.
        """
        data = concrete(data)
        parcels = parcels_of(data, hashed=hash)
        futures = self._expected(parcels)
        with operations.time_limit(timeout, "scatter()"):
            states = [future.state for future in futures]
            await self._engine.call_async(put_all, self._engine, parcels, states, workers, broadcast)
        return reshaped(data, futures)

    # ------------------------------------------------------------------------------------------------ the cluster

    async def who_has(self, futures: Any = None) -> dict[Key, tuple[str, ...]]:
        """The addresses of the workers that hold each result, by key."""
        return await self._engine.call_async(operations.who_has, self._engine, futures)

    async def has_what(self, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
        """The keys of the results that each worker holds, by address."""
        return await self._engine.call_async(operations.has_what, self._engine, workers)

    async def processing(self, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
        """The keys of the tasks that each worker has been given and not finished, by address."""
        return await self._engine.call_async(operations.processing, self._engine, workers)

    async def nthreads(self, workers: Workers = None) -> dict[str, int]:
        """How many threads each worker has, by address."""
        return await self._engine.call_async(operations.ask_workers, self._engine, "nthreads", workers)

    ncores = nthreads

    async def nbytes(self, keys: Any = None, summary: bool = True) -> dict[Key, int]:
        """The sizes of results in bytes, by name of the function; without `summary`, by key."""
        return await self._engine.call_async(operations.nbytes, self._engine, keys, summary)

    async def scheduler_info(self) -> dict[str, Any]:
        """What the scheduler says of itself and of its workers."""
        return await self._engine.call_async(operations.scheduler_info, self._engine)

    async def story(self, *keys_or_futures: Any) -> list[tuple[float, Key, str]]:
        """The last steps of tasks that the scheduler remembers: its time in seconds, the key, what happened."""
        return await self._engine.call_async(operations.story, self._engine, keys_or_futures)

    async def wait_for_workers(self, n_workers: int = 1, timeout: Timeout = None) -> None:
        """Wait until there are this many workers. Raises `TimeoutError` if that is not in time."""
        await self._engine.call_async(operations.wait_for_workers, self._engine, n_workers, timeout)

    @unambiguous
    async def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        workers: Workers = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: operations.OnError = "raise",
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Call a function in the process of each worker, outside of its task slots; what it returned, by address.

        What it raises is raised here; with `on_error="return"` it stands in the result's place, with `"ignore"` such
        workers are left out. Without `wait` nothing is returned, and errors are logged.
        """
        operations.refuse_nanny(nanny)
        if not wait:
            self._engine.start(operations.run, self._engine, function, args, kwargs, workers, on_error)
            return None
        return await self._engine.call_async(operations.run, self._engine, function, args, kwargs, workers, on_error)

    async def run_on_scheduler(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Not available: a scheduler of trio_dask never unpickles anything. Raises `UsageError`."""
        raise UsageError(operations.NO_RUN_ON_SCHEDULER)

    async def restart(self, timeout: Timeout = None, wait_for_workers: bool = True) -> None:
        """Cancel everything of every client, and have all workers begin afresh.

        Raises `TimeoutError` if, after `timeout`, not all of them are back.
        """
        await self._engine.call_async(operations.restart, self._engine, timeout, wait_for_workers)

    async def restart_workers(
        self, workers: Workers, timeout: Timeout = None, raise_for_error: bool = True
    ) -> dict[str, str]:
        """Have some workers begin afresh, as new processes where they have a nanny; what only they held is recomputed.

        Returns "OK" or "timed out" for each, by what it was called here.

        Raises:
          UsageError: there is no such worker.
          TimeoutError: one is not back after `timeout` (at most 30 s), unless `raise_for_error` is False.
        """
        return await self._engine.call_async(
            operations.restart_workers, self._engine, workers, timeout, raise_for_error
        )

    async def retire_workers(
        self, workers: Workers = None, close_workers: bool = True, remove: bool = True, n: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Have workers leave without losing anything: they finish what runs, and others take over what only they hold.

        Args:
          workers: names, addresses, hosts or numbers of the workers.
          n: instead of them, how many; those with the least to do go first.

        Returns what the workers that have left had said of themselves, by address.

        Raises:
          UsageError: there is no such worker.
          ClusterError: what they hold has nowhere to go, or they were needed otherwise; the message says what.
        """
        return await self._engine.call_async(operations.retire_workers, self._engine, workers, n, close_workers, remove)

    async def shutdown(self) -> None:
        """End the cluster, scheduler and workers, and close this client."""
        self._engine.shutdown()
        await self.aclose()
