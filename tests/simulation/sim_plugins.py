"""Users of simulated clients that register and unregister plugins of workers, and what must hold.

A run that was assigned after a registration was answered begins on a worker that has the plugin. In the end every
worker has what the scheduler keeps, and nothing else, and every request was answered.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.sim_client import SimClient
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_scheduler import SimScheduler, state_of
from tests.simulation.sim_worker import BAD_PLUGIN, SimWorker
from trio_dask.client.core.key_state import Ended
from trio_dask.protocol.messages import RegisterPlugin, Run, UnregisterPlugin

NAMES: Final = ("p", "q")


@dataclass(eq=False)
class Registration:
    """A request of a user, and what became of it."""

    client: SimClient
    name: str
    data: bytes
    is_answered: bool = False


class Plugging:
    """All plugins of one history. It has a random source of its own, so that histories without it stay."""

    def __init__(
        self,
        seed: int,
        timeline: Timeline,
        scheduler: SimScheduler,
        clients: Sequence[SimClient],
        workers: Sequence[SimWorker],
        *,
        is_on: bool,
    ) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.clients = clients
        self.workers = workers
        self.rng = random.Random(seed ^ 0x91A61)
        self.is_calm = False
        self.requests: list[Registration] = []
        self.in_force: dict[str, tuple[bytes, int]] = {}
        """Plugins that were registered everywhere, and the last run that may have been assigned before that."""
        if is_on:
            for _ in range(self.rng.choice((1, 3, 8))):
                timeline.at(self.rng.random() * 0.4, self._act)

    def _act(self) -> None:
        """Some user registers or unregisters a plugin."""
        rng = self.rng
        there = [client for client in self.clients if client.open]
        if self.is_calm or not there:
            return
        client, name = rng.choice(there), rng.choice(NAMES)
        self.in_force.pop(name, None)
        if rng.random() < 0.3:
            one = Registration(client, name, b"")
            client.core.request(
                lambda number: UnregisterPlugin(number, "worker", name), lambda payload, ended: self._answered(one)
            )
        else:
            data = BAD_PLUGIN if rng.random() < 0.15 else str(len(self.requests)).encode()
            is_idempotent = rng.random() < 0.2
            one = Registration(client, name, data)

            def registered(payload: Any, ended: Ended | None) -> None:
                self._answered(one)
                state = state_of(self.scheduler.core)
                kept = state.plugins.get(("worker", name))
                is_settled = all(other.is_answered for other in self.requests if other.name == name)
                if ended is None and is_settled and kept is not None and kept.data == (data,):
                    self.in_force[name] = data, state.last_run

            client.core.request(
                lambda number: RegisterPlugin(number, "worker", name, (data,), is_idempotent), registered
            )
        self.requests.append(one)
        client.pump()

    def _answered(self, one: Registration) -> None:
        one.is_answered = True

    # ------------------------------------------------------------------------------------------ what must hold

    def scheduler_restarted(self) -> None:
        """The next scheduler knows of none."""
        self.in_force.clear()

    def check_start(self, worker: SimWorker, run: Run) -> None:
        """A run begins on this worker."""
        there = [*worker.plugins.values(), *worker.failed_plugins.values()]
        for name, (data, last_run) in self.in_force.items():
            assert run.run <= last_run or data in there, f"{run.key} begins on {worker.name} without plugin {name}"

    def calm(self) -> None:
        """No user registers anything more."""
        self.is_calm = True

    def check(self) -> None:
        """Everything is answered and done."""
        for one in self.requests:
            assert one.is_answered or not one.client.open, f"a request for plugin {one.name} was never answered"
        wanted = [plugin.id for plugin in state_of(self.scheduler.core).plugins.values()]
        for worker in self.workers:
            if worker.alive and worker.link.is_open:
                failed = worker.failed_plugins
                assert sorted(worker.plugins) == sorted(one for one in wanted if one not in failed), (
                    f"{worker.name} has the plugins {list(worker.plugins)}, and should have {wanted}"
                )
