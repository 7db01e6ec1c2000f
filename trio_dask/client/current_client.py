"""The client that a call uses if it names none."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import trio

from trio_dask.client.async_client import AsyncClient
from trio_dask.client.call_forms import Timeout
from trio_dask.client.client import Client
from trio_dask.client.default_clients import NO_CLIENT, current, usable
from trio_dask.client.futures import BaseFuture
from trio_dask.client.nested_futures import futures_found, futures_given
from trio_dask.hooks import hooks


def get_client(address: str | None = None, timeout: Timeout = None, resolve_address: bool = True) -> Any:
    """The client to use here: in a task its worker's, connected to the worker's scheduler; elsewhere the default one.

    In an `async def` task and in a Trio program it is an `AsyncClient`, otherwise a `Client`. With an `address`, a
    client of that scheduler; one that is made here has to be entered in a Trio program.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    return usable(find_client(address, timeout))


def find_client(address: str | None, timeout: Timeout) -> Any:
    """The same, usable or not."""
    if address is None:
        worker = None if hooks.tasks is None else hooks.tasks.current_worker()
        if worker is not None:
            incarnation = worker.incarnation

            def make(scheduler_address: str) -> Client:
                return Client.without_waiting(scheduler_address, timeout, incarnation)

            client: Client = worker.get_client(make)
            return AsyncClient.over(client.engine) if trio.lowlevel.in_trio_run() else client
    found = current()
    if found is not None and (address is None or found.engine.address == address):
        return found
    if address is not None:
        return (AsyncClient if trio.lowlevel.in_trio_run() else Client)(address, timeout=timeout)
    raise ValueError(NO_CLIENT)


@contextmanager
def worker_client(timeout: Timeout = None, separate_thread: bool = True) -> Generator[Any]:
    """The client of `get_client()`; in the block a task has no slot, so that the tasks it waits for can run.

    With `separate_thread=False` it keeps its slot, except while it waits for results, as an `async def` task does in
    any case: there it is an `AsyncClient`. In a program it is the default client.

    Raises:
      ValueError: there is no client.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    client = get_client(timeout=timeout)
    tasks = hooks.tasks
    if not separate_thread or tasks is None or tasks.current_worker() is None or trio.lowlevel.in_trio_run():
        yield client
    else:
        with tasks.outside_of_slots(client):
            yield client


def futures_of(o: Any, client: Client | AsyncClient | None = None) -> list[BaseFuture]:
    """The futures in this, each once, in order: itself, or in lists, tuples, sets, dicts, dataclasses and collections.

    Those of a dask collection are the futures of its graph: of a persisted one they are its blocks. `client` means
    nothing.

    Raises:
      FutureCancelledError: one of them was cancelled, or lost with its scheduler.
      DataLost: one of them stood for scattered data, which is lost.
    """
    return futures_found(o)


def fire_and_forget(obj: Any) -> None:
    """Have these tasks (futures, perhaps nested or in collections) finish even if the program keeps no future."""
    for future in futures_given(obj, "fire_and_forget()"):
        future.engine.detach([future.state])
