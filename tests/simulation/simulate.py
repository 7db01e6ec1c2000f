"""Seeded simulation of the bare cores: `python -m tests.simulation.simulate --seeds N`.

Each seed is one small history: a random graph, clients that submit it task by task or in parts, read, cancel, retry,
release and vanish, workers that join, die, drain, are retired or short of memory, links that delay and are cut, for a
moment or for long, and a scheduler that is killed and started again. In half of them users share locks, queues and the
like as well, in half of them they scatter, copy and move data, and in others they register plugins, hear of topics,
call actors, or have tasks that ask to be run elsewhere. First safety: every event is followed by the invariants of the
cores. Then the faults stop, and liveness is demanded: within a bound everything that is still wanted has finished, with
the value of a plain evaluation of the graph, and when the clients have left nothing is left of it anywhere.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final

from tests.simulation.random_graphs import Job, compute, expected, random_jobs, renewable_jobs
from tests.simulation.sim_actors import Acting
from tests.simulation.sim_client import SimClient, Unpicklable
from tests.simulation.sim_coordination import Sharing, check_forgotten
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_placing import Placing
from tests.simulation.sim_plugins import Plugging
from tests.simulation.sim_scheduler import SimScheduler, state_of
from tests.simulation.sim_topics import Hearing, check_unheard
from tests.simulation.sim_worker import Network, SimWorker
from tests.worker.invariants import check_idle
from trio_dask.client.core.key_state import Ended, KeyState, NotSent
from trio_dask.client.core.outbox import NO_EXTRA, Content, Row
from trio_dask.client.graph_parts import GraphRow
from trio_dask.ids import Key
from trio_dask.protocol.messages import KeyFailed, Retire
from trio_dask.protocol.pickling import PickledFunction
from trio_dask.scheduler.core import CoreSettings
from trio_dask.scheduler.core.invariants import check_empty

PICKLED: Final = PickledFunction(b"f" * 16, b"function", "function", b"")
FUNCTION: Final[Content] = PICKLED[:2]
TROUBLE_S: Final = 0.5
"""Virtual seconds during which faults happen."""
HEALING_S: Final = 60.0
"""Virtual seconds after which whatever is wanted must have finished."""


class Failure(AssertionError):
    """A seed that does not hold; the message names it, so that it can be run again."""


class World:
    """One history."""

    def __init__(
        self,
        seed: int,
        jobs: dict[Key, Job] | None = None,
        *,
        in_parts: bool | None = None,
        shares: bool | None = None,
        places: bool | None = None,
        extras: bool | None = None,
    ) -> None:
        self.seed = seed
        self.timeline = Timeline(seed)
        self.rng = self.timeline.rng
        self.parts_rng = random.Random(~seed)
        """Decides on graphs in parts alone, so that histories without them stay as they are."""
        self.in_parts = self.parts_rng.random() < 0.5 if in_parts is None else in_parts
        """Whether clients send graphs in parts too."""
        self.network = Network()
        self.allowed_failures = self.rng.choice((0, 1)) if self.rng.random() < 0.2 else 1000
        """With one more death of its workers than this, a task is given up."""
        self.guarded = self.rng.random() < 0.5
        """Whether all workers have nannies, so that it is known exactly what a worker was running when it died."""
        self.restless = self.rng.random() < 0.05
        """Whether the scheduler may be killed."""
        settings = CoreSettings(
            validate=True,
            allowed_failures=self.allowed_failures,
            reconnect_grace_s=self.rng.choice((0.05, 0.25) if self.guarded else (0.0, 0.05, 0.25)),
        )
        self.scheduler = SimScheduler(self.timeline, settings)
        self.jobs = random_jobs(self.rng, self.rng.choice((1, 5, 20, 60))) if jobs is None else jobs
        self.graph = list(self.jobs)
        self.renewable = renewable_jobs(self.rng)
        self.jobs.update(self.renewable)
        self.expected = expected(self.jobs)
        self.workers: list[SimWorker] = []
        self.clients: list[SimClient] = []
        self.watched: list[tuple[KeyState, int | None]] = []
        self.settled: dict[int, int] = {}
        """How often each watched future was reported as settled, by identity."""
        self.cancelled: dict[str, dict[Key, None]] = {}
        features = random.Random(seed ^ 0xFEA)
        draw = [features.random() < 0.4 if extras is None else extras for _ in range(4)]
        """Decides on what came later, so that histories without it stay as they are."""
        peers = self.timeline, self.scheduler, self.clients, self.workers
        self.plugging = Plugging(seed, *peers, is_on=draw[0])
        self.hearing = Hearing(seed, *peers, is_on=draw[1])
        self.acting = Acting(seed, self.timeline, self.network, self.clients, self.workers, FUNCTION, is_on=draw[3])
        self.jobs.update(self.acting.jobs)
        if draw[2]:
            for key in self.graph:
                self.jobs[key].reschedules = features.choice((0, 0, 0, 1, 2))
        for _ in range(self.rng.randint(0, 3)):
            self.add_worker()
        for number in range(self.rng.choice((1, 1, 2))):
            client = SimClient(self.timeline, self.scheduler, self.network, f"c{number}")
            self.clients.append(client)
            self.cancelled[client.name] = {}
            self.submit(client, [self.jobs[key] for key in self.graph])
        self.submit(self.clients[0], list(self.renewable.values()))
        self.sharing = Sharing(seed, self.timeline, self.clients, shares=shares)
        self.placing = Placing(
            seed,
            self.timeline,
            self.scheduler,
            self.clients,
            self.workers,
            renewable=self.renewable,
            renew=self.renew,
            places=places,
        )

    # ------------------------------------------------------------------------------------------ what happens

    def add_worker(self) -> SimWorker:
        """A worker joins."""
        name = f"w{len(self.workers)}"
        worker = SimWorker(
            self.timeline,
            self.scheduler,
            self.network,
            name,
            self.rng.choice((1, 1, 2, 4)),
            self.jobs,
            reconnect=self.guarded or self.rng.random() < 0.7,
            nanny=self.guarded,
        )
        worker.began = partial(self.plugging.check_start, worker)
        self.workers.append(worker)
        return worker

    def submit(self, client: SimClient, jobs: Sequence[Job]) -> None:
        """A client asks for these tasks and keeps futures for some of them."""
        rng = self.parts_rng
        if self.in_parts and jobs and jobs[0].key not in self.renewable and rng.random() < 0.7:
            share = rng.random()
            outputs = [job.key for job in jobs if rng.random() < share] or [jobs[-1].key]
            rows = [
                GraphRow(job.key, PICKLED, job.call, job.inputs, extra={"retries": job.retries} if job.retries else {})
                for job in jobs
            ]
            for state in client.send_graph(rows, outputs, rng):
                self._keep(client, state)
            for _ in range(rng.choice((0, 0, 1, 3))):
                self.timeline.after(rng.random() * 0.1, partial(self._meddle, client, rng.choice(outputs)))
            return
        for job in jobs:
            row = Row(job.key, job.call, job.inputs)
            extra = {"retries": job.retries} if job.retries else NO_EXTRA
            (state,) = client.core.submit(FUNCTION, [row], (), extra)
            self._keep(client, state)
        client.pump()
        for job in jobs:
            if job.key in self.renewable:
                continue
            if self.rng.random() < 0.4 and job.key in client.futures and len(client.futures) > 1:
                self.release(client, job.key)

    def _meddle(self, client: SimClient, key: Key) -> None:
        """A client changes its mind while a graph is being sent, submits what depends on it, or loses its link."""
        rng = self.parts_rng
        if not client.open:
            return
        event = rng.random()
        if event < 0.2:
            client.lose_link()
        elif event < 0.25 and sum(other.open for other in self.clients) > 1:
            client.vanish()
        elif key not in client.futures:
            pass
        elif event < 0.35:
            self.release(client, key)
        elif event < 0.45:
            self.cancel(client, key)
        else:
            for job in self.jobs.values():
                if key in job.inputs and client.futures.keys() >= set(job.inputs):
                    row, extra = Row(job.key, job.call, job.inputs), {"retries": job.retries}
                    self._keep(client, client.core.submit(FUNCTION, [row], (), extra)[0])
            client.pump()

    def _keep(self, client: SimClient, state: KeyState) -> None:
        """A client has a new future, in place of the one that it may have for the key."""
        former = client.futures.get(state.key)
        if former is not None:
            client.core.dereference([former])
        if former is not state:
            client.futures[state.key] = state
            self._watch(client, state)

    def release(self, client: SimClient, key: Key) -> None:
        """A client lets a future go."""
        state = client.futures.pop(key)
        client.core.dereference([state])
        client.pump()

    def _watch(self, client: SimClient, state: KeyState) -> None:
        if any(watched is state for watched, _ in self.watched):
            return  # it was let go, but a task that waits to be sent has kept it
        self.watched.append((state, self.expected[state.key]))

        def settled(state: KeyState) -> None:
            self.settled[id(state)] = self.settled.get(id(state), 0) + 1

        client.core.wait(state, settled)

    def trouble(self) -> None:
        """One random event, harmful or not."""
        rng = self.rng
        open_clients = [client for client in self.clients if client.open]
        client = rng.choice(open_clients) if open_clients else None
        alive = [worker for worker in self.workers if worker.alive]
        if self.renewable and rng.random() < 0.3 and self.clients[0].open:
            key = rng.choice(list(self.renewable))
            self.renew(key)
            if rng.random() < 0.5:  # again, while the call before runs, or so that its result crosses the next call
                crossing_s = self.jobs[key].seconds + rng.random() * 0.01
                self.timeline.after(rng.choice((rng.random() * 0.05, crossing_s)), lambda: self.renew(key))
            return
        event = rng.random()
        if event < 0.25:
            if len(alive) < 6:
                self.add_worker()
        elif event < 0.55:
            if alive:
                self.trouble_worker(rng.choice(alive))
        elif self.restless and event < 0.57:
            self.restart_scheduler()
        elif client is None:
            pass
        elif event < 0.65 and client.futures:
            client.read(client.futures[rng.choice(list(client.futures))])
        elif event < 0.75 and client.futures:
            self.release(client, rng.choice(list(client.futures)))
        elif event < 0.82 and client.futures:
            self.cancel(client, rng.choice(list(client.futures)))
        elif event < 0.88:
            self.submit(client, self._closure(rng.choice(self.graph)))
        elif event < 0.92:
            client.core.retry([state for state in client.futures.values() if state.status == "error"])
            client.pump()
        elif event < 0.98:
            client.lose_link()
        elif len(open_clients) > 1:
            client.vanish()

    def trouble_worker(self, worker: SimWorker) -> None:
        """Something happens to a worker."""
        rng = self.rng
        event = rng.random()
        if event < 0.35:
            worker.die()
        elif event < 0.7:
            worker.lose_link()
        elif event < 0.75:
            worker.leave()
        elif event < 0.85:
            worker.drain()
        elif event < 0.9:
            worker.pause(rng.random() * 0.2)
        else:
            for client in self.clients:
                if client.open:
                    client.core.request(partial(Retire, workers=(worker.name,), number=0), lambda payload, ended: None)
                    client.pump()
                    return

    def restart_scheduler(self) -> None:
        """The scheduler is killed and started again: workers join it afresh, and users begin again."""
        for worker in self.workers:
            worker.lose_link()
        for client in self.clients:
            if client.open:
                client.open = False
                client.core.end_session(Ended(True, "the scheduler was killed"))
        self.scheduler.restart()
        self.plugging.scheduler_restarted()
        client = SimClient(self.timeline, self.scheduler, self.network, f"c{len(self.clients)}")
        self.clients.append(client)
        self.cancelled[client.name] = {}
        self.renewable.clear()
        self.submit(client, [self.jobs[key] for key in self.graph])

    def cancel(self, client: SimClient, key: Key) -> None:
        """A client gives a future up, and with it what depends on it."""
        for name, job in self.jobs.items():
            if name == key or any(parent in self.cancelled[client.name] for parent in job.inputs):
                self.cancelled[client.name][name] = None
        client.core.cancel([client.futures[key]], False, "cancelled")
        client.pump()

    def renew(self, key: Key) -> None:
        """A client gives a key to another call, having let go of the first."""
        client = self.clients[0]
        job = self.renewable.get(key)
        if job is None or not client.open:
            return
        if self.rng.random() < 0.4:  # workers that have its value, or compute it, are away meanwhile
            for worker in self.workers:
                if key in worker.store or key in worker.running.values():
                    worker.lose_link()
        if key in client.futures:
            if self.rng.random() < 0.5:
                client.core.cancel([client.futures[key]], False, "renewed")
            self.release(client, key)
        job.version += 1
        self.expected[key] = compute(job.call, ())
        self.submit(client, [job])

    def _closure(self, key: Key) -> list[Job]:
        needed = {key: None}
        for name in reversed(self.jobs):
            if name in needed:
                needed.update(dict.fromkeys(self.jobs[name].inputs))
        return [job for name, job in self.jobs.items() if name in needed]

    # ------------------------------------------------------------------------------------------ what must hold

    def run(self) -> None:
        """Trouble, then healing, then the proof that all is well and nothing is left."""
        for _ in range(self.rng.choice((0, 3, 10, 25))):
            self.timeline.at(self.rng.random() * TROUBLE_S, self.trouble)
        self.timeline.run(until=TROUBLE_S)
        self.sharing.calm()
        self.placing.calm()
        self.plugging.calm()
        self.hearing.calm()
        self.acting.calm()
        self.add_worker()  # others may be on their way out
        self.timeline.run(until=TROUBLE_S + HEALING_S)
        self.sharing.check()
        self.placing.check(self.expected)
        self.plugging.check()
        self.hearing.check()
        self.acting.read_all()
        clients = [client for client in self.clients if client.open]
        for client in clients:
            for state in client.futures.values():
                self._check_future(client, state)
                if state.status == "finished":
                    client.read(state)
        self.timeline.run(until=TROUBLE_S + 2 * HEALING_S)
        self.acting.check()
        for client in clients:
            self._check_wishes(client)
            self._check_values(client)
            client.close()
        if self.timeline.run(until=TROUBLE_S + 3 * HEALING_S):
            raise AssertionError("events still happen after the last client has left")
        self._check_nothing_left()

    def _check_future(self, client: SimClient, state: KeyState) -> None:
        value = self.expected[state.key]
        assert state.status != "pending", f"{state.key} never settled for {client.name}: {self._story(state.key)}"
        assert self.settled.get(id(state)) == 1, f"{state.key} settled {self.settled.get(id(state))} times"
        if state.status == "finished":
            assert value is not None, f"{state.key} finished, and should have erred"
        elif state.status == "error":
            if isinstance(state.failure, NotSent):
                assert isinstance(state.failure.error, Unpicklable)
                return
            assert isinstance(state.failure, KeyFailed)
            kind = state.failure.kind
            excused = kind == "refused" and bool(self.cancelled[client.name])
            excused = excused or (kind == "killed" and self._was_fatal(state.failure.blamed))
            assert value is None or excused, f"{state.key} erred ({state.failure.text}), and should be {value}"
        else:
            assert state.key in self.cancelled[client.name], f"{state.key} is {state.status}, and was not cancelled"

    def _was_fatal(self, key: Key) -> bool:
        """Whether a task was running on more workers that died than are allowed, as far as that can be known."""
        return not self.guarded or sum(worker.fatal[key] for worker in self.workers) > self.allowed_failures

    def _check_wishes(self, client: SimClient) -> None:
        """The scheduler keeps for a client what it has futures for, and nothing else."""
        session = state_of(self.scheduler.core).clients[client.peer]
        assert not session.holds, f"{client.name} still holds {list(session.holds)}"
        elsewhere = {*self.placing.values, *self.acting.keys_of(client)}
        for task in session.wants:
            assert task.key in client.futures or task.key in elsewhere, (
                f"{task} is kept for {client.name}, which has no future for it"
            )

    def _check_values(self, client: SimClient) -> None:
        read = [state for state, _ in client.values]
        for key, state in client.futures.items():
            if state.status == "finished":
                assert state in read, f"{key} is finished, and its value never came"
        right = {id(state): value for state, value in self.watched}
        for state, value in client.values:
            assert value == right[id(state)], f"{state.key} is {value}, and should be {right[id(state)]}"

    def _check_nothing_left(self) -> None:
        core = self.scheduler.core
        assert not self.scheduler.leaves, self.scheduler.leaves[0]
        check_empty(state_of(core))
        check_forgotten(state_of(core))
        check_unheard(state_of(core))
        self.acting.check_gone()
        for worker in self.workers:
            if worker.alive:
                check_idle(worker.core)
                assert not worker.store, f"{worker.name} still stores {list(worker.store)}"
                assert worker.free_slots == worker.slots, f"{worker.name} has leaked a slot"

    def _story(self, key: Key) -> str:
        return "; ".join(f"{at:.4f} {what}" for at, name, what in state_of(self.scheduler.core).story if name == key)


def run_seed(
    seed: int,
    bug: Callable[[World], AbstractContextManager[None]] | None = None,
    *,
    in_parts: bool | None = None,
    shares: bool | None = None,
    places: bool | None = None,
    extras: bool | None = None,
) -> None:
    """Run the history of one seed, with an injected bug if there is one.

    Raises `Failure` if something does not hold.
    """
    try:
        world = World(seed, in_parts=in_parts, shares=shares, places=places, extras=extras)
        with bug(world) if bug is not None else nullcontext():
            world.run()
    except Exception as error:  # any error, of a core or of the oracle, means that the seed does not hold
        raise Failure(f"seed {seed}: {type(error).__name__}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run many seeds; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds to run (default: 300)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        try:
            run_seed(seed)
        except Failure as failure:
            print(failure, file=sys.stderr)
            print(f"again: python -m tests.simulation.simulate --first {seed} --seeds 1", file=sys.stderr)
            return 1
    print(f"{options.seeds} seeds hold, in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
