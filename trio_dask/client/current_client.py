"""Which client is meant where none is named."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from trio_dask.client.futures import BaseFuture, Timeout
from trio_dask.client.nested_futures import concrete, futures_given, futures_in
from trio_dask.errors import FutureCancelledError
from trio_dask.hooks import hooks

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client

__all__ = [
    "as_current",
    "current",
    "default_client",
    "find_client",
    "fire_and_forget",
    "forget",
    "futures_of",
    "get_client",
    "loosen",
    "remember",
    "worker_client",
]

NO_CLIENT = "no client found: make one first, with `Client(...)`"

_C = TypeVar("_C", bound="Client | AsyncClient")

_LATER: Final = {"lost": 1, "forked": 2}

_lock = threading.Lock()
_open: list[weakref.ref[Client]] = []
"""Clients that were opened as default ones, the newest last."""
_kept: dict[Client, None] = {}
"""Those of them that stay though nobody else refers to them."""
_chosen: ContextVar[Client | None] = ContextVar("trio_dask current client", default=None)


def remember(client: Client) -> None:
    """Make this the default client until it is closed, or another is opened."""
    with _lock:
        _open.append(weakref.ref(client))
        _kept[client] = None


def loosen(client: Client) -> None:
    """This one was replaced: it is a default one for as long as somebody refers to it."""
    with _lock:
        _kept.pop(client, None)


def forget(client: Client) -> None:
    """This client is closed."""
    with _lock:
        _open[:] = [reference for reference in _open if reference() not in (client, None)]
        _kept.pop(client, None)


@contextmanager
def as_current(client: Client) -> Generator[None]:
    """Make this the default client of the code in the block."""
    before = _chosen.set(client)
    try:
        yield
    finally:
        _chosen.reset(before)


def current() -> Client | None:
    """The default client here, if there is one: chosen by `as_current`, else the newest that is open.

    One whose scheduler is lost counts as open only where no other is, and one of the parent, in a forked child, last.
    """
    chosen = _chosen.get()
    if chosen is not None and chosen.status != "forked":
        return chosen
    with _lock:
        clients = [reference() for reference in reversed(_open)]
    found = [client for client in clients if client is not None and client.status != "closed"]
    return min(found, key=lambda client: _LATER.get(client.status, 0), default=chosen)


def default_client(c: Client | None = None) -> Client:
    """The client `c`, or else the default one here.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    found = current() if c is None else c
    if found is None:
        raise ValueError(NO_CLIENT)
    return _usable(found)


def _usable(client: _C) -> _C:
    if client.status == "forked":
        client.engine.check_open()
    return client


def get_client(address: str | None = None, timeout: Timeout = None, resolve_address: bool = True) -> Any:
    """The client to use here: in a task that of its worker, connected to the worker's scheduler; else the default one.

    In an `async def` task it is an `AsyncClient`, otherwise a `Client`. With an `address`, a client of that scheduler.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    return _usable(find_client(address, timeout))


def find_client(address: str | None, timeout: Timeout) -> Any:
    """The same, usable or not."""
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client

    def make(scheduler_address: str) -> Client:
        return Client.without_waiting(scheduler_address, timeout)

    if address is None:
        worker = None if hooks.tasks is None else hooks.tasks.current_worker()
        if worker is not None:
            client: Client = worker.get_client(make)
            return AsyncClient.over(client.engine) if trio.lowlevel.in_trio_run() else client
    found = current()
    if found is not None and (address is None or found.engine.address == address):
        return found
    if address is not None:
        return Client(address, timeout=timeout)
    raise ValueError(NO_CLIENT)


@contextmanager
def worker_client(timeout: Timeout = None, separate_thread: bool = True) -> Generator[Client]:
    """In a task: the client of its worker; in the block the task has no slot, so that the tasks it waits for can run.

    With `separate_thread=False` it keeps its slot, except while it waits for results.

    Raises:
      ValueError: no task is running here.
      RuntimeError: it is an `async def` task, which has no need of this: it awaits the results of `get_client()`.
    """
    tasks = hooks.tasks
    if tasks is None or tasks.current_worker() is None:
        raise ValueError("no task is running here: worker_client() works inside a task")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("worker_client() blocks; in an `async def` task await the results of `get_client()`")
    client: Client = get_client(timeout=timeout)
    if separate_thread:
        with tasks.outside_of_slots(client):
            yield client
    else:
        yield client


def futures_of(obj: Any, client: Client | None = None) -> list[BaseFuture]:
    """The futures in this: itself, or nested in lists, tuples, sets and dicts; each once. `client` means nothing.

    Raises:
      FutureCancelledError: one of them was cancelled.
    """
    futures = list(dict.fromkeys(futures_in(concrete(obj))))
    for future in futures:
        if future.status == "cancelled":
            raise FutureCancelledError(future.key)
    return futures


def fire_and_forget(obj: Any) -> None:
    """Have these tasks (futures, nested in whatever) finish even if nobody keeps their futures."""
    for future in futures_given(obj, "fire_and_forget()"):
        future.engine.detach([future.state])


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # the old one may be held, in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
