"""Simulated processes around the real cores: a scheduler, workers with slots and a store, clients with a will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended, KeyState
from trio_dask.comm.inproc import inproc_address
from trio_dask.ids import Incarnation, Key, PeerId, RunId
from trio_dask.protocol import codec
from trio_dask.protocol.messages import Goodbye, Leave, Message, Run, WorkerExited
from trio_dask.scheduler.core import CoreSettings, SchedulerCore, WorkerInfo
from trio_dask.scheduler.core.retirement import TRIES
from trio_dask.scheduler.core.state import InMemory
from trio_dask.testing.random_graphs import Job, compute
from trio_dask.testing.sim_network import Link, Pipe, Timeline
from trio_dask.worker.core.effects import CancelFetch, EndSession, FetchId, FreeKeys, StartFetch
from trio_dask.worker.core.invariants import check as check_worker
from trio_dask.worker.core.worker import WorkerCore

PATIENCE_S: Final = 1.0
"""How long a client that lost its link may be away."""

SILENCE: Final = 0.02
"""How often a worker that is there does not answer in time."""

__all__ = ["Network", "SimClient", "SimScheduler", "SimWorker"]


class Network:
    """Who can be reached where, for the data plane."""

    def __init__(self) -> None:
        self.workers: dict[str, SimWorker] = {}


class SimScheduler:
    """The scheduler core behind links."""

    def __init__(self, timeline: Timeline, settings: CoreSettings) -> None:
        self.timeline = timeline
        self.core = SchedulerCore(settings)
        self.incarnation = Incarnation("scheduler.0")
        self.links: dict[PeerId, Link] = {}
        self.leaves: list[str] = []
        """What went wrong when workers were sent away."""
        self._settings = settings
        self._nanny = PeerId(-1)
        """One nanny for all workers, so that its link is as good as any."""
        self._last = 0
        self._tick_at = float("inf")
        self.core.add_nanny(self._nanny, "nanny", "", timeline.now)

    def restart(self) -> None:
        """As by kill -9, and then by hand: another scheduler is there, which knows nobody."""
        for link in self.links.values():
            link.cut()
        self.links.clear()
        self.incarnation = Incarnation(f"scheduler.{self._last}")
        self.core = SchedulerCore(self._settings)
        self.core.add_nanny(self._nanny, "nanny", "", self.timeline.now)

    def connect(
        self,
        incoming: codec.Allowed,
        outgoing: codec.Allowed,
        deliver: Callable[[Sequence[Message]], None],
        peer: PeerId | None = None,
    ) -> tuple[PeerId, Link]:
        """A new session, or another link for the one of a client that is back."""
        if peer is None:
            self._last += 1
            peer = PeerId(self._last)
        to_scheduler = Pipe(self.timeline, incoming, partial(self._receive, peer))
        link = Link(to_scheduler, Pipe(self.timeline, outgoing, deliver))
        self.links[peer] = link
        return peer, link

    def _receive(self, peer: PeerId, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Goodbye):
                self.core.remove_peer(peer, message.reason, self.timeline.now, expected=True)
                self.links.pop(peer).cut()
                break
            self.core.handle(peer, message, self.timeline.now)
        self.settle()

    def lose(self, peer: PeerId, reason: str) -> None:
        """The session has ended without a goodbye."""
        if self.links.pop(peer, None) is not None:
            self.core.remove_peer(peer, reason, self.timeline.now, expected=False)
            self.settle()

    def bury(self, process: str, cause: str, ran: tuple[RunId, ...]) -> None:
        """A nanny tells that a worker process has ended."""
        self.core.handle(self._nanny, WorkerExited(process, False, cause, True, ran, {}), self.timeline.now)
        self.settle()

    def settle(self) -> None:
        """Place, send, and see when to look again."""
        self.core.place(self.timeline.now)
        for peer, messages in self.core.drain().items():
            if any(isinstance(message, Leave) for message in messages):
                self._check_leave(peer)
            if peer in self.links:
                self.links[peer].to_peer.send(messages)
        deadline = self.core.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.timeline.at(max(deadline, self.timeline.now), self._tick)

    def _check_leave(self, peer: PeerId) -> None:
        """Whoever is sent away must not take the only copy of anything along, if somebody can keep another."""
        state = self.core.state
        worker = state.workers.get(peer)
        if worker is None or not any(not other.leaving and not other.returning for other in state.workers.values()):
            return
        for task in worker.holds:
            alone = isinstance(task.phase, InMemory) and all(holder.leaving for holder in task.phase.holders)
            if alone and worker.copying.get(task, (None, 0))[1] < TRIES:
                self.leaves.append(f"{worker.info.name} was sent away with the only copy of {task.key}")

    def _tick(self) -> None:
        self._tick_at = float("inf")
        if self.core.next_deadline() <= self.timeline.now:
            self.core.tick(self.timeline.now)
        self.settle()


class SimWorker:
    """The worker core with slots that take virtual time, a store, and a data plane.

    It may have a nanny, which tells the scheduler how it ended and what it was running then.
    """

    def __init__(
        self,
        timeline: Timeline,
        scheduler: SimScheduler,
        network: Network,
        name: str,
        slots: int,
        jobs: dict[Key, Job],
        *,
        reconnect: bool = False,
        nanny: bool = False,
    ) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.address = str(inproc_address(name))
        self.slots = slots
        self.free_slots = slots
        self.leak_slots = False
        self.core = WorkerCore(slots)
        self.store: dict[Key, int] = {}
        self.jobs = jobs
        self.alive = True
        self.reconnect = reconnect
        self.process = f"process-{name}" if nanny else ""
        self.executed: list[Key] = []
        self.running: dict[RunId, Key] = {}
        """What the slots execute, wanted or not."""
        self.fatal: dict[Key, None] = {}
        """What can be blamed for its death: what it ran. For a loss that outlasts the grace: what it was given."""
        self._unseen: dict[Key, None] = {}
        """What it had been given when its link was lost, whether it ran or not: nobody can tell."""
        self._fetches: dict[FetchId, None] = {}
        self._heard_at = 0.0
        self._sessions = 0
        self._session: tuple[Incarnation, Incarnation] | None = None
        network.workers[self.address] = self
        self.connect()

    # ------------------------------------------------------------------------------------------ sessions

    def connect(self) -> None:
        """Dial the scheduler, to go on with the last session if it was lost and that can be; else try again later."""
        if not self.alive:
            return
        now, core = self.timeline.now, self.scheduler.core
        self._sessions += 1
        incarnation = Incarnation(f"{self.name}.{self._sessions}")
        info = WorkerInfo(
            self.name, self.address, self.name, self.slots, 0, {}, incarnation, 0, self.reconnect, self.process
        )
        previous = self._session[0] if self._session and self._session[1] == self.scheduler.incarnation else None
        returned = previous is not None and core.may_return(previous, info)
        if not returned:
            if self._session is not None:
                self.fatal.update(self._unseen)
                self.core.reset(now)
                self._session = None
                self.pump()
            if core.refusal(info) is not None:
                self.timeline.after(0.02, self.connect)
                return
        self.peer, self.link = self.scheduler.connect(codec.FROM_WORKER, codec.TO_WORKER, self.receive)
        if returned:
            assert previous is not None
            assert core.come_back(self.peer, previous, info, now)
            if self.timeline.rng.random() < 0.1:  # the welcome does not arrive
                peer = self.peer
                self.link.cut()
                self.timeline.after(0.01, lambda: self.scheduler.lose(peer, "cut"))
                self.timeline.after(0.02, self.connect)
                return
        else:
            assert core.add_worker(self.peer, info, now) is None
        self._session = incarnation, self.scheduler.incarnation
        self._unseen.clear()
        self.core.session_began(self.address, returned)
        self.scheduler.settle()
        self.pump()

    def lose_link(self) -> None:
        """Its link is cut. Both ends notice sooner or later, the scheduler perhaps only when it calls again."""
        if not self.alive or not self.link.is_open:
            return
        rng, peer = self.timeline.rng, self.peer
        self._unseen.clear()
        self.link.cut()

        def be_missed() -> None:
            worker = self.scheduler.core.state.workers.get(peer)
            if worker is not None:
                self._unseen = {task.key: None for task in worker.processing.values()}
            self.scheduler.lose(peer, "cut")

        self.timeline.after(rng.choice((0.0, 0.01, 0.2)), be_missed)

        def notice() -> None:
            if self.alive:
                self.core.session_lost(self.timeline.now)
                self.pump()
                self.timeline.after(rng.choice((0.001, 0.02, 0.3)), self.connect)

        self.timeline.after(rng.choice((0.0, 0.01)), notice)

    def drain(self) -> None:
        """It was told to stop."""
        if self.alive:
            self.core.drain_began("asked to stop")
            self.pump()

    def pause(self, seconds: float) -> None:
        """It is short of memory for a while."""

        def resume() -> None:
            if self.alive:
                self.core.resume()
                self.pump()

        if self.alive:
            self.core.pause()
            self.pump()
            self.timeline.after(seconds, resume)

    def receive(self, messages: Sequence[Message]) -> None:
        """A batch from the scheduler has arrived."""
        if self.alive:
            for message in messages:
                self.core.handle(message, self.timeline.now)  # type: ignore[arg-type]
            self.pump()

    def die(self) -> None:
        """As by kill -9: nothing it does is seen any more; the scheduler notices a little later."""
        self.alive = False
        self.network.workers.pop(self.address, None)
        rng, peer, ran = self.timeline.rng, self.peer, tuple(self.running)
        self.fatal.update(dict.fromkeys(self.running.values()) | self._unseen)
        if self.process:
            # A nanny is faster than any grace, but not always faster than the end of the link.
            delay = rng.random() * 0.04 if self.link.is_open else 0.0
            self.timeline.after(delay, lambda: self.scheduler.bury(self.process, "killed", ran))
        self.link.cut()
        self.timeline.after(rng.random() * 0.05, lambda: self.scheduler.lose(peer, "killed"))

    def pump(self) -> None:
        """Do all that the core asks for, and let slots take what is ready."""
        while True:
            effects = self.core.take_effects()
            self.link.to_scheduler.send(effects.messages)
            for request in effects.requests:
                match request:
                    case StartFetch(fetch, address, keys):
                        self._fetches[fetch] = None
                        delay = self.timeline.rng.random() * 0.004
                        self.timeline.after(delay, lambda f=fetch, a=address, k=keys: self._fetch(f, a, k))  # type: ignore[misc]
                    case CancelFetch(fetch):
                        self._fetches.pop(fetch, None)
                    case FreeKeys(keys):
                        for key in keys:
                            self.store.pop(key, None)
                    case EndSession():
                        self.leave()
                        return
                    case _:
                        pass
            if not self._start_runs() and not effects.messages and not effects.requests:
                break
        check_worker(self.core)

    def leave(self) -> None:
        """Say goodbye and go; without a link nobody hears it."""
        if not self.link.is_open:
            self.die()
            return
        self.alive = False
        self.network.workers.pop(self.address, None)
        self.link.to_scheduler.send([Goodbye("leaving")])

    def _start_runs(self) -> bool:
        started = False
        while self.free_slots and (run := self.core.ready.take()) is not None:
            started = True
            self.free_slots -= 1
            self._begin(run, {})
        return started

    def _begin(self, run: Run, carried: dict[Key, int]) -> None:
        """A slot has taken this run, and if it follows another, carries that one's value along."""
        if run.extra.get("announce"):
            self._report(lambda: self.core.started([run], self.timeline.now))
        inputs: list[int] = []
        for key, _ in run.dependencies:
            if key in carried:
                inputs.append(carried[key])
            elif key in self.store:
                inputs.append(self.store[key])
            else:
                self.free_slots += 1
                self._report(lambda lacking=key: self.core.input_gone(run, lacking))  # type: ignore[misc]
                return
        self.executed.append(run.key)
        self.running[run.run] = run.key
        self.timeline.after(self.jobs[run.key].seconds, lambda: self._end(run, tuple(inputs)))

    def _end(self, run: Run, inputs: tuple[int, ...]) -> None:
        if not self.alive:
            return
        self.running.pop(run.run, None)
        job = self.jobs[run.key]
        job.executions += 1
        if job.executions <= job.failing:
            self._free_slot(run)
            self._report(lambda: self.core.failed(run, b"error", f"ValueError: {run.key}", job.seconds))
            return
        value = compute(run.call, inputs)
        inline = str(value).encode() if job.small else None

        def finished() -> None:
            if self.core.is_current(run):
                self.store[run.key] = value
            self.core.finished(run, 64, "int", inline, job.seconds)

        self._report(finished)
        follower = self.core.ready.take_chained(run)
        if follower is not None:
            self._begin(follower, {run.key: value})
        else:
            self._free_slot(run)

    def _free_slot(self, run: Run) -> None:
        if self.core.is_current(run) or not self.leak_slots:
            self.free_slots += 1

    def _report(self, outcome: Callable[[], None]) -> None:
        """The core hears of it a little later, as slots are threads; in order."""

        def hear() -> None:
            if self.alive:
                outcome()
                self.pump()

        self._heard_at = max(self._heard_at, self.timeline.now + self.timeline.rng.choice((0.0, 0.0002, 0.002)))
        self.timeline.at(self._heard_at, hear)

    def _fetch(self, fetch: FetchId, address: str, keys: tuple[Key, ...]) -> None:
        if not self.alive or fetch not in self._fetches:
            return
        del self._fetches[fetch]
        peer = self.network.workers.get(address)
        if peer is None:
            self.core.fetch_ended(fetch, unreachable=True)
        elif self.timeline.rng.random() < SILENCE:
            self.core.fetch_ended(fetch, unreachable=True, is_silent=True)
        else:
            for key in keys:
                if key not in peer.store:
                    self.core.absent(fetch, key)
                elif self.core.expects(fetch, key):
                    self.store[key] = peer.store[key]
                    if not self.core.fetched(fetch, key, 64):
                        del self.store[key]
            self.core.fetch_ended(fetch, unreachable=False)
        self.pump()


class SimClient:
    """The client core and what its user has seen."""

    def __init__(self, timeline: Timeline, scheduler: SimScheduler, network: Network, name: str) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.core = ClientCore()
        self.core.connected(scheduler.incarnation, None)
        self.peer, self.link = scheduler.connect(codec.FROM_CLIENT, codec.TO_CLIENT, self.receive)
        scheduler.core.add_client(self.peer, Incarnation(name), name, timeline.now, grace_s=PATIENCE_S)
        self.futures: dict[Key, KeyState] = {}
        self.values: list[tuple[KeyState, int]] = []
        """What its user has read, in order."""
        self.open = True

    def receive(self, messages: Sequence[Message]) -> None:
        """A batch from the scheduler has arrived."""
        if self.open:
            for message in messages:
                self.core.handle(message)
            self.pump()

    def pump(self) -> None:
        """Send what is to be sent, fetch what is to be fetched."""
        if self.link.is_open:
            self.link.to_scheduler.send(list(self.core.drain()))
        for request in self.core.next_fetches():
            delay = self.timeline.rng.random() * 0.004
            self.timeline.after(delay, lambda r=request: self._fetch(r))  # type: ignore[misc]

    def read(self, state: KeyState) -> None:
        """Ask for the value of a future."""

        def reader(state: KeyState, frames: Sequence[Any] | None, reason: str) -> None:
            if frames is not None:
                self.values.append((state, int(bytes(frames[0]))))

        self.core.read(state, reader)
        self.pump()

    def lose_link(self) -> None:
        """Its link is cut; it calls again in time, and goes on where it was."""
        if not self.open or not self.link.is_open:
            return
        rng, link = self.timeline.rng, self.link
        link.cut()

        def be_missed() -> None:
            if self.scheduler.links.get(self.peer) is link:
                self.scheduler.lose(self.peer, "cut")

        self.timeline.after(rng.choice((0.0, 0.01, 0.2)), be_missed)
        self.timeline.after(rng.choice((0.001, 0.05, 0.3)), self._come_back)

    def _come_back(self) -> None:
        if not self.open:
            return
        core, now = self.scheduler.core, self.timeline.now
        received = self.core.received
        expected = core.expect_client(Incarnation(self.name), received, now)
        assert expected is not None, f"{self.name} came back in time, and cannot go on"
        self.peer, handled = expected
        _, self.link = self.scheduler.connect(codec.FROM_CLIENT, codec.TO_CLIENT, self.receive, self.peer)
        assert core.client_back(self.peer, received, now)
        self.core.connected(self.scheduler.incarnation, handled)
        self.scheduler.settle()
        self.pump()

    def close(self) -> None:
        """Leave in order."""
        self.open = False
        self.core.end_session(Ended(False, "closed"))
        self.link.to_scheduler.send([Goodbye("closed")])

    def vanish(self) -> None:
        """As by kill -9."""
        self.open = False
        self.link.cut()
        self.timeline.after(self.timeline.rng.random() * 0.05, lambda: self.scheduler.lose(self.peer, "killed"))

    def _fetch(self, request: Any) -> None:
        if not self.open:
            return
        peer = self.network.workers.get(request.address)
        is_silent = peer is not None and self.timeline.rng.random() < SILENCE
        for state in request.states:
            if is_silent:
                self.core.fetch_failed(request.address, state, "no answer", is_silent=True)
            elif peer is not None and state.key in peer.store:
                self.core.fetched(request.address, state, (str(peer.store[state.key]).encode(),))
            else:
                self.core.fetch_failed(request.address, state, "not there")
        self.core.fetch_ended(request.address)
        self.pump()
