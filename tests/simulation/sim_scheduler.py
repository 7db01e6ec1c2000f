"""A simulated scheduler process: the real core behind links."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.sim_network import Link, Pipe, Timeline
from trio_dask.ids import Incarnation, Key, PeerId, RunId
from trio_dask.protocol import codec
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.messages import Free, Goodbye, Leave, Message, WorkerExited
from trio_dask.scheduler.core import Admit, ClosePeer, CoreSettings, SchedulerCore
from trio_dask.scheduler.core.retirement import ATTEMPTS
from trio_dask.scheduler.core.state import State
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.worker_states import HERE


def state_of(core: SchedulerCore) -> State:
    """What a scheduler knows, for the oracle."""
    # The oracle compares what every core believes with what is true.
    return core._state  # pyright: ignore[reportPrivateUsage]


class SimScheduler:
    """The scheduler core behind links."""

    def __init__(self, timeline: Timeline, settings: CoreSettings) -> None:
        self.timeline = timeline
        self.incarnation = Incarnation("scheduler.0")
        self.core = SchedulerCore(settings, self.incarnation)
        self.links: dict[PeerId, Link] = {}
        self.on_free: Callable[[Sequence[Key]], None] = lambda keys: None
        """Hears of what a worker is told to drop, as it is told."""
        self.leaves: list[str] = []
        """Results that were lost when workers were dismissed."""
        self._settings = settings
        self._restarts = 0
        self._tick_at = float("inf")
        self._nanny = self._join_nanny()
        """One nanny for all workers, so that its link is as good as any."""

    def _join_nanny(self) -> PeerId:
        hello = Hello(role="nanny", name="nanny")
        self.core.greet(hello, self.timeline.now)
        outcome = self.core.begin_session(hello, self.timeline.now)
        assert isinstance(outcome, Admit)
        return outcome.peer

    def restart(self) -> None:
        """As by kill -9, and then by hand: another scheduler is there, which knows no peer."""
        for link in self.links.values():
            link.cut()
        self.links.clear()
        self._restarts += 1
        self.incarnation = Incarnation(f"scheduler.{self._restarts}")
        self.core = SchedulerCore(self._settings, self.incarnation)
        self._nanny = self._join_nanny()

    def connect(
        self,
        incoming: codec.Allowed,
        outgoing: codec.Allowed,
        deliver: Callable[[Sequence[Message]], None],
        peer: PeerId,
    ) -> Link:
        """The link of a session that has begun."""
        link = Link(
            Pipe(self.timeline, incoming, lambda messages: self._receive(peer, link, messages)),
            Pipe(self.timeline, outgoing, deliver),
        )
        self.links[peer] = link
        return link

    def no_link(self) -> Link:
        """What a peer has before its first session."""
        link = Link(*(Pipe(self.timeline, codec.FROM_WORKER, lambda messages: None) for _ in range(2)))
        link.cut()
        return link

    def greet(self, hello: Hello) -> Welcome | Refusal:
        """A peer calls."""
        answer = self.core.greet(hello, self.timeline.now)
        self.settle()
        return answer

    def _receive(self, peer: PeerId, link: Link, messages: Sequence[Message]) -> None:
        if self.links.get(peer) is not link:
            return  # the core has ended this session
        for message in messages:
            if isinstance(message, Goodbye):
                self.links.pop(peer).cut()
                self.core.end_session(peer, message.reason, self.timeline.now, expected=True)
                break
            self.core.handle(peer, message, self.timeline.now)
        self.settle()

    def lose(self, peer: PeerId, link: Link, reason: str) -> None:
        """The session has ended without a goodbye, unless the peer has another link by now."""
        if self.links.get(peer) is link:
            del self.links[peer]
            self.core.end_session(peer, reason, self.timeline.now, expected=False)
            self.settle()

    def remove_worker(self, process: str, cause: str, ran: tuple[RunId, ...]) -> None:
        """A nanny tells that a worker process has ended."""
        self.core.handle(self._nanny, WorkerExited(process, False, cause, True, ran, {}), self.timeline.now)
        self.settle()

    def settle(self) -> None:
        """Place, send, and see when to look again."""
        self.core.place(self.timeline.now)
        for peer, messages in self.core.drain().items():
            if any(isinstance(message, Leave) for message in messages):
                self._check_leave(peer)
            for message in messages:
                if isinstance(message, Free):
                    self.on_free(message.keys)
            if peer in self.links:
                self.links[peer].to_peer.send(messages)
        while self.core.requests:
            request = self.core.requests.pop(0)
            if isinstance(request, ClosePeer) and (link := self.links.pop(request.peer, None)) is not None:
                link.cut()
        deadline = self.core.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.timeline.at(max(deadline, self.timeline.now), self._tick)

    def _check_leave(self, peer: PeerId) -> None:
        """A worker that is dismissed must not take the only copy of a result along, if another can keep one."""
        state = state_of(self.core)
        worker = state.workers.get(peer)
        if worker is None or not any(other.phase is HERE for other in state.workers.values()):
            return
        retirement = worker.phase.retirement
        attempts = {} if retirement is None else retirement.attempts
        for task in worker.holds:
            if task.options.actor and retirement is not None and retirement.self_initiated:
                continue  # it leaves all the same
            alone = isinstance(task.phase, InMemory) and all(
                holder.phase.retirement is not None for holder in task.phase.holders
            )
            if alone and attempts.get(task, 0) < ATTEMPTS:
                self.leaves.append(f"{worker.info.name} was sent away with the only copy of {task.key}")

    def _tick(self) -> None:
        self._tick_at = float("inf")
        if self.core.next_deadline() <= self.timeline.now:
            self.core.tick(self.timeline.now)
        self.settle()
