"""The clients of this program that are open as default ones: a registry, which makes no clients itself."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

from trio_dask.client.collections.cluster_scheduler import dask_configuration
from trio_dask.client.collections.library_hooks import serve_libraries

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient
    from trio_dask.client.client import Client


NO_CLIENT: Final = "no client found: make one first, with `Client(...)`"

_C = TypeVar("_C", bound="Client | AsyncClient")

_RANKS: Final = {"lost": 1, "forked": 2}

_lock = threading.Lock()
_open: list[weakref.ref[Client]] = []
"""Clients that were opened as default ones, the newest last."""
_kept: dict[Client, None] = {}
"""Those of them that stay open without other references to them."""
_chosen: ContextVar[Client | None] = ContextVar("trio_dask current client", default=None)


def remember(client: Client) -> None:
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


def forget(client: Client) -> None:
    """This client is closed."""
    with _lock:
        before = len(_open)
        _open[:] = [reference for reference in _open if reference() not in (client, None)]
        _kept.pop(client, None)
        gone = before - len(_open)
    for _ in range(gone):
        dask_configuration.end()


@contextmanager
def as_current(client: Client) -> Generator[None]:
    """Make this the default client of the code in the block."""
    before = _chosen.set(client)
    serve_libraries()
    try:
        with dask_configuration.during():
            yield
    finally:
        _chosen.reset(before)


def current() -> Client | None:
    """The default client here, if there is one: chosen by `as_current`, else the newest that is open.

    A client whose scheduler is lost counts only if no other is open; in a forked child, the parent's come last.
    """
    chosen = _chosen.get()
    if chosen is not None and chosen.status != "forked":
        return chosen
    with _lock:
        clients = [reference() for reference in reversed(_open)]
    found = [client for client in clients if client is not None and client.status != "closed"]
    return min(found, key=lambda client: _RANKS.get(client.status, 0), default=chosen)


def default_client(c: Client | None = None) -> Client:
    """The client `c`, or else the default one here.

    Raises:
      ValueError: there is none.
      ForkedClientError: there is one, of the process that this one was forked from.
    """
    found = current() if c is None else c
    if found is None:
        raise ValueError(NO_CLIENT)
    return usable(found)


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
