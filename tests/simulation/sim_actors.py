"""Users of simulated clients that make actors and call them, and what must hold.

The lines to the workers are real, but for what carries their messages. A worker that ends breaks them, or is silent
from then on: then only the scheduler's word that the actor is lost ends the calls that wait.

Each call is answered once, and each answer says how many calls of this actor came before: an actor is one object, made
once, which no call reaches twice. A call fails only if the actor is lost, or its line breaks while it is under way.
Workers with actors retire too. Then the object moves, and no two workers make calls of it, no call is made twice or at
both, and those of one user are made in their order.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import trio

from tests.simulation.random_graphs import Job
from tests.simulation.sim_client import SimClient
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_worker import Network, SimWorker
from trio_dask.client.actor_lines import ActorLines, BothWays, Search, UnansweredCall
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.core.outbox import Content, Row
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import SharedState
from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import ActorAnswer, ActorMoved, Query, Retire

ACTORS: Final = ("actor-0", "actor-1")
NONE: Final = RunId(-1)
SILENCE_S: Final = 10.0
"""After this time a line to a worker that is silent breaks."""
SILENT: Final = 0.4
"""How often a worker that ends leaves the lines to it as they are."""


class _Shared:
    """The part of a client's shared state that lines need."""

    def __init__(self, core: ClientCore) -> None:
        self.core = core
        self.lock = threading.RLock()

    def check_open(self) -> None: ...


class SimLines(ActorLines):
    """The lines of one client, over virtual links that keep the order of what they carry."""

    def __init__(self, client: SimClient, network: Network, rng: random.Random) -> None:
        self.client = client
        self.network = network
        self.rng = rng
        self.timeline = client.timeline
        self.cut: dict[KeyState, SimWorker] = {}
        """Calls that were under way when their line broke, and the worker at its other end."""
        self.made: dict[KeyState, None] = {}
        """Calls that reached their actor."""
        self._linked: dict[int, SimWorker] = {}
        """The workers of lines that are connected, by identity."""
        self._silent: dict[int, None] = {}
        """Lines on which no call has arrived yet."""
        self._arrivals: dict[int, float] = {}
        shared = cast("SharedState", _Shared(client.core))
        super().__init__(shared, cast("LoopCalls", self), _open_nothing, _find_nothing)

    # What `LoopCalls` does, for the lines themselves.

    def start(self, serve: object, subject: Any) -> None:
        """A line is new: connect it. Or an actor is to be found: ask for it."""
        if isinstance(subject, Search):
            self._ask(subject)
        else:
            self.timeline.after(self.rng.random() * 0.01, lambda: self._connect(subject))

    def _ask(self, search: Search) -> None:
        def found(home: Any, ended: object) -> None:
            # The core calls this in the middle of something.
            self.timeline.after(0.0, lambda: self._hear(search, home if ended is None else ""))

        self.client.core.request(partial(Query, what="actor_home", arguments=(search.actor[0],)), found)
        self.timeline.after(0.0, self.client.pump)

    def _hear(self, search: Search, home: str) -> None:
        if self.client.open:
            self._found(search, home, search.why)
            self._send_all()

    def run_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Do this in the loop, and what follows from it."""

        def run() -> None:
            function(*args)
            self._send_all()

        self.timeline.after(0.0, run)

    def _connect(self, line: Any) -> None:
        worker = self.network.workers.get(line.address)
        if worker is None:
            self._end(line)
            return
        line.is_open = True
        self._linked[id(line)] = worker
        worker.unread += 1
        self._silent[id(line)] = None
        worker.on_moved.append(lambda key, run: self._tell_moved(line, key, run))
        worker.ended.append(lambda: self._worker_ended(line))
        self._send_all()

    def _worker_ended(self, line: Any) -> None:
        if self.rng.random() > SILENT:
            self.timeline.after(self.rng.random() * 0.1, lambda: self._end(line))
        else:
            self.timeline.after(SILENCE_S, lambda: self._end_silent(line))

    def _end_silent(self, line: Any) -> None:
        """In the end the network notices; a caller of an actor that is lost has long heard from the scheduler."""
        calls = (*line.pending.values(), *line.outbox)
        if any(worker.actors.get(call.key, (-1,))[0] == call.run for call in calls for worker in self._workers()):
            self._end(line)

    def _workers(self) -> list[SimWorker]:
        return list(self.network.workers.values())

    def _end(self, line: Any) -> None:
        """As `_serve` does it when the connection ends."""
        if line.is_open:
            for call in (*line.pending.values(), *line.outbox):
                self.cut[call.state] = self._linked[id(line)]
        self._lines = {address: other for address, other in self._lines.items() if other is not line}
        self._over(line, "the line broke")

    def _send_all(self) -> None:
        for line in dict.fromkeys((*self._lines.values(), *(line for line, _ in self._busy.values()))):
            worker = self._linked.get(id(line))
            if worker is not None and line.woken.is_set():
                for number, call in line.take():
                    self._later(line, partial(self._deliver, line, worker, number, call))

    def _later(self, line: Any, action: Callable[[], None]) -> None:
        at = max(self._arrivals.get(id(line), 0.0), self.timeline.now + self.rng.choice((0.0, 0.001, 0.02)))
        self._arrivals[id(line)] = at
        self.timeline.at(at, action)

    def _deliver(self, line: Any, worker: SimWorker, number: int, call: UnansweredCall) -> None:
        if id(line) in self._silent:
            del self._silent[id(line)]
            worker.unread -= 1
        if worker.alive:
            began = partial(self._began, worker, call)
            worker.call_actor(call.key, call.run, began, partial(self._answer, line, number, call))

    def _began(self, worker: SimWorker, call: UnansweredCall) -> None:
        """An actor makes a call: no other worker makes calls of it, and the call is not made twice, or too late."""
        for other in self._workers():
            if other is worker or other.session_with != worker.session_with:
                continue  # another scheduler's run has the same number
            if other.actors.get(call.key, (-1,))[0] == call.run:
                assert call.key in other.resting, f"{call.key} lives on {worker.name} and on {other.name}"
        assert call.state not in self.made, f"{call.state.key} was made twice"
        self.made[call.state] = None
        proxy = call.keeps
        assert isinstance(proxy, Proxy)
        number = proxy.calls.index(call.state)
        assert number > proxy.last_made, f"call {proxy.last_made} of {call.key} was made before call {number}"
        proxy.last_made = number

    def _answer(self, line: Any, number: int, call: UnansweredCall, value: int | str) -> None:
        if value == "elsewhere":
            self._tell_moved(line, call.key, call.run)
            return
        answer = ActorAnswer(number, "value" if isinstance(value, int) else "gone", "", ())
        frames = [str(value).encode()] if isinstance(value, int) else []
        self._later(line, lambda: self._settle(line, answer, frames))

    def _tell_moved(self, line: Any, key: Key, run: RunId) -> None:
        worker = self._linked[id(line)]
        worker.unread += 1

        def read() -> None:
            worker.unread -= 1
            self._settle(line, ActorMoved(key, run), [])

        self._later(line, read)

    def _settle(self, line: Any, answer: ActorAnswer | ActorMoved, frames: list[bytes]) -> None:
        if self.client.open:
            assert not self._settle_all(line, [(answer, frames)])
            self._send_all()


async def _find_nothing(key: Key) -> str:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


async def _open_nothing(address: str) -> BothWays:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


@dataclass(eq=False)
class Proxy:
    """An actor as one user has it."""

    client: SimClient
    state: KeyState
    run: RunId = NONE
    worker: str = ""
    calls: list[KeyState] = field(default_factory=list[KeyState])
    answers: list[int] = field(default_factory=list[int])
    last_made: int = -1
    """The last of its calls that has reached the actor."""


class Acting:
    """All actors of one history. It has a random source of its own, so that histories without it stay."""

    def __init__(
        self,
        seed: int,
        timeline: Timeline,
        network: Network,
        clients: Sequence[SimClient],
        workers: Sequence[SimWorker],
        function: Content,
        *,
        is_on: bool,
    ) -> None:
        self.timeline = timeline
        self.network = network
        self.clients = clients
        self.workers = workers
        self.function = function
        self.rng = random.Random(seed ^ 0xAC70)
        self.is_calm = False
        self.jobs: Mapping[Key, Job] = {
            key: Job(key, (), self.rng.random() * 0.02, 0, 0, self.rng.random() < 0.5) for key in ACTORS
        }
        self.moving_rng = random.Random(seed ^ 0x30FE)
        """Decides on moves alone, so that histories without them stay."""
        self.retirements = 0
        for job in self.jobs.values():
            job.movable = self.moving_rng.random() < 0.7
        self.lines: dict[SimClient, SimLines] = {}
        self.proxies: dict[tuple[SimClient, Key], Proxy] = {}
        self.released: list[Proxy] = []
        if is_on:
            for _ in range(self.rng.choice((4, 10, 30))):
                timeline.at(self.rng.random() * 0.48, self._act)

    # ------------------------------------------------------------------------------------------ what users do

    def _act(self) -> None:
        """Some user makes an actor, or calls it."""
        rng = self.rng
        there = [client for client in self.clients if client.open]
        if self.is_calm or not there:
            return
        client, key = rng.choice(there), rng.choice(ACTORS)
        proxy = self.proxies.get((client, key))
        if proxy is None:
            self._make(client, key)
        elif proxy.run >= 0 and rng.random() < 0.9:
            for _ in range(rng.choice((1, 1, 5))):
                self._call(proxy)
            if rng.random() < 0.1:
                self.timeline.after(rng.random() * 0.05, lambda: self._kill_host(proxy))
            if self.moving_rng.random() < 0.3:
                self.timeline.after(self.moving_rng.random() * 0.05, lambda: self._retire_host(proxy))
        elif all(call.status != "pending" for call in proxy.calls):
            self.released.append(self.proxies.pop((client, key)))
            client.core.dereference([proxy.state])
        client.pump()

    def _kill_host(self, proxy: Proxy) -> None:
        """The worker dies, with calls under way."""
        for worker in self.workers:
            if worker.alive and worker.name == proxy.worker and not self.is_calm:
                worker.die()

    def _retire_host(self, proxy: Proxy) -> None:
        """The worker retires, with calls under way, because a client wants it or by itself."""
        client = proxy.client
        for worker in self.workers:
            if worker.alive and proxy.state.key in worker.actors and client.open and not self.is_calm:
                if self.moving_rng.random() < 0.7:
                    client.core.request(partial(Retire, workers=(worker.name,), number=0), self._retired)
                    client.pump()
                else:
                    worker.drain()

    def _retired(self, payload: Any, ended: object) -> None:
        self.retirements += ended is None and not payload.get("refused")

    def _make(self, client: SimClient, key: Key) -> None:
        row = Row(key, self.jobs[key].call, ())
        (state,) = client.core.submit(self.function, [row], (), {"actor": True})
        proxy = self.proxies[client, key] = Proxy(client, state)
        client.core.wait(state, lambda state: self.timeline.after(0.0, lambda: self._read(proxy)))

    def _read(self, proxy: Proxy) -> None:
        """Get the proxy, which says what made the actor, and where."""
        if proxy.client.open and proxy.state.status == "finished":
            proxy.client.core.read(proxy.state, partial(self._is_there, proxy))
            proxy.client.pump()

    def _is_there(self, proxy: Proxy, state: KeyState, frames: Sequence[Any] | None, reason: str) -> None:
        if frames is None:
            return
        run, number = divmod(int(bytes(frames[0])), 1000)
        assert proxy.run in (NONE, run), f"{state.key} was made twice, by the runs {proxy.run} and {run}"
        proxy.run, proxy.worker = RunId(run), f"w{number}"

    def _call(self, proxy: Proxy) -> None:
        client = proxy.client
        lines = self.lines.get(client)
        if lines is None:
            lines = self.lines[client] = SimLines(client, self.network, self.rng)
        call = KeyState(f"{proxy.state.key}.bump")
        proxy.calls.append(call)
        client.core.read(call, partial(self._answered, proxy))
        outgoing = UnansweredCall(call, proxy.state.key, proxy.run, "bump", [b""], proxy)
        lines.call(self.network.address_of(proxy.worker), outgoing, proxy.state)

    def _answered(self, proxy: Proxy, call: KeyState, frames: Sequence[Any] | None, reason: str) -> None:
        if frames is not None:
            proxy.answers.append(int(bytes(frames[0])))

    # ------------------------------------------------------------------------------------------ what must hold

    def calm(self) -> None:
        """Nobody makes or calls anything more."""
        self.is_calm = True

    def read_all(self) -> None:
        """Ask once more for each proxy."""
        for proxy in self.proxies.values():
            self._read(proxy)

    def keys_of(self, client: SimClient) -> list[Key]:
        """The actors that a user has."""
        return [key for other, key in self.proxies if other is client]

    def check(self) -> None:
        """All calls have been answered, as far as there is somebody who hears it."""
        by_run: dict[tuple[Key, RunId], list[int]] = {}
        for proxy in (*self.proxies.values(), *self.released):
            by_run.setdefault((proxy.state.key, proxy.run), []).extend(proxy.answers)
            assert proxy.answers == sorted(proxy.answers), f"answers came in the order {proxy.answers}"
            if not proxy.client.open:
                continue
            for call in proxy.calls:
                assert call.status != "pending", f"{call.key} of {proxy.client.name} was never answered"
            self._check_actor(proxy)
        for (key, _), answers in by_run.items():
            assert len(set(answers)) == len(answers), f"{key} has given the answers {sorted(answers)}"

    def _check_actor(self, proxy: Proxy) -> None:
        state = proxy.state
        lives = any(worker.alive and worker.actors.get(state.key, (-1,))[0] == proxy.run for worker in self.workers)
        if proxy not in self.released:
            assert state.status in ("finished", "error"), f"{state.key} is {state.status}"
            assert lives or state.status == "error", f"{state.key} is {state.status}, and its object is nowhere"
        for call in proxy.calls:
            if call.status != "finished" and lives:
                worker = self.lines[proxy.client].cut.get(call)
                assert worker is not None, f"{call.key} failed, and the actor is there"
                assert not worker.left_in_order, f"{call.key} failed as {worker.name} left, and the actor has moved"

    def check_gone(self) -> None:
        """Nobody has an actor any more."""
        for worker in self.workers:
            assert not worker.alive or not worker.actors, f"{worker.name} still has the actors {list(worker.actors)}"
            assert not worker.alive or not worker.resting, f"{worker.name} has actors that rest: {list(worker.resting)}"
