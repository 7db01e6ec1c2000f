"""Users of simulated clients that hear of topics, and what must hold: each event reaches them once, and in order.

A user logs an event of its own right after it has subscribed, and right before it unsubscribes: from the one to the
other it must hear exactly what the scheduler has kept, wherever its link was cut meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.simulation.sim_client import SimClient
from tests.simulation.sim_network import Timeline
from tests.simulation.sim_scheduler import SimScheduler, state_of
from tests.simulation.sim_worker import SimWorker
from trio_dask.protocol.messages import LogEvent, TopicEvent
from trio_dask.scheduler.core.state import State

TOPICS = ("news", "weather")


@dataclass(eq=False)
class Subscription:
    """What one user has heard of one topic, between two events of its own."""

    first: int
    last: int | None = None
    heard: list[int] = field(default_factory=list[int])


class Hearing:
    """All topics of one history. It has a random source of its own, so that histories without it stay."""

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
        self.rng = random.Random(seed ^ 0x70D1C)
        self.is_calm = False
        self.subscriptions: dict[tuple[SimClient, str], Subscription] = {}
        self.logged: dict[int, tuple[SimClient | None, str]] = {}
        """By number: the client that has logged it, if none of the workers has, and the topic."""
        if is_on:
            for _ in range(self.rng.choice((5, 20, 50))):
                timeline.at(self.rng.random() * 0.45, self._act)

    # ------------------------------------------------------------------------------------------ what users do

    def _act(self) -> None:
        """Some user or some task does something."""
        rng = self.rng
        there = [client for client in self.clients if client.open]
        topic = rng.choice(TOPICS)
        if self.is_calm:
            return
        if rng.random() < 0.3:
            linked = [worker for worker in self.workers if worker.alive and worker.link.is_open]
            if linked:
                rng.choice(linked).link.to_scheduler.send([self._event(None, topic)])
        elif there:
            client = rng.choice(there)
            mine = self.subscriptions.get((client, topic))
            if mine is None and rng.random() < 0.6:
                self._subscribe(client, topic)
            elif mine is not None and mine.last is None and rng.random() < 0.2:
                self._unsubscribe(client, topic, mine)
            else:
                client.core.tell(self._event(client, topic))
            client.pump()

    def _subscribe(self, client: SimClient, topic: str) -> None:
        def heard(event: TopicEvent) -> None:
            assert isinstance(event.payload, bytes)
            self.subscriptions[client, event.topic].heard.append(int(event.payload))

        client.core.on_event = heard
        client.core.subscribe(topic, wanted=True)
        event = self._event(client, topic)
        self.subscriptions[client, topic] = Subscription(int(event.payload))
        client.core.tell(event)

    def _unsubscribe(self, client: SimClient, topic: str, subscription: Subscription) -> None:
        event = self._event(client, topic)
        subscription.last = int(event.payload)
        client.core.tell(event)
        client.core.subscribe(topic, wanted=False)

    def _event(self, client: SimClient | None, topic: str) -> LogEvent:
        number = len(self.logged)
        self.logged[number] = client, topic
        return LogEvent((topic,), str(number).encode())

    # ------------------------------------------------------------------------------------------ what must hold

    def calm(self) -> None:
        """Nobody logs anything more."""
        self.is_calm = True

    def check(self) -> None:
        """All users have heard what the scheduler has kept, which is what clients have logged."""
        kept = {topic: self._kept(topic) for topic in TOPICS}
        for topic, numbers in kept.items():
            assert len(set(numbers)) == len(numbers), f"the scheduler has kept an event of {topic} twice"
        for number, (client, topic) in self.logged.items():
            assert client is None or not client.open or number in kept[topic], f"event {number} was never kept"
        for (client, topic), mine in self.subscriptions.items():
            if not client.open:
                continue
            numbers = kept[topic][kept[topic].index(mine.first) :]
            # Others may have logged something between the last event of its own and the end of its subscription.
            least = len(numbers) if mine.last is None else numbers.index(mine.last) + 1
            heard = mine.heard
            assert len(heard) >= least, f"{client.name} has heard {heard} of {topic}, and not all of {numbers}"
            assert heard == numbers[: len(heard)], f"{client.name} has heard {heard} of {topic}, and not {numbers}"

    def _kept(self, topic: str) -> list[int]:
        events = state_of(self.scheduler.core).topics.events.get(topic, ())
        return [int(event.payload) for event in events if isinstance(event.payload, bytes)]


def check_unheard(state: State) -> None:
    """A scheduler without clients has no subscribers."""
    assert not state.topics.subscribers, "a client that has left still hears of a topic"
