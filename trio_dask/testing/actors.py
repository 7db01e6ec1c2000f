"""Simulated processes around the real cores: a scheduler, workers with slots and a store, clients with a will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.states import Ended, KeyState
from trio_dask.identity import Incarnation, Key, PeerId
from trio_dask.protocol import codec
from trio_dask.protocol.messages import Goodbye, Message, Run
from trio_dask.scheduler.core import CoreSettings, SchedulerCore, WorkerInfo
from trio_dask.testing.links import Link, Pipe, Timeline
from trio_dask.testing.workload import Job, compute
from trio_dask.worker.core.invariants import check as check_worker
from trio_dask.worker.core.requests import CancelFetch, EndSession, FetchId, FreeKeys, StartFetch
from trio_dask.worker.core.worker import WorkerCore

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
        self.links: dict[PeerId, Link] = {}
        self._last = 0
        self._tick_at = float("inf")

    def connect(
        self, incoming: codec.Allowed, outgoing: codec.Allowed, deliver: Callable[[Sequence[Message]], None]
    ) -> tuple[PeerId, Link]:
        """A new session."""
        self._last += 1
        peer = PeerId(self._last)
        to_scheduler = Pipe(self.timeline, incoming, lambda messages: self._receive(peer, messages))
        link = Link(to_scheduler, Pipe(self.timeline, outgoing, deliver))
        self.links[peer] = link
        return peer, link

    def _receive(self, peer: PeerId, messages: Sequence[Message]) -> None:
        for message in messages:
            self.core.handle(peer, message, self.timeline.now)
            if isinstance(message, Goodbye):
                self.links.pop(peer).cut()
        self.settle()

    def lose(self, peer: PeerId, reason: str) -> None:
        """The session has ended without a goodbye."""
        if self.links.pop(peer, None) is not None:
            self.core.remove_peer(peer, reason, self.timeline.now, expected=False)
            self.settle()

    def settle(self) -> None:
        """Place, send, and see when to look again."""
        self.core.place(self.timeline.now)
        for peer, messages in self.core.drain().items():
            if peer in self.links:
                self.links[peer].to_peer.send(messages)
        deadline = self.core.next_deadline()
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.timeline.at(max(deadline, self.timeline.now), self._tick)

    def _tick(self) -> None:
        self._tick_at = float("inf")
        if self.core.next_deadline() <= self.timeline.now:
            self.core.tick(self.timeline.now)
        self.settle()


class SimWorker:
    """The worker core with slots that take virtual time, a store, and a data plane."""

    def __init__(
        self, timeline: Timeline, scheduler: SimScheduler, network: Network, name: str, slots: int, jobs: dict[Key, Job]
    ) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.address = f"inproc://{name}"
        self.slots = slots
        self.free_slots = slots
        self.leak_slots = False
        self.core = WorkerCore(slots)
        self.store: dict[Key, int] = {}
        self.jobs = jobs
        self.alive = True
        self.executed: list[Key] = []
        self._fetches: dict[FetchId, None] = {}
        self._heard_at = 0.0
        network.workers[self.address] = self
        self.peer, self.link = scheduler.connect(codec.FROM_WORKER, codec.TO_WORKER, self.receive)
        info = WorkerInfo(name, self.address, name, slots, 0, {}, Incarnation(name), 0)
        assert scheduler.core.add_worker(self.peer, info, timeline.now) is None
        self.core.session_began(self.address)
        scheduler.settle()

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
        self.link.cut()
        self.timeline.after(self.timeline.rng.random() * 0.05, lambda: self.scheduler.lose(self.peer, "killed"))

    def pump(self) -> None:
        """Do all that the core asks for, and let slots take what is ready."""
        while True:
            effects = self.core.drain()
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
        """Say goodbye and go."""
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
        self.timeline.after(self.jobs[run.key].seconds, lambda: self._end(run, tuple(inputs)))

    def _end(self, run: Run, inputs: tuple[int, ...]) -> None:
        if not self.alive:
            return
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
        follower = self.core.ready.take_follower(run)
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
        self.peer, self.link = scheduler.connect(codec.FROM_CLIENT, codec.TO_CLIENT, self.receive)
        scheduler.core.add_client(self.peer, Incarnation(name), name, timeline.now)
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

    def close(self) -> None:
        """Leave in order."""
        self.open = False
        self.core.end(Ended(False, "closed"))
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
        for state in request.states:
            if peer is not None and state.key in peer.store:
                self.core.fetched(request.address, state, (str(peer.store[state.key]).encode(),))
            else:
                self.core.unfetched(request.address, state, "not there")
        self.core.fetch_ended(request.address)
        self.pump()
