"""Clients in a forked child: the connection and the threads behind them are the parent's, so nothing may touch them.

There, every engine turns into one that refuses whatever it is asked, at once. Its lock is replaced, since a thread that
the child does not have may hold it for ever. A program may still release futures and close clients, as it does at its
end; that changes nothing for the parent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn
from weakref import WeakSet

import trio

from trio_dask.client.core.key_state import Frames, KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.shared_state import Forked
from trio_dask.ids import Key

_engines: WeakSet[Engine] = WeakSet()


def bind_to_process(engine: Engine) -> None:
    """Have this engine refuse everything in children that are forked from now on."""
    _engines.add(engine)


def engines_here() -> list[Engine]:
    """Those of this process that are still there; none while another thread makes one."""
    with suppress(RuntimeError):  # the set has changed meanwhile
        return list(_engines)
    return []


class _ForkedEngine(Engine):
    """What an engine becomes in a forked child."""

    def adopt(self, keys: Iterable[Key], *, submitted: bool = True) -> list[KeyState]:
        return [KeyState(key) for key in keys]  # what is unpickled here must not fail: the futures refuse, if asked

    def load(self, frames: Frames) -> NoReturn:
        raise self._refusal()

    def stop(self) -> None:
        pass

    async def wait_stopped(self) -> None:
        await trio.lowlevel.checkpoint()

    def _refusal(self) -> Exception:
        assert isinstance(self.phase, Forked)
        return self.phase.error()


class _RefusingLock:
    """Takes the place of an engine's lock, and refuses whatever would run under it."""

    def __init__(self, phase: Forked) -> None:
        self._phase = phase

    def __enter__(self) -> NoReturn:
        raise self._phase.error()

    def __exit__(self, *_: object) -> None:
        pass


def _leave_to_parent() -> None:
    for engine in list(_engines):
        if not isinstance(engine, _ForkedEngine):  # else it belongs to a process before the parent
            engine.__class__ = _ForkedEngine
            engine.calls.detach()
            engine.shared.phase = phase = Forked(os.getppid(), engine.address)
            engine.shared.lock = _RefusingLock(phase)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
