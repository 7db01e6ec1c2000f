"""The clusters that clients have started for themselves, when nobody can use them any more.

A notebook runs the cell `client = Client()` again, and again. The former client still is where `get_client()` would
look, and its own thread has it; so it would never go, nor would its cluster. Therefore a client that has been replaced
as the default one is held by its users alone. When none of them is left, nor any future of it, it ends its cluster.
"""

from __future__ import annotations

import _thread
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from trio_dask.client import default_clients

if TYPE_CHECKING:
    from trio_dask.client.client import Client
    from trio_dask.client.engine import Engine

__all__ = ["close_unreachable", "let_go", "warn_of_many"]

MANY = 3

log = logging.getLogger("trio_dask.client")

_unreachable: dict[Callable[[], object], None] = {}
"""What ends those that cannot be reached, and have not ended."""


def let_go(client: Client, engine: Engine, close: Callable[[], object]) -> weakref.finalize[..., Any]:
    """Another client is the default one now: have `close` called once nobody can use this one. It must not refer to it.

    To be detached, if the client is closed otherwise.
    """
    default_clients.hold_weakly(client)
    engine.hold_client_weakly()
    return weakref.finalize(client, _lost, engine, close)


def _lost(engine: Engine, close: Callable[[], object]) -> None:
    # The garbage collector calls this in the middle of anything: it must take no lock, as `Thread.start` does.
    _unreachable[close] = None
    if not engine.run_soon(_when_unused, engine, close):  # the loop has ended, so no future is of use any more
        with suppress(RuntimeError):  # there can be no more threads; it is closed at the end of the program
            _thread.start_new_thread(_close, (close,))


def _when_unused(engine: Engine, close: Callable[[], object]) -> None:
    """In the engine's own thread, which must not wait for its end."""
    engine.when_unused(partial(threading.Thread(target=_close, args=(close,), daemon=True).start))


def _close(close: Callable[[], object]) -> None:
    close()
    _unreachable.pop(close, None)


def close_unreachable() -> None:
    """The program ends: end those that some future keeps, or that were about to end."""
    for close in list(_unreachable):
        _close(close)


def warn_of_many(reachable: int) -> None:
    """Say so if a program has many clusters, which nobody may know of."""
    number = reachable + len(_unreachable)
    if number >= MANY:
        log.warning(
            "%d clusters of `Client()` are open in this program, each with its own processes; "
            "close those that you no longer need with `client.close()`, or use `with Client() as client`",
            number,
        )
