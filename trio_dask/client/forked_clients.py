"""Clients in a forked child: the connection and the threads behind them are the parent's, so nothing may touch them.

There, every engine turns into one that refuses whatever it is asked, at once. Its locks are replaced, since a thread
that the child does not have may hold them for ever. To let go of a future or to close a client is allowed, as programs
do so at their end, and changes nothing for the parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn, TypeVarTuple, cast
from weakref import WeakSet

import trio

from trio_dask.client.core.key_state import Frames, KeyState
from trio_dask.client.driver import Status
from trio_dask.client.engine import Engine
from trio_dask.errors import ForkedClientError
from trio_dask.ids import Key

__all__ = ["bind_to_process"]

_Ts = TypeVarTuple("_Ts")

_engines: WeakSet[Engine] = WeakSet()


def bind_to_process(engine: Engine) -> None:
    """Have this engine refuse everything in children that are forked from now on."""
    _engines.add(engine)


class _Forked(Engine):
    """What an engine becomes in a forked child."""

    owner = 0
    """The process that it works in."""

    @property
    def status(self) -> Status:
        return "forked"

    def check_open(self) -> NoReturn:
        at = f"({self.address!r})" if self.address else "(...)"
        raise ForkedClientError(
            f"this client belongs to process {self.owner}, from which process {os.getpid()} was forked: its connection "
            f"and its threads exist only there. Make another client here, `Client{at}`, perhaps in a function for "
            "`os.register_at_fork(after_in_child=...)`"
        )

    def adopt(self, keys: Iterable[Key], *, submitted: bool = True) -> list[KeyState]:
        return [KeyState(key) for key in keys]  # what is unpickled here must not fail: the futures refuse, if asked

    def load(self, frames: Frames) -> NoReturn:
        self.check_open()

    def drop(self, state: KeyState) -> None:
        pass

    def push(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def run_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> bool:
        return False

    def stop(self) -> None:
        pass

    async def wait_stopped(self) -> None:
        await trio.lowlevel.checkpoint()


class _NoLock:
    """In the place of an engine's lock, around whatever it is asked."""

    def __init__(self, engine: _Forked) -> None:
        self._engine = engine

    def __enter__(self) -> NoReturn:
        self._engine.check_open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


def _leave_to_parent() -> None:
    for engine in list(_engines):
        if not isinstance(engine, _Forked):  # else it belongs to a process before the parent
            engine.__class__ = _Forked
            forked = cast("_Forked", engine)
            forked.owner = os.getppid()
            forked.lock = cast("Any", _NoLock(forked))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
