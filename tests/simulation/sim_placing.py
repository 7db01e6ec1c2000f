"""Users of simulated clients that move, copy and scatter results while all else goes on, and what must hold then.

A value that was scattered exists nowhere but on workers: it may be lost only if a worker that had it died, left or
began anew. And what the scheduler tells a worker to drop, it knows to be elsewhere: the others have the value indeed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.simulation.sim_client import SimClient
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_scheduler import SimScheduler, state_of
from tests.simulation.sim_worker import SimWorker
from trio_dask.client.core.key_state import Ended, KeyState
from trio_dask.ids import Key
from trio_dask.protocol.messages import KeyFailed, ManageMemory, Rebalance, Replicate
from trio_dask.scheduler.core.copies import MOVED
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.worker_states import HERE


@dataclass
class Value:
    """A value that a client has scattered, and the lives of the workers that have had it."""

    client: SimClient
    state: KeyState
    value: int
    keepers: dict[SimWorker, int] = field(default_factory=dict[SimWorker, int])


class Placing:
    """All that is moved in one history. It has a random source of its own, so that histories without it stay."""

    def __init__(
        self,
        seed: int,
        timeline: Timeline,
        scheduler: SimScheduler,
        clients: list[SimClient],
        workers: list[SimWorker],
        *,
        renewable: Container[Key],
        renew: Callable[[Key], None],
        places: bool | None,
    ) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.clients = clients
        self.workers = workers
        self.rng = random.Random(seed ^ 0xDA7A)
        draw = self.rng.random() < 0.5
        self.is_on = draw if places is None else places
        self.renewable = renewable
        self.renew = renew
        self.is_calm = False
        self.unanswered: dict[int, SimClient] = {}
        self.values: dict[Key, Value] = {}
        self._last_request = 0
        if self.is_on:
            scheduler.on_free = self._freed
            for _ in range(self.rng.choice((2, 6, 15))):
                timeline.at(self.rng.random() * 0.4, self._begin)

    # ------------------------------------------------------------------------------------------ what users do

    def _begin(self) -> None:
        """Some user has data placed, and perhaps some user again after that."""
        there = [client for client in self.clients if client.open]
        if self.is_calm or not there:
            return
        rng = self.rng
        client = rng.choice(there)
        match rng.choice(("rebalance", "rebalance", "replicate", "manage", "scatter")):
            case "rebalance":
                keys = self._some_keys(client) if rng.random() < 0.3 else ()
                self._ask(client, partial(Rebalance, keys=keys, workers=self._some_workers()))
                self._renew_soon(client)
            case "replicate":
                self._ask(
                    client,
                    partial(
                        Replicate,
                        keys=self._some_keys(client),
                        number=rng.randint(0, 3),
                        workers=self._some_workers(),
                        fan_out=rng.choice((1, 2, 1000)),
                    ),
                )
            case "manage":
                action = rng.choice(("start", "start", "run_once", "run_once", "stop", "running"))
                self._ask(client, partial(ManageMemory, action=action))
            case _:
                self._scatter(client)
        if rng.random() < 0.8:
            self.timeline.after(rng.random() * 0.1, self._begin)

    def _some_keys(self, client: SimClient) -> tuple[Key, ...]:
        ours = [key for key, value in self.values.items() if value.client is client]
        keys = [*client.futures, *ours]
        return tuple(key for key in keys if self.rng.random() < 0.5)

    def _some_workers(self) -> tuple[str, ...]:
        names = [worker.name for worker in self.workers if worker.alive]
        return tuple(self.rng.sample(names, self.rng.randint(0, len(names)))) if self.rng.random() < 0.3 else ()

    def _ask(self, client: SimClient, make: Any) -> None:
        self._last_request = number = self._last_request + 1
        self.unanswered[number] = client

        def answered(payload: Any, ended: Ended | None) -> None:
            del self.unanswered[number]

        client.core.request(make, answered)
        client.pump()

    def _renew_soon(self, client: SimClient) -> None:
        """Results that are being moved are released, and their keys get others."""
        for key in list(client.futures):
            if key in self.renewable and self.rng.random() < 0.3:
                self.timeline.after(self.rng.random() * 0.01, partial(self.renew, key))

    def _scatter(self, client: SimClient) -> None:
        """A client puts a value onto a worker, if there is one."""
        alive = [worker for worker in self.workers if worker.alive and worker.link.is_open]
        if not alive:
            return
        worker = self.rng.choice(alive)
        value = self.rng.getrandbits(32)
        key = f"s{len(self.values)}"
        (state,) = client.core.expect([key])
        client.pump()
        if worker.put(key, value, client.name):
            self.values[key] = Value(client, state, value)
            self._note_keepers()
        else:
            client.core.dereference([state])
            client.pump()

    # ------------------------------------------------------------------------------------------ what must hold

    def _note_keepers(self) -> None:
        """Remember which workers have which values."""
        for key, value in self.values.items():
            for worker in self.workers:
                if key in worker.store:
                    value.keepers.setdefault(worker, worker.lives)

    def _freed(self, keys: Sequence[Key]) -> None:
        """The scheduler tells a worker to drop these keys."""
        self._note_keepers()
        state = state_of(self.scheduler.core)
        for key in keys:
            task = state.tasks.get(key)
            for holder in task.phase.holders if task is not None and isinstance(task.phase, InMemory) else ():
                if holder.phase is HERE:
                    self._must_have(holder.info.name, holder.peer, key)

    def _must_have(self, name: str, peer: int, key: Key) -> None:
        for worker in self.workers:
            if worker.name == name and worker.peer == peer and worker.alive and worker.link.is_open:
                assert key in worker.store, f"{key} was dropped elsewhere, and {name} does not have it"

    def calm(self) -> None:
        """No user begins anything new."""
        self.is_calm = True

    def check(self, expected: dict[Key, int | None]) -> None:
        """Every user has its answer, what workers hold is right, and no value was lost without a reason."""
        for number, client in self.unanswered.items():
            assert not client.open, f"request {number} of {client.name} never had an answer"
        for _, key, what in state_of(self.scheduler.core).story:
            assert what != MOVED, f"the last replica of {key} was dropped"
        right = {**expected, **{key: value.value for key, value in self.values.items()}}
        for holder in state_of(self.scheduler.core).workers.values():
            for task in holder.holds if holder.phase is HERE else ():
                self._must_have(holder.info.name, holder.peer, task.key)
                for worker in self.workers:
                    if worker.name == holder.info.name and task.key in worker.store and task.key in right:
                        assert worker.store[task.key] == right[task.key], f"{worker.name} has a wrong {task.key}"
        for key, value in self.values.items():
            if value.client.open:
                self._check_value(key, value)

    def _check_value(self, key: Key, value: Value) -> None:
        if value.state.status == "finished":
            assert any(worker.store.get(key) == value.value for worker in self.workers), f"{key} is nowhere"
            return
        if isinstance(value.state.failure, KeyFailed):
            assert value.state.failure.kind == "lost", f"{key} failed: {value.state.failure.text}"
        whole = all(worker.alive and worker.lives == lives for worker, lives in value.keepers.items())
        assert not whole, f"{key} is {value.state.status}, and all workers that had it are there"
