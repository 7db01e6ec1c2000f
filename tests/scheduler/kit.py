"""A scheduler core with scripted peers: every message goes through the codec, every event is followed by `check`."""

from __future__ import annotations

from typing import Any, TypeVar

from trio_dask.ids import Incarnation, PeerId, RunId
from trio_dask.protocol import codec
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import CoreSettings, SchedulerCore, WorkerInfo
from trio_dask.scheduler.core.invariants import check_empty

FUNCTION = b"f" * 16
M = TypeVar("M")


class Peer:
    """One session: what it was sent, and a way to answer."""

    def __init__(self, kit: Kit, peer: PeerId, allowed: codec.Allowed, name: str) -> None:
        self.kit = kit
        self.peer = peer
        self.allowed = allowed
        self.name = name
        self.inbox: list[Any] = []

    def send(self, *messages: m.Message) -> None:
        """The peer sends these, in one batch."""
        self.kit.deliver(self, messages)

    def take(self, kind: type[M]) -> list[M]:
        """Messages of a kind that arrived since the last time, which are taken out of the inbox."""
        taken = [message for message in self.inbox if isinstance(message, kind)]
        self.inbox = [message for message in self.inbox if not isinstance(message, kind)]
        return taken

    def leave(self, *, reason: str = "connection lost", expected: bool = False) -> None:
        """The session ends."""
        self.kit.peers.pop(self.peer)
        self.kit.core.remove_peer(self.peer, reason, self.kit.now, expected=expected)
        self.kit.settle()


class Worker(Peer):
    address = ""
    info: WorkerInfo

    def come_back(self) -> bool:
        """The same process has dialled again, after its session was lost or not; False if it cannot go on."""
        self.kit.last += 1
        previous = self.info.incarnation
        self.peer = PeerId(self.kit.last)
        self.info = self.info._replace(incarnation=Incarnation(f"i{self.peer}"))
        self.inbox.clear()
        self.kit.peers[self.peer] = self
        back = self.kit.core.resume_worker(self.peer, previous, self.info, self.kit.now)
        self.kit.settle()
        return back

    def bring(self, *held: tuple[str, int], runs: tuple[RunId, ...] = ()) -> None:
        """Tell what came along: keys with the runs that made them (-1: fetched), and runs that are under way."""
        self.send(m.Inventory(tuple((key, run, 28, "int") for key, run in held), runs))

    def runs(self) -> list[m.Run]:
        """Runs that arrived since the last time."""
        return self.take(m.Run)

    def finish(self, run: m.Run, *, nbytes: int = 28, value: bytes | None = b"v", seconds: float = 0.001) -> None:
        self.send(m.RunFinished(run.run, nbytes, "int", seconds, value))

    def fail(self, run: m.Run, text: str = "ValueError: no") -> None:
        self.send(m.RunFailed(run.run, "exception", b"pickled", text, 0.001))

    def finish_all(self) -> int:
        """Finish runs until no more come; returns how many."""
        count = 0
        while runs := self.runs():
            for run in runs:
                self.finish(run)
            count += len(runs)
        return count


class Client(Peer):
    def submit(self, *keys: str, needs: tuple[str, ...] = (), **extra: Any) -> None:
        tokens = extra.pop("tokens", ())
        rows = tuple(needs for _ in keys) if needs else ()
        self.send(m.Submit(FUNCTION, keys, tuple(b"call" for _ in keys), rows, (), tokens, extra))

    def ready(self) -> list[str]:
        return [message.key for message in self.take(m.KeyReady)]

    def failed(self) -> list[str]:
        return [message.key for message in self.take(m.KeyFailed)]


class Nanny(Peer):
    pass


class Kit:
    def __init__(self, **settings: Any) -> None:
        self.core = SchedulerCore(CoreSettings(**{"validate": True, "free_delay_s": 0.0, **settings}))
        self.now = 0.0
        self.peers: dict[PeerId, Peer] = {}
        self.last = 0

    def worker(
        self,
        name: str = "",
        *,
        nthreads: int = 1,
        resources: dict[str, float] | None = None,
        reconnect: bool = False,
        process: str = "",
        address: str = "",
    ) -> Worker:
        self.last += 1
        peer = PeerId(self.last)
        name = name or f"w{peer}"
        worker = Worker(self, peer, codec.TO_WORKER, name)
        worker.address = address or f"tcp://host-{peer}:9000"
        info = worker.info = WorkerInfo(
            name,
            worker.address,
            f"host-{peer}",
            nthreads,
            0,
            resources or {},
            Incarnation(f"i{peer}"),
            4000 + peer,
            reconnect,
            process,
        )
        self.peers[peer] = worker
        refusal = self.core.add_worker(peer, info, self.now)
        assert refusal is None, refusal
        self.settle()
        return worker

    def client(self, name: str = "client") -> Client:
        self.last += 1
        peer = PeerId(self.last)
        client = Client(self, peer, codec.TO_CLIENT, name)
        self.peers[peer] = client
        self.core.add_client(peer, Incarnation(f"c{peer}"), name, self.now)
        client.send(m.Blob(FUNCTION, 3, b"fun"))
        return client

    def nanny(self, process: str) -> Nanny:
        self.last += 1
        nanny = Nanny(self, PeerId(self.last), codec.TO_NANNY, process)
        self.peers[nanny.peer] = nanny
        self.core.add_nanny(nanny.peer, nanny.name, process, self.now)
        return nanny

    def deliver(self, sender: Peer, messages: tuple[m.Message, ...]) -> None:
        kinds = {Client: codec.FROM_CLIENT, Worker: codec.FROM_WORKER, Nanny: codec.FROM_NANNY}
        allowed = kinds[type(sender)]
        for message in codec.decode(codec.encode(messages), allowed):
            self.core.handle(sender.peer, message, self.now)
        self.settle()

    def settle(self) -> None:
        self.core.place(self.now)
        self.flush()

    def flush(self) -> None:
        for peer, messages in self.core.drain().items():
            receiver = self.peers.get(peer)
            assert receiver is not None, "a message to a peer that is gone"
            receiver.inbox += codec.decode(codec.encode(messages), receiver.allowed)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        if self.core.next_deadline() <= self.now:
            self.core.tick(self.now)
        self.flush()

    def states(self) -> dict[str, str]:
        return {key: task.phase.state for key, task in self.core.state.tasks.items()}

    def assert_empty(self) -> None:
        """All clients gone: nothing may be left."""
        for peer in list(self.peers.values()):
            if isinstance(peer, Client):
                peer.leave()
        check_empty(self.core.state)


def run_ids(runs: list[m.Run]) -> tuple[RunId, ...]:
    return tuple(run.run for run in runs)
