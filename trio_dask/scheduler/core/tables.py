"""What the scheduler knows: tasks, workers, clients, contents, and the boxes of messages that wait to be sent.

A task is always in exactly one phase, and a phase carries only what is true in it: a task that waits has a count of
missing inputs, a task that is being processed has a run and a worker, a task in memory has holders. The names of the
states are dask's.

Everything here is plain data. Ordered containers only (dicts and lists, never sets of objects), so that the order of
every decision follows from the order of the events alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple, TypeAlias

from trio_dask.identity import Digest, Incarnation, Key, PeerId, RunId
from trio_dask.protocol.messages import Free, Message
from trio_dask.scheduler.core.lines import Line

__all__ = [
    "DETACHED",
    "FORGOTTEN",
    "NO_TERMS",
    "RELEASED",
    "Client",
    "ClosePeer",
    "Content",
    "CoreSettings",
    "Erred",
    "Failure",
    "InMemory",
    "Past",
    "Phase",
    "Processing",
    "Queue",
    "Queued",
    "Request",
    "State",
    "Stop",
    "Task",
    "Terms",
    "Waiting",
    "Worker",
    "WorkerInfo",
]

DETACHED: Final = PeerId(0)
"""Stands among those who want a task until it has finished, when a client asked for `fire_and_forget`."""

STORY_LENGTH: Final = 10_000
"""Steps kept for `story`: about 2 MB, and the last second or so of a busy scheduler."""


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What the decisions depend on. Times in seconds, sizes in bytes."""

    allowed_failures: int = 3
    ahead_s: float = 0.025
    """Estimated work that a worker holds per slot, so that no slot waits for the network."""
    ahead_runs: int = 2000
    """Most runs that a worker holds, however short they are."""
    chain_runs: int = 1000
    """Most runs that a worker holds when more wait there for results of its own."""
    bandwidth_bytes_per_s: float = 500e6
    latency_s: float = 0.002
    balance_interval_s: float = 0.1
    free_delay_s: float = 0.02
    """How long a worker may keep what it is to drop, when there is nothing else to tell it."""
    restart_timeout_s: float = 30.0
    validate: bool = False


class WorkerInfo(NamedTuple):
    """What a worker says of itself when it registers."""

    name: str
    address: str
    host: str
    nthreads: int
    memory_limit: int
    resources: Mapping[str, float]
    incarnation: Incarnation
    pid: int


class Terms(NamedTuple):
    """The conditions under which tasks run; shared by all tasks submitted together."""

    user_priority: int = 0
    retries: int = 0
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    time_limit_s: float | None = None


NO_TERMS: Final = Terms()


class Content:
    """A blob that tasks refer to, opaque; for a function also how long its calls take.

    `references` counts tasks and clients; at zero the blob is dropped here and at the workers it was `shipped` to.
    """

    __slots__ = ("digest", "expected_s", "guesses", "pieces", "received", "references", "shipped", "total", "uploads")

    def __init__(self, digest: Digest, total: int) -> None:
        self.digest = digest
        self.total = total
        self.received = 0
        self.pieces: list[bytes] = []
        self.references = 0
        self.shipped: dict[Worker, None] = {}
        self.uploads: dict[Client, int] = {}
        """Clients that are still sending it, and how much has come from each."""
        self.expected_s: float | None = None
        """Smoothed duration of its calls, once one has finished."""
        self.guesses: list[Task] = []
        """Tasks that were assigned before that, whose duration could only be guessed."""


@dataclass(slots=True)
class Past:
    """What few tasks have: troubles behind them."""

    attempts: int = 1
    failures: int = 0
    deaths: list[str] = field(default_factory=list[str])
    suspect: bool = False
    """It may have been running on a worker that died; its next start is announced, so that blame is exact."""


class Failure(NamedTuple):
    """Why a task erred; shared by all tasks that erred with it."""

    blamed: Key
    kind: str
    error: bytes | None
    text: str
    details: Mapping[str, object]


# ------------------------------------------------------------------------------------------------------------ phases


class Released:
    """Known, not computed, not asked for."""

    __slots__ = ()
    state: ClassVar[str] = "released"
    is_queued: ClassVar[bool] = False


class Waiting:
    """Asked for; `missing` inputs are not in memory yet."""

    __slots__ = ("missing",)
    state: ClassVar[str] = "waiting"
    is_queued: ClassVar[bool] = False

    def __init__(self, missing: int) -> None:
        self.missing = missing


class Queued:
    """Ready, in a queue of the scheduler. One object serves all tasks of a queue."""

    __slots__ = ("queue",)
    is_queued: ClassVar[bool] = True

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    @property
    def state(self) -> str:
        return "queued" if self.queue.eligible else "no-worker"


class Processing:
    """Assigned to a worker as `run`; `missing` inputs are still being computed there."""

    __slots__ = ("expected_s", "missing", "retracting", "run", "started", "worker")
    state: ClassVar[str] = "processing"
    is_queued: ClassVar[bool] = False

    def __init__(self, run: RunId, worker: Worker, missing: int, expected_s: float) -> None:
        self.run = run
        self.worker = worker
        self.missing = missing
        self.expected_s = expected_s
        self.started = False
        self.retracting = False


class InMemory:
    """Computed; these workers hold the result."""

    __slots__ = ("holders", "nbytes", "type_name")
    state: ClassVar[str] = "memory"
    is_queued: ClassVar[bool] = False

    def __init__(self, holders: tuple[Worker, ...], nbytes: int, type_name: str) -> None:
        self.holders = holders
        self.nbytes = nbytes
        self.type_name = type_name


class Erred:
    """Failed, itself or an ancestor."""

    __slots__ = ("failure",)
    state: ClassVar[str] = "erred"
    is_queued: ClassVar[bool] = False

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Forgotten:
    """No longer in the table; only stale references see it."""

    __slots__ = ()
    state: ClassVar[str] = "forgotten"
    is_queued: ClassVar[bool] = False


Phase: TypeAlias = Released | Waiting | Queued | Processing | InMemory | Erred | Forgotten

RELEASED: Final = Released()
FORGOTTEN: Final = Forgotten()


class Task:
    """One key: how to compute it, who needs it, and its phase."""

    __slots__ = (
        "blobs",
        "call",
        "dependencies",
        "dependents",
        "function",
        "key",
        "past",
        "phase",
        "priority",
        "terms",
        "token",
        "waiters",
        "wanted",
    )

    def __init__(
        self,
        key: Key,
        priority: int,
        function: Content | None,
        call: bytes,
        terms: Terms,
        wanted: tuple[PeerId, ...],
    ) -> None:
        self.key = key
        self.priority = priority
        self.function = function
        """None for data that a client scattered: it cannot be computed again."""
        self.call = call
        self.terms = terms
        self.wanted = wanted
        """Clients that want the result (a tuple, since nearly all tasks share one of one)."""
        self.dependencies: tuple[Task, ...] = ()
        self.dependents: dict[Task, None] | None = None
        self.waiters = 0
        """Dependents that are waiting, queued or processing."""
        self.phase: Phase = RELEASED
        self.past: Past | None = None
        self.blobs: tuple[Content, ...] = ()
        self.token = b""

    def __repr__(self) -> str:
        return f"<Task {self.key} {self.phase.state}>"


class Queue:
    """Ready tasks with the same demands on a worker, and the workers that meet them."""

    __slots__ = ("eligible", "line", "phase", "terms")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.line = Line()
        self.eligible: dict[Worker, None] = {}
        self.phase = Queued(self)


class Worker:
    """One registration of a worker."""

    __slots__ = (
        "available",
        "backlog",
        "holds",
        "info",
        "last_metrics",
        "managed_bytes",
        "occupancy_s",
        "peer",
        "processing",
        "queues",
        "slots",
        "sole",
    )

    def __init__(self, peer: PeerId, info: WorkerInfo) -> None:
        self.peer = peer
        self.info = info
        self.slots = info.nthreads
        self.processing: dict[RunId, Task] = {}
        self.occupancy_s = 0.0
        self.holds: dict[Task, None] = {}
        self.managed_bytes = 0
        self.backlog = Line()
        """Queued tasks whose inputs are here."""
        self.queues: list[Queue] = []
        """Queues with demands that this worker meets."""
        self.available = dict(info.resources)
        self.sole = (self,)
        self.last_metrics: Mapping[str, object] = {}

    def __repr__(self) -> str:
        return f"<Worker {self.info.name}>"


class Client:
    """One session of a client."""

    __slots__ = ("contents", "incarnation", "name", "peer", "sole", "wants")

    def __init__(self, peer: PeerId, incarnation: Incarnation, name: str) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.name = name
        self.wants: dict[Task, None] = {}
        self.contents: dict[Content, None] = {}
        self.sole = (peer,)


class ClosePeer(NamedTuple):
    """Ask of the service: end the session of this peer."""

    peer: PeerId
    reason: str


class Stop(NamedTuple):
    """Ask of the service: end the scheduler."""

    reason: str


Request: TypeAlias = ClosePeer | Stop


class State:
    """The whole of it. Functions of this room work on one `State`; nobody outside the core touches it."""

    def __init__(self, settings: CoreSettings) -> None:
        self.settings = settings
        self.validating = settings.validate
        self.now = 0.0
        self.tasks: dict[Key, Task] = {}
        self.workers: dict[PeerId, Worker] = {}
        self.clients: dict[PeerId, Client] = {}
        self.names: dict[str, Worker] = {}
        self.addresses: dict[str, Worker] = {}
        self.incarnations: dict[str, Client] = {}
        self.contents: dict[Digest, Content] = {}
        self.queue = Queue(NO_TERMS)
        self.queues: dict[tuple[object, ...], Queue] = {}
        self.ready: list[Task] = []
        """Waiting tasks that miss nothing any more; `place` decides on them once per batch."""
        self.ahead: list[Task] = []
        """Waiting tasks whose inputs may all be on one worker soon."""
        self.touched: dict[Worker, None] = {}
        """Workers that have had a change that may give them room."""
        self.roomy: OrderedDict[Worker, None] = OrderedDict()
        self.idle: OrderedDict[Worker, None] = OrderedDict()
        self.surplus: OrderedDict[Worker, None] = OrderedDict()
        """Workers with more runs than slots: the ones that an idle worker can take from."""
        self.last_run = 0
        self.last_submission = 0
        self.outboxes: dict[PeerId, list[Message]] = {}
        self.frees: dict[PeerId, list[Key]] = {}
        """Keys that workers are to drop, gathered into one message each; `send` keeps them in their place."""
        self.free_at = float("inf")
        """When they are sent at the latest; each wakes a worker that perhaps has nothing else to do."""
        self.requests: list[Request] = []
        self.story: deque[tuple[float, Key, str]] = deque(maxlen=STORY_LENGTH)
        """The last steps of all tasks: when, which, what."""
        self.waits: list[tuple[PeerId, int, int]] = []
        """Clients that wait for a number of workers: (client, request, number)."""
        self.restarts: list[tuple[PeerId, int, dict[str, None], float]] = []
        """Restarts under way: (client, request, names that are still to come back, deadline)."""
        self.balance_at = float("inf")

    def send(self, peer: PeerId, message: Message) -> None:
        """Put a message into a peer's box."""
        if self.frees and peer in self.frees:
            self.flush_frees(peer)
        box = self.outboxes.get(peer)
        if box is None:
            self.outboxes[peer] = [message]
        else:
            box.append(message)

    def free(self, peer: PeerId, key: Key) -> None:
        """Have a worker drop a key."""
        keys = self.frees.get(peer)
        if keys is None:
            if not self.frees:
                self.free_at = self.now + self.settings.free_delay_s
            self.frees[peer] = [key]
        else:
            keys.append(key)

    def flush_frees(self, peer: PeerId) -> None:
        """Put what a worker is to drop into its box."""
        keys = self.frees.pop(peer)
        self.outboxes.setdefault(peer, []).append(Free(tuple(keys)))

    def note(self, key: Key, what: str) -> None:
        """Add a line to a task's story."""
        self.story.append((self.now, key, what))
