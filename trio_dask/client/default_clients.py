"""The clients of this program that are open as default ones: a registry, which makes no clients itself."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import trio

from trio_dask.client.collections.cluster_scheduler import dask_configuration
from trio_dask.client.collections.hooks_for_libraries import serve_libraries

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client


AnyClient: TypeAlias = "Client | AsyncClient"

NO_CLIENT: Final = "no client found: make one first, with `Client(...)` or `async with AsyncClient(...)`"
NONE_CHOSEN: Final = "no client found: this code is in no `with client.as_current()` block"

_C = TypeVar("_C", bound=AnyClient)

_RANKS: Final = {"lost": 1, "forked": 2}

_lock = threading.Lock()
_open: list[weakref.ref[AnyClient]] = []
"""Clients that were opened as default ones, the newest last."""
_kept: dict[AnyClient, None] = {}
"""Those of them that stay open without other references to them."""
_chosen: ContextVar[AnyClient | None] = ContextVar("trio_dask current client", default=None)


def remember(client: AnyClient) -> None:
    """Make this the default client until it is closed, or another is opened."""
    with _lock:
        _open.append(weakref.ref(client))
        _kept[client] = None
    serve_libraries()
    dask_configuration.begin()


def hold_weakly(client: Client) -> None:
    """Another client replaced this one: it stays a default one as long as the program refers to it."""
    with _lock:
        _kept.pop(client, None)


def forget(client: AnyClient) -> None:
    """This client is closed."""
    with _lock:
        before = len(_open)
        _open[:] = [reference for reference in _open if reference() not in (client, None)]
        _kept.pop(client, None)
        gone = before - len(_open)
    for _ in range(gone):
        dask_configuration.end()


@contextmanager
def as_current(client: AnyClient) -> Generator[None]:
    """Make this the default client of the code in the block."""
    before = _chosen.set(client)
    serve_libraries()
    try:
        with dask_configuration.during():
            yield
    finally:
        with suppress(ValueError):  # the block began in another context, as that of a fixture may, and ends with it
            _chosen.reset(before)


@contextmanager
def open_here(client: AnyClient) -> Generator[None]:
    """Make this the default client for the length of the block, and the current one of the code in it."""
    remember(client)
    try:
        with as_current(client):
            yield
    finally:
        forget(client)


def current() -> AnyClient | None:
    """The default client here, if there is one: chosen by `as_current`, else the newest that is open.

    A client whose scheduler is lost counts only if no other is open; in a forked child, the parent's come last. Of
    equal ones a Trio task gets an `AsyncClient`, and a plain thread a `Client`, which also comes before an
    `AsyncClient` that was chosen.
    """
    chosen, in_trio = _chosen.get(), trio.lowlevel.in_trio_run()
    fits = chosen is not None and (in_trio or not chosen.asynchronous)
    if chosen is not None and fits and chosen.status not in ("closed", "forked"):
        return chosen
    with _lock:
        clients = [chosen, *(reference() for reference in reversed(_open))]
    found = [client for client in clients if client is not None and client.status != "closed"]

    def rank(client: AnyClient) -> tuple[int, bool]:
        return _RANKS.get(client.status, 0), client.asynchronous is not in_trio

    return min(found, key=rank, default=chosen)


def current_client(*, allow_global: bool = True) -> Any:
    """The default client here, or, unless `allow_global`, the one that `as_current` has chosen.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    if allow_global:
        return default_client()
    chosen = _chosen.get()
    if chosen is None:
        raise ValueError(NONE_CHOSEN)
    return usable(chosen)


def default_client(c: AnyClient | None = None) -> Any:
    """The client `c`, or else the default one here: an `AsyncClient` in a Trio program, otherwise a `Client`.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    found = current() if c is None else c
    if found is None:
        raise ValueError(NO_CLIENT)
    return usable(found)


def temp_default_client(c: AnyClient) -> AbstractContextManager[None]:
    """Make `c` the default client of the code in a `with` block, as its `as_current` does."""
    return as_current(c)


def usable(client: _C) -> _C:
    """This client. Raises `ForkedClientError` if it belongs to the process that this one was forked from."""
    if client.status == "forked":
        client.engine.check_open()
    return client


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may hold the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
