"""A simulated worker process: the real core, with slots that take virtual time, a store, and a data plane."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from tests.simulation.random_graphs import Job, compute
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_scheduler import SimScheduler, state_of
from tests.worker.invariants import check as check_worker
from trio_dask.comm.inproc import inproc_address
from trio_dask.ids import Incarnation, Key, PeerId, RunId, actor_state
from trio_dask.protocol import codec
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.messages import (
    ActorHeld,
    ActorTaken,
    Goodbye,
    HandOverActor,
    Message,
    PluginDone,
    Run,
    SettleActor,
    SetUpPlugin,
    TakeActor,
    TearDownPlugin,
)
from trio_dask.scheduler.core import CallAgain, Refuse, Resume
from trio_dask.worker.core.effects import CancelFetch, EndSession, FetchId, FreeKeys, StartFetch
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.hosted_actors import FOLLOW_S

Reply = Callable[[int | str], object]

LONGEST_CALL_S: Final = 0.05

BAD_PLUGIN: Final = b"bad"
"""A plugin with these data raises when it is set up."""

SILENCE: Final = 0.02
"""How often a worker that is there does not answer in time."""


class Network:
    """The workers that can be reached, by address, for the data plane."""

    def __init__(self) -> None:
        self.workers: dict[str, SimWorker] = {}

    def address_of(self, name: str) -> str:
        """Where the worker with this name can be reached, if it is there."""
        return str(inproc_address(name))


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
        self.fatal: Counter[Key] = Counter()
        """How often a task can be blamed: for a death, if it ran; for a loss beyond the grace, if it was given."""
        self._unseen: dict[Key, None] = {}
        """What it had been given when its link was lost, whether it ran or not: that cannot be known."""
        self.began: Callable[[Run], object] = lambda run: None
        """Called when a run begins."""
        self.ended: list[Callable[[], object]] = []
        """Called when the process has ended."""
        self.actors: dict[Key, tuple[RunId, int]] = {}
        """The run that made each, and how many calls it has had."""
        self.resting: dict[Key, RunId] = {}
        """Actors that make no calls, as they move, or have come and are not to begin yet."""
        self._actor_calls: dict[Key, deque[tuple[Callable[[], object], Reply]]] = {}
        self._busy_actors: dict[Key, RunId] = {}
        self._going: dict[Key, int] = {}
        """The order by which each is to be handed over."""
        self._coming: dict[Key, int] = {}
        self.on_moved: list[Callable[[Key, RunId], object]] = []
        """Hear that an actor lives elsewhere now, as every caller does, after the answers of all calls made here."""
        self.unread = 0
        """How many of those that were told so have not read it yet, and lines whose first call has not come."""
        self.left_in_order = False
        """It was dismissed, and did not die before it went."""
        self.plugins: dict[str, bytes] = {}
        """Those that are set up, by id."""
        self.failed_plugins: dict[str, bytes] = {}
        self._unsent_answers: list[PluginDone] = []
        self._plugin_orders: deque[SetUpPlugin | TearDownPlugin] = deque()
        self._fetches: dict[FetchId, None] = {}
        self._heard_at = 0.0
        self.lives = 0
        """How often it has begun with nothing."""
        self._sessions = 0
        self._session: tuple[Incarnation, Incarnation] | None = None
        network.workers[self.address] = self
        self.peer = PeerId(-1)
        self.link = scheduler.no_link()
        self.connect()

    # ------------------------------------------------------------------------------------------ sessions

    def connect(self) -> None:
        """Dial the scheduler, to go on with the last session if it was lost and that can be; else try again later."""
        if not self.alive:
            return
        self._sessions += 1
        incarnation = Incarnation(f"{self.name}.{self._sessions}")
        details: dict[str, object] = {
            "address": self.address,
            "host": self.name,
            "nthreads": self.slots,
            "reconnect": self.reconnect,
            "process": self.process,
            "plugins": tuple(self.plugins),
        }
        if self._session is not None:
            details["previous"], details["scheduler"] = self._session
        hello = Hello(role="worker", incarnation=incarnation, name=self.name, details=details)
        scheduler = self.scheduler.incarnation
        answer = self.scheduler.greet(hello)
        returned = isinstance(answer, Welcome) and answer.details.get("returned") is True
        if not returned and self._session is not None:
            self.fatal.update(list(self._unseen))
            self.core.reset(self.timeline.now)
            self._going.clear()
            self._coming.clear()
            self.lives += 1
            self._session = None
            self.pump()
        if isinstance(answer, Refusal):
            self.timeline.after(0.02, self.connect)
        elif self.timeline.rng.random() < 0.1:  # the session begins later: much may happen meanwhile
            self.timeline.after(
                self.timeline.rng.random() * 0.4, partial(self._begin_session, hello, scheduler, returned)
            )
        else:
            self._begin_session(hello, scheduler, returned)

    def _begin_session(self, hello: Hello, scheduler: Incarnation, returned: bool) -> None:
        """It was welcomed, and its session begins, unless something has come between."""
        if not self.alive:
            return
        if scheduler != self.scheduler.incarnation:
            self.connect()
            return
        outcome = self.scheduler.core.begin_session(hello, self.timeline.now)
        if isinstance(outcome, CallAgain | Refuse):
            self.timeline.after(0.02, self.connect)
            return
        assert isinstance(outcome, Resume) == returned
        self.peer = peer = outcome.peer
        self.link = self.scheduler.connect(codec.FROM_WORKER, codec.TO_WORKER, self.receive, peer)
        if returned and self.timeline.rng.random() < 0.1:  # the welcome does not arrive
            self.link.cut()
            link = self.link
            self.timeline.after(0.01, lambda: self.scheduler.lose(peer, link, "cut"))
            self.timeline.after(0.02, self.connect)
            return
        self._session = hello.incarnation, scheduler
        self._unseen.clear()
        self.link.to_scheduler.send(self._unsent_answers)
        self._unsent_answers = []
        self.core.session_began(self.address, returned)
        self.scheduler.settle()
        self.pump()

    def lose_link(self) -> None:
        """Its link is cut. Both ends notice sooner or later, the scheduler perhaps only when it calls again."""
        if not self.alive or not self.link.is_open:
            return
        rng, peer, link = self.timeline.rng, self.peer, self.link
        self._unseen.clear()
        link.cut()

        def be_missed() -> None:
            worker = state_of(self.scheduler.core).workers.get(peer)
            if worker is not None and self.scheduler.links.get(peer) is link:
                self._unseen = {task.key: None for task in worker.processing.values()}
            self.scheduler.lose(peer, link, "cut")

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
                self.core.set_paused(False)
                self.pump()

        if self.alive:
            self.core.set_paused(True)
            self.pump()
            self.timeline.after(seconds, resume)

    def put(self, key: Key, value: int, client: str) -> bool:
        """A client puts a value here; False if it is not taken."""
        self.store[key] = value
        is_kept = self.core.stored(key, 64, "int", client, self.timeline.now)
        if not is_kept:
            del self.store[key]
        self.pump()
        return is_kept

    def receive(self, messages: Sequence[Message]) -> None:
        """A batch from the scheduler has arrived."""
        if self.alive:
            for message in messages:
                self.core.handle(message, self.timeline.now)  # type: ignore[arg-type]  # the codec lets nothing else pass
            self.pump()

    def die(self) -> None:
        """As by kill -9: it does nothing more, and the scheduler notices a little later."""
        self._stop()
        rng, peer, link, ran = self.timeline.rng, self.peer, self.link, tuple(self.running)
        self.fatal.update(list(dict.fromkeys(self.running.values()) | self._unseen))
        if self.process:
            # A nanny is faster than any grace, but not always faster than the end of the link.
            delay = rng.random() * 0.04 if self.link.is_open else 0.0
            self.timeline.after(delay, lambda: self.scheduler.remove_worker(self.process, "killed", ran))
        self.link.cut()
        self.timeline.after(rng.random() * 0.05, lambda: self.scheduler.lose(peer, link, "killed"))

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
                        self.timeline.after(delay, partial(self._fetch, fetch, address, keys))
                    case CancelFetch(fetch):
                        self._fetches.pop(fetch, None)
                    case FreeKeys(keys):
                        self._drop_actors(keys)
                        for key in keys:
                            self.store.pop(key, None)
                    case HandOverActor():
                        self._hand_over(request)
                    case TakeActor(key, _, order, _):
                        self._coming[key] = order
                        self.timeline.after(self.timeline.rng.random() * 0.02, partial(self._take_actor, request))
                    case SettleActor(key, here):
                        self._settle_actor(key, here=here)
                    case SetUpPlugin() | TearDownPlugin():
                        self._plugin_orders.append(request)
                        if len(self._plugin_orders) == 1:
                            self._do_plugin_later()
                    case EndSession():
                        self.network.workers.pop(self.address, None)
                        self._leave_followed(self.timeline.now + FOLLOW_S)
                        return
                    case _:
                        pass
            if not self._start_runs() and not effects.messages and not effects.requests:
                break
        check_worker(self.core)

    def _do_plugin_later(self) -> None:
        self.timeline.after(self.timeline.rng.choice((0.0, 0.001, 0.05)), self._do_plugin)

    def _do_plugin(self) -> None:
        """Set up or tear down one plugin, after those before it."""
        if not self.alive:
            return
        order = self._plugin_orders.popleft()
        text = ""
        if isinstance(order, TearDownPlugin):
            self.plugins.pop(order.plugin, None)
        elif order.data == (BAD_PLUGIN,):
            self.failed_plugins[order.plugin] = BAD_PLUGIN
            text = "ValueError: bad"
        else:
            self.plugins[order.plugin] = order.data[0]
        done = PluginDone(order.plugin, isinstance(order, TearDownPlugin), None, text)
        if self.link.is_open:
            self.link.to_scheduler.send([done])
        else:
            self._unsent_answers.append(done)
        if self._plugin_orders:
            self._do_plugin_later()

    def _leave_followed(self, deadline: float) -> None:
        """Go, once those that called actors which have moved know it."""
        if self.alive and self.unread and self.timeline.now < deadline:
            self.timeline.after(0.01, partial(self._leave_followed, deadline))
        elif self.alive:
            self.left_in_order = True
            self.leave()

    @property
    def session_with(self) -> Incarnation | None:
        """The scheduler whose session it has, or had last."""
        return None if self._session is None else self._session[1]

    def leave(self) -> None:
        """Say goodbye and go; without a link it is as if it died."""
        if not self.link.is_open:
            self.die()
            return
        self._stop()
        self.link.to_scheduler.send([Goodbye("leaving")])

    def _stop(self) -> None:
        self.alive = False
        self.network.workers.pop(self.address, None)
        for hear in self.ended:
            hear()

    def call_actor(self, key: Key, run: RunId, began: Callable[[], object], reply: Reply) -> None:
        """Call an actor, after the calls that came before.

        `began` is called when the call is made; `reply` hears how many were made before, or that it lives "elsewhere".
        """
        if self.actors.get(key, (-1, 0))[0] != run:
            reply("elsewhere")
            return
        self._actor_calls.setdefault(key, deque()).append((began, reply))
        self._begin_call(key)

    def _begin_call(self, key: Key) -> None:
        """Make the next call of an actor, or have it rest, if it makes none now."""
        if key in self._busy_actors or key in self.resting or key not in self.actors:
            return
        if key in self._going:
            self._rest(key)
            return
        calls = self._actor_calls.get(key)
        if not calls:
            return
        began, reply = calls.popleft()
        run, count = self.actors[key]
        self._busy_actors[key] = run
        began()

        def answer() -> None:
            if self.alive:
                self._busy_actors.pop(key, None)
                if self.actors.get(key, (-1, 0))[0] == run:
                    self.actors[key] = run, count + 1
                reply(count)
                self._begin_call(key)
                self.pump()

        self.timeline.after(self.timeline.rng.choice((0.0, 0.001, LONGEST_CALL_S)), answer)

    def _hand_over(self, message: HandOverActor) -> None:
        key, order = message
        run = self.actors.get(key, (RunId(-1), 0))[0]
        if key not in self.jobs or not self.jobs[key].movable or run < 0:
            self.core.actor_held(ActorHeld(key, order, run, "it does not move"), 0)
            return
        self._going[key] = order
        self._begin_call(key)

    def _rest(self, key: Key) -> None:
        order = self._going[key]
        self.resting[key], count = self.actors[key]

        def is_pickled() -> None:
            if self.alive and self._going.get(key) == order:
                self.store[actor_state(key)] = count
                self.core.actor_held(ActorHeld(key, order, self.resting[key], ""), 64)
                self.pump()

        self.timeline.after(self.timeline.rng.choice((0.0, 0.02)), is_pickled)

    def _take_actor(self, message: TakeActor) -> None:
        key, run, order, address = message
        if not self.alive or self._coming.get(key) != order:
            return
        del self._coming[key]
        source = self.network.workers.get(address)
        count = None if source is None else source.store.get(actor_state(key))
        text = "it could not be fetched" if count is None or self.timeline.rng.random() < 0.1 else ""
        value = run * 1000 + int(self.name[1:])
        if count is not None and not text:
            self._drop_actors([key])
            self.actors[key] = run, count
            self.resting[key] = run
            self.store[key] = value
        self.core.actor_taken(ActorTaken(key, order, str(value).encode(), text), 64)
        self.pump()

    def _settle_actor(self, key: Key, *, here: bool) -> None:
        self._going.pop(key, None)
        if not here:
            self._coming.pop(key, None)
        if key not in self.resting:
            return
        if here:
            del self.resting[key]
            self._begin_call(key)
            return
        run = self.resting.pop(key)
        del self.actors[key]
        for _, reply in self._actor_calls.pop(key, ()):
            reply("elsewhere")
        for hear in self.on_moved:
            hear(key, run)

    def _drop_actors(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._settle_actor(key, here=False)
            _, count = self.actors.pop(key, (RunId(-1), 0))
            self._going.pop(key, None)
            busy = self._busy_actors.pop(key, None) is not None
            for number, (began, reply) in enumerate(self._actor_calls.pop(key, ())):  # those that came before still run
                began()
                self.timeline.after(LONGEST_CALL_S, partial(self._reply_alive, reply, count + busy + number))

    def _reply_alive(self, reply: Reply, count: int) -> None:
        if self.alive:
            reply(count)

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
        for key, source in run.dependencies:
            if key in carried:
                inputs.append(carried[key])
            elif isinstance(source, bytes):
                inputs.append(int(source))
            elif key in self.store:
                inputs.append(self.store[key])
            else:
                self.free_slots += 1
                self._report(partial(self.core.input_gone, run, key))
                return
        self.began(run)
        self.executed.append(run.key)
        self.running[run.run] = run.key
        self.timeline.after(self.jobs[run.key].seconds, lambda: self._end(run, tuple(inputs)))

    def _end(self, run: Run, inputs: tuple[int, ...]) -> None:
        if not self.alive:
            return
        self.running.pop(run.run, None)
        job = self.jobs[run.key]
        if job.rescheduled < job.reschedules:
            job.rescheduled += 1
            self._free_slot(run)
            self._report(lambda: self.core.rescheduled(run, job.seconds))
            return
        job.executions += 1
        if job.executions <= job.failing:
            self._free_slot(run)
            self._report(lambda: self.core.failed(run, b"error", f"ValueError: {run.key}", job.seconds))
            return
        if run.extra.get("actor"):
            self.actors[run.key] = run.run, 0
            value = run.run * 1000 + int(self.name[1:])  # its proxy
        else:
            value = compute(run.call, inputs)
        inline = str(value).encode() if job.small or run.shared else None

        def finished() -> None:
            if self.core.is_current(run):
                self.store[run.key] = value
            elif self.actors.get(run.key, (-1, 0))[0] == run.run:
                del self.actors[run.key]
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
                elif self.core.fetches.expects(fetch, key):
                    self.store[key] = peer.store[key]
                    if not self.core.fetched(fetch, key, 64):
                        del self.store[key]
            self.core.fetch_ended(fetch, unreachable=False)
        self.pump()
