"""The scheduler's decisions behind one door: `SchedulerCore.handle`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.messages import Message, Reply
from trio_dask.scheduler.core import (
    admission,
    clients,
    copies,
    idle_timeout,
    memory_manager,
    plugins,
    reconnect,
    retirement,
    stuck_tasks,
)
from trio_dask.scheduler.core.admission import Outcome
from trio_dask.scheduler.core.demand import demand, retire_idle
from trio_dask.scheduler.core.events import EventRing
from trio_dask.scheduler.core.invariants import check
from trio_dask.scheduler.core.message_handlers import FROM_CLIENT, FROM_NANNY, FROM_WORKER, restart
from trio_dask.scheduler.core.placement import place
from trio_dask.scheduler.core.queries import overview
from trio_dask.scheduler.core.state import CoreSettings, ServiceQuestion, State
from trio_dask.scheduler.core.topic_handlers import events, publish
from trio_dask.scheduler.core.work_stealing import balance, balance_again
from trio_dask.scheduler.core.worker_membership import remove_worker
from trio_dask.scheduler.core.worker_states import Away

_NEVER: Final = float("inf")
_NAMELESS: Final = Incarnation("")

FLUSH_FREES_FROM: Final = 100
"""More keys to drop than this are worth a message of their own at once."""


class SchedulerCore:
    """All that a scheduler decides, as a synchronous object without a clock, randomness, input or output.

    A peer joins by its hello (`greet`), then its session (`begin_session`). Tell the core what happened (`handle`,
    `end_session`, `tick`), then, once for everything that arrived together, call `place`; then send what `drain`
    returns and do what `requests` asks. `now` is any clock that does not go backwards, in seconds.
    """

    def __init__(self, settings: CoreSettings | None = None, incarnation: Incarnation = _NAMELESS) -> None:
        self._state = State(settings if settings is not None else CoreSettings(), incarnation)
        self.requests = self._state.requests

    def begin(self, now: float) -> None:
        """The scheduler has started: from now on it may be idle for `idle_timeout_s`."""
        self._state.idle_mark = (0, 0, now)
        if self._state.settings.memory_manager_starts:
            memory_manager.start(self._state)
        if self._state.settings.idle_timeout_s < _NEVER:
            self._state.idle_at = now

    # ------------------------------------------------------------------------------------------------- sessions

    def greet(self, hello: Hello, now: float) -> Welcome | Refusal:
        """The answer to a hello. Raises `ProtocolError` if it is invalid."""
        self._state.now = now
        answer = admission.greet(self._state, hello)
        self._check()
        return answer

    def begin_session(self, hello: Hello, now: float) -> Outcome:
        """The peer of this very hello, which was welcomed, begins its session. Pass the object that `greet` got.

        Raises `ProtocolError` if the hello is invalid.
        """
        self._state.now = now
        outcome = admission.begin_session(self._state, hello)
        self._check()
        return outcome

    def end_session(self, peer: PeerId, reason: str, now: float, *, expected: bool) -> None:
        """A session has ended: announced (`expected`), or lost for the `reason` given. Unknown peers are ignored."""
        state = self._state
        state.now = now
        if (worker := state.workers.get(peer)) is not None:
            if expected:
                remove_worker(state, worker, reason, expected=True)
            else:
                reconnect.connection_lost(state, worker, reason)
        elif peer in state.nannies:
            reconnect.remove_nanny(state, peer)
        elif (client := state.clients.get(peer)) is not None:
            if expected:
                clients.remove_client(state, client)
            else:
                clients.connection_lost(state, client)
        self._check()

    def checks_heartbeats(self, now: float) -> bool:
        """Whether the next `tick` checks signs of life, and should have `heard` of them before."""
        return self._state.heartbeat_check_at <= now

    def heard(self, peer: PeerId, at: float) -> None:
        """A worker has given a sign of life that was no message, at this time."""
        worker = self._state.workers.get(peer)
        if worker is not None and at > worker.heard_at:
            worker.heard_at = at

    # ------------------------------------------------------------------------------------------------- questions

    def worker_title(self, peer: PeerId) -> str:
        """What people call the worker with this session; empty if there is none."""
        worker = self._state.workers.get(peer)
        return "" if worker is None else worker.info.title

    def worker_addresses(self) -> list[str]:
        """Where the workers that have a session serve their data."""
        return [worker.info.address for worker in self._state.workers.values()]

    def counts(self) -> dict[str, int]:
        """The numbers of workers, clients and tasks."""
        state = self._state
        return {"workers": len(state.workers), "clients": len(state.clients), "tasks": len(state.tasks)}

    def overview(self, clock: Callable[[], float]) -> Generator[None, None, dict[str, Any]]:
        """A picture of the whole cluster, in steps of about 2 ms."""
        return overview(self._state, clock)

    def demand(self, now: float) -> dict[str, Any]:
        """How much work there is, and what each worker does."""
        self._state.now = now
        return demand(self._state)

    def retire_idle(self, addresses: Collection[str], now: float) -> bool:
        """Have these workers leave in good order, if none of them has anything to do; returns whether they do."""
        self._state.now = now
        leave = retire_idle(self._state, addresses)
        self._check()
        return leave

    # ------------------------------------------------------------------------------------------------- events

    def listen(self, events: EventRing, *, to_tasks: bool) -> None:
        """Note what happens among these events from now on; without `to_tasks` not the steps of tasks."""
        self._state.listen(events, to_tasks=to_tasks)

    def log_event(self, topic: str, value: object, nbytes: int, now: float) -> None:
        """Keep a plain value of this size under a topic, and tell those who hear of it."""
        self._state.now = now
        publish(self._state, topic, (value,), nbytes)

    def logged(self, topic: str) -> list[tuple[float, Any]]:
        """The last events of a topic, each with its time in seconds since 1970."""
        return events(self._state, (topic,)).get(topic, [])

    def reply(self, question: ServiceQuestion, payload: object) -> None:
        """The answer to a question of a client, if it is still there."""
        if question.peer in self._state.clients:
            self._state.send(question.peer, Reply(question.request, payload))

    def restart(self, reason: str, now: float) -> None:
        """Cancel all tasks and have all workers begin afresh."""
        self._state.now = now
        restart(self._state, reason)

    def handle(self, peer: PeerId, message: Message, now: float) -> None:
        """Take in one message.

        Raises `ProtocolError`, with the state unchanged, when this peer may not send it or it is invalid.
        """
        state = self._state
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
            if client is None or client.away is not None:
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
        state = self._state
        state.now = now
        if state.removed:
            clients.remove_with_workers(state)
        if state.plugin_orders:
            plugins.forget_ended_sessions(state)
        place(state)
        if state.retirements_at <= now:
            retirement.check_retirements(state)
            place(state)  # workers that stay take work again
        if state.moved or state.surplus:
            copies.drop_surplus(state)
        if not state.queue.eligible and stuck_tasks.has_become_stuck(state, state.queue):
            stuck_tasks.check_soon(state)
        if state.pending.due_at <= now:
            state.pending.answer_due(state)
        if state.index.idle and state.index.overloaded:
            balance(state)
        elif state.balance_at != _NEVER:
            state.balance_at = _NEVER
        if state.validating:
            check(state)

    def drain(self) -> dict[PeerId, list[Message]]:
        """All messages that are to be sent now, by peer, in order."""
        state = self._state
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
        state = self._state
        soonest = min(
            state.balance_at,
            state.free_at,
            state.retirements_at,
            state.pending.due_at,
            state.heartbeat_check_at,
            state.idle_at,
            state.stuck_at,
            state.surplus_at,
            _NEVER if state.manager is None else state.manager.due_at,
        )
        for worker in state.away:
            if isinstance(worker.phase, Away):
                soonest = min(soonest, worker.phase.until, worker.phase.report_at)
        for client in state.away_clients.values():
            if client.away is not None:
                soonest = min(soonest, client.away.until)
        return soonest

    def tick(self, now: float) -> None:
        """Do what is due, and then what `place` does."""
        state = self._state
        state.now = now
        if state.away:
            reconnect.end_expired(state)
        if state.away_clients:
            clients.end_expired(state)
        if state.heartbeat_check_at <= now:
            reconnect.check_heartbeats(state)
        if state.idle_at <= now:
            idle_timeout.check_idle(state)
        if state.stuck_at <= now:
            stuck_tasks.check_stuck(state)
        if state.balance_at <= now:
            balance_again(state)
        if state.manager is not None and state.manager.due_at <= now:
            memory_manager.run(state)
        self.place(now)

    def _check(self) -> None:
        if self._state.validating:
            check(self._state)
