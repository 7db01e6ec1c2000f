"""A simulated client process: the real core, and what its user has seen."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from tests.simulation.sim_network import Timeline
from tests.simulation.sim_scheduler import SimScheduler
from tests.simulation.sim_worker import SILENCE, Network
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended, KeyState
from trio_dask.client.core.local_leases import LocalLeases
from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.core.unsent_tasks import ExpectedGraph
from trio_dask.client.graph_parts import GraphRow, PartCutter
from trio_dask.ids import Incarnation, Key
from trio_dask.protocol import codec
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.messages import Goodbye, Message
from trio_dask.scheduler.core import Admit, CallAgain, Resume

PATIENCE_S: Final = 1.0
"""How long a client that lost its link may be away."""


class Unpicklable(Exception):
    """What a graph raises whose next part cannot be made."""


class SimClient:
    """The client core and what its user has seen."""

    def __init__(self, timeline: Timeline, scheduler: SimScheduler, network: Network, name: str) -> None:
        self.timeline = timeline
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.core = ClientCore()
        self.leases = LocalLeases(self.core, lambda: timeline.now)
        self.core.connected(scheduler.incarnation, None)
        hello = self._hello()
        scheduler.greet(hello)
        outcome = scheduler.core.begin_session(hello, timeline.now)
        assert isinstance(outcome, Admit)
        self.peer = outcome.peer
        self.link = scheduler.connect(codec.FROM_CLIENT, codec.TO_CLIENT, self.receive, self.peer)
        self.futures: dict[Key, KeyState] = {}
        self.values: list[tuple[KeyState, int]] = []
        """What its user has read, in order."""
        self.open = True
        self._graphs: deque[tuple[ExpectedGraph, Iterator[GraphPart]]] = deque()

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
            self.timeline.after(delay, partial(self._fetch, request))

    def read(self, state: KeyState) -> None:
        """Ask for the value of a future."""

        def reader(state: KeyState, frames: Sequence[Any] | None, reason: str) -> None:
            if frames is not None:
                self.values.append((state, int(bytes(frames[0]))))

        self.core.read(state, reader)
        self.pump()

    def send_graph(self, rows: Sequence[GraphRow], outputs: Sequence[Key], rng: random.Random) -> list[KeyState]:
        """Have a graph sent in parts, one after the other, after the graphs before it; futures for its outputs."""
        graph = self.core.expect_graph(dict.fromkeys(outputs, b""))
        if graph.outputs:
            self._graphs.append((graph, _parts(rows, outputs, rng)))
            if len(self._graphs) == 1:
                self._send_part_later(rng)
        return graph.states

    def _send_part_later(self, rng: random.Random) -> None:
        self.timeline.after(rng.choice((0.0, 0.001, 0.02, 0.1)), partial(self._send_part, rng))

    def _send_part(self, rng: random.Random) -> None:
        if not self.open:
            return
        graph, parts = self._graphs[0]
        error: Exception | None = None
        is_sent = False
        try:
            part = next(parts, None)
            is_sent = part is not None and self.core.submit_graph(graph, part)
        except Unpicklable as raised:
            error = raised
        if not is_sent:
            self.core.end_graph(graph, error)
            self._graphs.popleft()
        self.pump()
        if rng.random() < 0.1:  # with the part under way
            self.lose_link()
        if self._graphs:
            self._send_part_later(rng)

    def lose_link(self) -> None:
        """Its link is cut; it calls again in time, and goes on where it was."""
        if not self.open or not self.link.is_open:
            return
        rng, link = self.timeline.rng, self.link
        link.cut()

        self.timeline.after(rng.choice((0.0, 0.01, 0.2)), lambda: self.scheduler.lose(self.peer, link, "cut"))
        self.timeline.after(rng.choice((0.001, 0.05, 0.3)), self._come_back)

    def _come_back(self) -> None:
        if not self.open:
            return
        hello = self._hello(previous=self.name, scheduler=self.scheduler.incarnation, received=self.core.received)
        answer = self.scheduler.greet(hello)
        assert isinstance(answer, Welcome)
        assert answer.details["returned"], f"{self.name} came back in time, and cannot go on"
        rng = self.timeline.rng
        if rng.random() < 0.1:  # it gives this connection up and calls again
            self.timeline.after(rng.random() * 0.1, self._come_back)
        delay = rng.random() * 0.1 if rng.random() < 0.1 else 0.0  # the session may begin later
        self.timeline.after(delay, partial(self._begin_session, hello, answer.details["received"]))

    def _begin_session(self, hello: Hello, handled: int) -> None:
        if not self.open:
            return
        outcome = self.scheduler.core.begin_session(hello, self.timeline.now)
        if isinstance(outcome, CallAgain):
            return  # a later hello counts
        assert outcome == Resume(self.peer)
        self.link = self.scheduler.connect(codec.FROM_CLIENT, codec.TO_CLIENT, self.receive, self.peer)
        self.core.connected(self.scheduler.incarnation, handled)
        self.scheduler.settle()
        self.pump()

    def _hello(self, **details: object) -> Hello:
        grace = {"grace_s": PATIENCE_S, **details}
        return Hello(role="client", incarnation=Incarnation(self.name), name=self.name, details=grace)

    def close(self) -> None:
        """Leave in order."""
        self.open = False
        self.core.end_session(Ended(False, "closed"))
        self.link.to_scheduler.send([Goodbye("closed")])

    def vanish(self) -> None:
        """As by kill -9."""
        self.open = False
        link = self.link
        link.cut()
        self.timeline.after(self.timeline.rng.random() * 0.05, lambda: self.scheduler.lose(self.peer, link, "killed"))

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


def _parts(rows: Sequence[GraphRow], outputs: Sequence[Key], rng: random.Random) -> Iterator[GraphPart]:
    """Parts of a graph, cut anywhere. Some graphs fail before they have given all."""
    last_use = {name: number for number, row in enumerate(rows) for name in row.dependencies}
    cutter = PartCutter(last_use, dict.fromkeys(outputs))
    share = rng.choice((0.0, 0.1, 0.5, 1.0))
    failure = 0.05 if rng.random() < 0.1 else 0.0
    for row in rows:
        if rng.random() < failure:
            raise Unpicklable
        part = cutter.add(row)
        if part is None and rng.random() < share:
            part = cutter.cut()
        if part is not None:
            yield part
    part = cutter.cut()
    if part is not None:
        yield part
