"""A scheduler core with scripted peers: every message goes through the codec, every event is followed by `check`."""

from __future__ import annotations

from typing import Any, TypeVar

from trio_dask.ids import Incarnation, PeerId, RunId
from trio_dask.protocol import codec
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.scheduler.core import Admit, CoreSettings, LogLine, Resume, SchedulerCore, WorkerInfo
from trio_dask.scheduler.core.invariants import check_empty
from trio_dask.scheduler.core.state import State

FUNCTION = b"f" * 16
SCHEDULER = Incarnation("s1")
M = TypeVar("M")


def worker_hello(info: WorkerInfo, **details: Any) -> Hello:
    """What a worker like this says when it connects."""
    told = {**info._asdict(), **details}
    return Hello(role="worker", incarnation=told.pop("incarnation"), name=told.pop("name"), details=told)


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
        self.kit.core.end_session(self.peer, reason, self.kit.now, expected=expected)
        self.kit.settle()


class Worker(Peer):
    address = ""
    info: WorkerInfo

    def come_back(self) -> bool:
        """The same process has dialled again, after its session was lost or not; False if it cannot go on."""
        previous = self.info.incarnation
        self.info = self.info._replace(incarnation=self.kit.next_incarnation("i"))
        self.inbox.clear()
        hello = worker_hello(self.info, previous=previous, scheduler=SCHEDULER)
        answer = self.kit.core.greet(hello, self.kit.now)
        if not isinstance(answer, Welcome) or not answer.details.get("returned"):
            return False
        outcome = self.kit.core.begin_session(hello, self.kit.now)
        assert isinstance(outcome, Resume)
        self.peer = outcome.peer
        self.kit.peers[self.peer] = self
        self.kit.settle()
        return True

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
        self.core = SchedulerCore(CoreSettings(**{"validate": True, "free_delay_s": 0.0, **settings}), SCHEDULER)
        self.now = 0.0
        self.peers: dict[PeerId, Peer] = {}
        self.last = 0

    @property
    def state(self) -> State:
        """What the core knows."""
        return self.core._state

    def next_incarnation(self, prefix: str) -> Incarnation:
        self.last += 1
        return Incarnation(f"{prefix}{self.last}")

    def join(self, hello: Hello) -> PeerId:
        """A new peer is welcomed and begins its session."""
        answer = self.core.greet(hello, self.now)
        assert isinstance(answer, Welcome), answer
        outcome = self.core.begin_session(hello, self.now)
        assert isinstance(outcome, Admit), outcome
        return outcome.peer

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
        incarnation = self.next_incarnation("i")
        number = self.last
        name = name or f"w{number}"
        address = address or f"tcp://host-{number}:9000"
        host = f"host-{number}"
        pid = 4000 + number
        info = WorkerInfo(
            name, address, host, nthreads, 0, resources or {}, incarnation, pid, reconnect=reconnect, process=process
        )
        worker = Worker(self, self.join(worker_hello(info)), codec.TO_WORKER, name)
        worker.address = address
        worker.info = info
        self.peers[worker.peer] = worker
        line = self.core.requests.pop()
        assert isinstance(line, LogLine)
        assert line.text.startswith("Registered worker")
        self.settle()
        return worker

    def client(self, name: str = "client", worker: str = "") -> Client:
        details = {"worker": worker} if worker else {}
        peer = self.join(Hello(role="client", incarnation=self.next_incarnation("c"), name=name, details=details))
        client = Client(self, peer, codec.TO_CLIENT, name)
        self.peers[peer] = client
        client.send(m.Blob(FUNCTION, 3, b"fun"))
        return client

    def nanny(self, process: str) -> Nanny:
        peer = self.join(Hello(role="nanny", name=process, details={"process": process}))
        nanny = Nanny(self, peer, codec.TO_NANNY, process)
        self.peers[peer] = nanny
        self.settle()
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
        return {key: task.phase.state for key, task in self.state.tasks.items()}

    def assert_empty(self) -> None:
        """All clients gone: nothing may be left."""
        for peer in list(self.peers.values()):
            if isinstance(peer, Client):
                peer.leave()
        check_empty(self.state)


def run_ids(runs: list[m.Run]) -> tuple[RunId, ...]:
    return tuple(run.run for run in runs)
