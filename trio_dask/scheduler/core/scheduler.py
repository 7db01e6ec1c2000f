"""The scheduler's decisions behind one door: `SchedulerCore.handle`."""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol.messages import Message, Reply
from trio_dask.scheduler.core import clients, idle_timeout, reconnect, retirement, stuck_tasks, worker_membership
from trio_dask.scheduler.core.invariants import check
from trio_dask.scheduler.core.message_handlers import FROM_CLIENT, FROM_NANNY, FROM_WORKER
from trio_dask.scheduler.core.placement import place
from trio_dask.scheduler.core.state import CoreSettings, State, WorkerInfo
from trio_dask.scheduler.core.work_stealing import balance

__all__ = ["SchedulerCore"]

_NEVER: Final = float("inf")


FLUSH_FREES_FROM: Final = 100
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

    def begin(self, now: float) -> None:
        """The scheduler is up: from now on it may be idle for `idle_timeout_s`."""
        self.state.idle_mark = (0, 0, now)
        if self.state.settings.idle_timeout_s < _NEVER:
            self.state.idle_at = now

    def refusal(self, info: WorkerInfo) -> str | None:
        """The sentence with which `add_worker` would refuse this worker now."""
        return worker_membership.refusal(self.state, info)

    def add_worker(self, peer: PeerId, info: WorkerInfo, now: float) -> str | None:
        """Register a worker. Returns None, or the sentence with which it is refused (its name is taken)."""
        self.state.now = now
        return worker_membership.add_worker(self.state, peer, info)

    def may_resume(self, previous: Incarnation, info: WorkerInfo) -> bool:
        """Whether `resume_worker` would have this worker go on where the session `previous` ended."""
        return reconnect.may_resume(self.state, previous, info)

    def resume_worker(self, peer: PeerId, previous: Incarnation, info: WorkerInfo, now: float) -> bool:
        """A worker is back, with what it had; False if it cannot go on, and has to be added as a new one."""
        self.state.now = now
        return reconnect.resume_worker(self.state, peer, previous, info)

    def add_nanny(self, peer: PeerId, name: str, process: str, now: float) -> None:
        """Register a nanny, for the worker process that it calls so."""
        self.state.now = now
        reconnect.add_nanny(self.state, peer, name, process)

    def checks_heartbeats(self, now: float) -> bool:
        """Whether the next `tick` looks for signs of life, and should have `heard` of them before."""
        return self.state.heartbeat_check_at <= now

    def heard(self, peer: PeerId, at: float) -> None:
        """A worker has given a sign of life that was no message, at this time."""
        worker = self.state.workers.get(peer)
        if worker is not None and at > worker.heard_at:
            worker.heard_at = at

    def add_client(
        self, peer: PeerId, incarnation: Incarnation, name: str, now: float, *, grace_s: float = 0.0
    ) -> None:
        """Register a client. After a loss it may be away for `grace_s`, and then come back."""
        self.state.now = now
        clients.add_client(self.state, peer, incarnation, name, grace_s)

    def client_peer(self, incarnation: Incarnation) -> PeerId | None:
        """The peer of the client with this incarnation, be it here or away. Nobody has an empty one."""
        client = self.state.incarnations.get(incarnation) if incarnation else None
        return None if client is None else client.peer

    def expect_client(self, previous: Incarnation, received: int, now: float) -> tuple[PeerId, int] | None:
        """The client with this incarnation is on its way back, having handled so many messages.

        Nothing more is taken from the link that it had. Returns its peer, which it keeps, and how many of its messages
        were handled; or None if it cannot go on, and has to be added as a new one.
        """
        self.state.now = now
        return clients.expect_client(self.state, previous, received)

    def client_back(self, peer: PeerId, received: int, now: float) -> bool:
        """A client that was expected is back, having handled so many messages. False if its time was up before."""
        self.state.now = now
        return clients.resume_worker(self.state, peer, received)

    def remove_peer(self, peer: PeerId, reason: str, now: float, *, expected: bool) -> None:
        """A session has ended: announced (`expected`), or lost for the `reason` given. Unknown peers are ignored."""
        state = self.state
        state.now = now
        if (worker := state.workers.get(peer)) is not None:
            if expected:
                worker_membership.remove_worker(state, worker, reason, expected=True)
            else:
                reconnect.connection_lost(state, worker, reason)
        elif peer in state.nannies:
            reconnect.remove_nanny(state, peer)
        elif (client := state.clients.get(peer)) is not None:
            if expected:
                clients.remove_client(state, client)
            else:
                clients.lose_client(state, client)
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
            worker.heard_at = now
            from_worker(state, worker, message)
        elif peer in state.nannies:
            from_nanny = FROM_NANNY.get(type(message))
            if from_nanny is None:
                raise ProtocolError(f"a nanny may not send {type(message).__name__}")
            from_nanny(state, peer, message)
        else:
            client = state.clients.get(peer)
            if client is None or client.away_until is not None:
                return
            from_client = FROM_CLIENT.get(type(message))
            if from_client is None:
                raise ProtocolError(f"a client may not send {type(message).__name__}")
            if client.grace_s:
                clients.note_received(state, client, message)
            from_client(state, client, message)
        if state.validating:
            check(state)

    def place(self, now: float) -> None:
        """Decide on what has become ready. Call it once for all events that arrived together."""
        state = self.state
        state.now = now
        departed = state.departed
        while departed:
            retirement.note_departure(state, departed.pop())
        if state.leaving_at <= now:
            retirement.look_at_leaving(state)
        place(state)
        if not state.queue.eligible and stuck_tasks.has_become_stuck(state, state.queue):
            stuck_tasks.check_soon(state)
        if state.restarts:
            self._settle_restarts()
        if state.idle and state.surplus:
            balance(state)
        elif state.balance_at != _NEVER:
            state.balance_at = _NEVER
        if state.validating:
            check(state)

    def drain(self) -> dict[PeerId, list[Message]]:
        """All messages that are to be sent now, by peer, in order."""
        state = self.state
        if state.frees:
            due = state.free_at <= state.now
            for peer in list(state.frees):
                if due or peer in state.outboxes or len(state.frees[peer]) > FLUSH_FREES_FROM:
                    state.flush_frees(peer)
        if not state.frees:
            state.free_at = _NEVER
        outboxes, state.outboxes = state.outboxes, {}
        if outboxes:
            clients.keep_sent(state, outboxes)
        return outboxes

    def next_deadline(self) -> float:
        """When `tick` wants to be called next; infinity when there is nothing to wait for."""
        state = self.state
        soonest = min(
            state.balance_at, state.free_at, state.leaving_at, state.heartbeat_check_at, state.idle_at, state.stuck_at
        )
        if not (state.away or state.away_clients or state.restarts):
            return soonest
        return min(
            soonest,
            *(min(worker.away_until or _NEVER, worker.away_said_at) for worker in state.away.values()),
            *(client.away_until or _NEVER for client in state.away_clients.values()),
            *(deadline for *_, deadline in state.restarts),
        )

    def tick(self, now: float) -> None:
        """Do what is due, and then what `place` does."""
        state = self.state
        state.now = now
        if state.away:
            reconnect.end_expired(state)
        if state.away_clients:
            clients.end_expired(state)
        if state.heartbeat_check_at <= now:
            reconnect.check_heartbeats(state)
        if state.idle_at <= now:
            idle_timeout.look(state)
        if state.stuck_at <= now:
            stuck_tasks.look(state)
        if state.balance_at <= now:
            balance(state)
        self.place(now)

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
