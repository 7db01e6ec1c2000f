"""All primitives by kind and name: what each request, end of a request, and end of a session does to them.

It knows no tasks, clients or messages: what is to happen there comes out as effects, for `handlers`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.datasets import Datasets
from trio_dask.scheduler.core.coordination.event import Event
from trio_dask.scheduler.core.coordination.multi_lock import MultiLocks
from trio_dask.scheduler.core.coordination.queue import Queue
from trio_dask.scheduler.core.coordination.requests import Effect, Effects, Primitive, Request
from trio_dask.scheduler.core.coordination.semaphore import Lock, Semaphore
from trio_dask.scheduler.core.coordination.variable import Variable

KINDS: Final[Mapping[str, Callable[[Effects], Primitive]]] = {
    "dataset": Datasets,
    "event": Event,
    "lock": Lock,
    "multilock": MultiLocks,
    "queue": Queue,
    "semaphore": Semaphore,
    "variable": Variable,
}


class Coordination:
    """The primitives that are in use; others come into being with the first request that names them."""

    def __init__(self) -> None:
        self._primitives: dict[tuple[str, str], Primitive] = {}
        self._effects: Effects = []

    def __len__(self) -> int:
        return len(self._primitives)

    def take_effects(self) -> list[Effect]:
        """What has to happen now, in this order."""
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def begin(self, request: Request, kind: str, name: str, operation: str, arguments: tuple[Any, ...]) -> None:
        """A client asks for something.

        Raises `ProtocolError`, with the state unchanged, if there is no such kind or operation.
        """
        primitive = self._primitives.get((kind, name))
        if primitive is None:
            make = KINDS.get(kind)
            if make is None:
                raise ProtocolError(f"no such kind of primitive: {kind!r:.40}")
            primitive = make(self._effects)
            primitive.handle(request, operation, arguments)
            if not primitive.is_unused:
                self._primitives[kind, name] = primitive
            return
        primitive.handle(request, operation, arguments)
        if primitive.is_unused:
            del self._primitives[kind, name]

    def end(self, request: Request, kind: str, name: str, *, is_taken: bool) -> None:
        """A client waits no longer, or releases what it got, or has taken over the futures in it."""
        primitive = self._primitives.get((kind, name))
        if primitive is not None:
            (primitive.taken if is_taken else primitive.end)(request)
            if primitive.is_unused:
                del self._primitives[kind, name]

    def session_ended(self, peer: PeerId) -> None:
        """Nothing waits for this client any more, and it holds nothing."""
        for place, primitive in list(self._primitives.items()):
            primitive.session_ended(peer)
            if primitive.is_unused:
                del self._primitives[place]

    def check(self, peers: Collection[PeerId]) -> None:
        """Raise `AssertionError` if what must hold between any two events does not; these are the clients."""
        assert not self._effects, "effects are left over"
        for (kind, name), primitive in self._primitives.items():
            assert not primitive.is_unused, f"the {kind} {name!r} should have been forgotten"
            primitive.check()
            for request in primitive.requests():
                assert request.peer in peers, f"the {kind} {name!r} remembers a client that is gone"
