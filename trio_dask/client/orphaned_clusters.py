"""Close clusters that clients have started for themselves and that no code can reach any more.

A notebook runs the cell `client = Client()` again and again. `get_client()` and the client's own thread would keep the
old client, and its cluster, for ever. So a client that was replaced as the default one is kept by its users alone. With
the last reference to it, and the last of its futures, its cluster ends.
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


MANY = 3

log = logging.getLogger("trio_dask.client")

_unreachable: dict[Callable[[], object], None] = {}
"""Functions that close unreachable clusters which are not closed yet."""


def close_when_unreachable(client: Client, engine: Engine, close: Callable[[], object]) -> weakref.finalize[..., Any]:
    """Another client is the default one now: call `close`, which must not refer to this one, once it is unreachable.

    Detach what is returned if the client is closed before.
    """
    default_clients.hold_weakly(client)
    engine.hold_client_weakly()
    return weakref.finalize(client, _lost, engine, close)


def _lost(engine: Engine, close: Callable[[], object]) -> None:
    # The garbage collector calls this in the middle of anything: it must take no lock, and `Thread.start` takes one.
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
    """At the end of the program: close unreachable clusters that futures still keep, or that are being closed."""
    for close in list(_unreachable):
        _close(close)


def warn_of_many(reachable: int) -> None:
    """Log a warning if a program has many clusters: its user may not know."""
    number = reachable + len(_unreachable)
    if number >= MANY:
        log.warning(
            "%d clusters of `Client()` are open in this program, each with its own processes; "
            "close those that you no longer need with `client.close()`, or use `with Client() as client`",
            number,
        )
