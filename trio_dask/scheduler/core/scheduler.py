"""The scheduler's decisions behind one door: `SchedulerCore.handle`."""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.identity import Incarnation, PeerId
from trio_dask.protocol.messages import Message, Reply
from trio_dask.scheduler.core import clients, membership
from trio_dask.scheduler.core.balance import balance
from trio_dask.scheduler.core.handlers import FROM_CLIENT, FROM_WORKER
from trio_dask.scheduler.core.invariants import check
from trio_dask.scheduler.core.placement import place
from trio_dask.scheduler.core.tables import CoreSettings, State, WorkerInfo

__all__ = ["SchedulerCore"]

_NEVER: Final = float("inf")


MANY_FREES: Final = 100
"""So many keys to drop are worth a message of their own at once."""


class SchedulerCore:
    """All that a scheduler decides, as a synchronous object without clock, chance or input and output.

    Tell it what happened (`add_worker`, `add_client`, `remove_peer`, `handle`, `tick`), then, once for everything that
    arrived together, call `place`; then send what `drain` returns and do what `requests` asks. `now` is any clock that
    does not go backwards, in seconds.
    """

    def __init__(self, settings: CoreSettings | None = None) -> None:
        self.state = State(settings if settings is not None else CoreSettings())
        self.requests = self.state.requests

    def refusal(self, info: WorkerInfo) -> str | None:
        """The sentence with which `add_worker` would refuse this worker now."""
        return membership.refusal(self.state, info)

    def add_worker(self, peer: PeerId, info: WorkerInfo, now: float) -> str | None:
        """Register a worker. Returns None, or the sentence with which it is refused (its name is taken)."""
        self.state.now = now
        return membership.add_worker(self.state, peer, info)

    def add_client(self, peer: PeerId, incarnation: Incarnation, name: str, now: float) -> None:
        """Register a client."""
        self.state.now = now
        clients.add_client(self.state, peer, incarnation, name)

    def remove_peer(self, peer: PeerId, reason: str, now: float, *, expected: bool) -> None:
        """A session has ended: announced (`expected`), or lost for the `reason` given. Unknown peers are ignored."""
        state = self.state
        state.now = now
        if (worker := state.workers.get(peer)) is not None:
            membership.remove_worker(state, worker, reason, expected=expected)
        elif (client := state.clients.get(peer)) is not None:
            clients.remove_client(state, client)
        self._check()

    def handle(self, peer: PeerId, message: Message, now: float) -> None:
        """Take in one message.

        Raises `ProtocolError` when this peer may not send it, or sends what cannot be; the state is as before then.
        """
        state = self.state
        state.now = now
        worker = state.workers.get(peer)
        if worker is not None:
            from_worker = FROM_WORKER.get(type(message))
            if from_worker is None:
                raise ProtocolError(f"a worker may not send {type(message).__name__}")
            from_worker(state, worker, message)
        else:
            client = state.clients.get(peer)
            if client is None:
                return
            from_client = FROM_CLIENT.get(type(message))
            if from_client is None:
                raise ProtocolError(f"a client may not send {type(message).__name__}")
            from_client(state, client, message)
        self._check()

    def place(self, now: float) -> None:
        """Decide on what has become ready. Call it once for all events that arrived together."""
        state = self.state
        state.now = now
        place(state)
        if state.restarts:
            self._settle_restarts()
        if state.idle and state.surplus:
            balance(state)
        elif state.balance_at != _NEVER:
            state.balance_at = _NEVER
        self._check()

    def drain(self) -> dict[PeerId, list[Message]]:
        """All messages that are to be sent now, by peer, in order."""
        state = self.state
        if state.frees:
            due = state.free_at <= state.now
            for peer in list(state.frees):
                if due or peer in state.outboxes or len(state.frees[peer]) > MANY_FREES:
                    state.flush_frees(peer)
        if not state.frees:
            state.free_at = _NEVER
        outboxes, state.outboxes = state.outboxes, {}
        return outboxes

    def next_deadline(self) -> float:
        """When `tick` wants to be called next; infinity when there is nothing to wait for."""
        return min([self.state.balance_at, self.state.free_at, *(deadline for *_, deadline in self.state.restarts)])

    def tick(self, now: float) -> None:
        """Do what is due."""
        state = self.state
        state.now = now
        self._settle_restarts()
        place(state)
        if state.balance_at <= now:
            balance(state)
        self._check()

    def _settle_restarts(self) -> None:
        state = self.state
        still: list[tuple[PeerId, int, dict[str, None], float]] = []
        for client, request, names, deadline in state.restarts:
            if names and state.now < deadline:
                still.append((client, request, names, deadline))
            else:
                state.send(client, Reply(request, {"missing": tuple(names)}))
        state.restarts = still

    def _check(self) -> None:
        if self.state.validating:
            check(self.state)
