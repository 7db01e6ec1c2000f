"""What the scheduler knows: tasks, workers, clients, contents, and the boxes of messages that wait to be sent.

Everything here is plain data. Ordered containers only (dicts and lists, never sets of objects), so that the order of
every decision follows from the order of the events alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from trio_dask.ids import Digest, Incarnation, Key, PeerId, RunId
from trio_dask.protocol.messages import Free, Message, Stuck
from trio_dask.scheduler.core.priority_queue import TaskQueue
from trio_dask.scheduler.core.task_states import (
    FORGOTTEN,
    RELEASED,
    Erred,
    Failure,
    InMemory,
    Phase,
    Processing,
    Queued,
    RetryHistory,
    Waiting,
)

__all__ = [
    "DEFAULT_OPTIONS",
    "FIRE_AND_FORGET",
    "FORGOTTEN",
    "PRUNE_QUEUES_FROM",
    "RELEASED",
    "Client",
    "ClosePeer",
    "CoreSettings",
    "Erred",
    "Failure",
    "InMemory",
    "LogLine",
    "Nanny",
    "Phase",
    "Processing",
    "Queue",
    "Queued",
    "Request",
    "RetryHistory",
    "State",
    "Stop",
    "StoredBlob",
    "StuckNews",
    "Task",
    "TaskOptions",
    "Waiting",
    "Worker",
    "WorkerInfo",
]

FIRE_AND_FORGET: Final = PeerId(0)
"""Stands among those who want a task until it has finished, when a client asked for `fire_and_forget`."""

STORY_LENGTH: Final = 10_000
"""Steps kept for `story`: about 2 MB, and the last second or so of a busy scheduler."""


PRUNE_QUEUES_FROM: Final = 1000
"""With so many different demands it is looked which of them are still made."""


class CoreSettings(NamedTuple):
    """What the decisions depend on. Times in seconds, sizes in bytes."""

    allowed_failures: int = 3
    """So many workers may die while they run a task; with the next one it fails."""
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
    reconnect_grace_s: float = 5.0
    """How long what a lost worker held and ran is kept for its return."""
    worker_ttl_s: float = float("inf")
    """Without a sign of life for so long, from itself or its nanny, a worker is lost."""
    lone_worker_ttl_s: float = float("inf")
    """The same for a worker without a nanny: nobody can vouch for it while a task holds the interpreter."""
    idle_timeout_s: float = float("inf")
    stuck_after_s: float = 10.0
    """Tasks for which there is no worker for so long are worth a sentence."""
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
    reconnect: bool = False
    """It comes back after a lost link, and brings what it has."""
    process: str = ""
    """What its nanny calls its process, if it has one."""
    metrics: Mapping[str, float] = {}
    """Its first figures; each heartbeat has new ones."""

    @property
    def own_name(self) -> str:
        """The name that it was given, or "": then `name` is the address of its first process."""
        return "" if "://" in self.name else self.name

    @property
    def title(self) -> str:
        """What people call it."""
        return self.own_name or self.address


class TaskOptions(NamedTuple):
    """The conditions under which tasks run; shared by all tasks submitted together."""

    priority: int = 0
    """The user's as a whole number in the same order; larger first."""
    retries: int = 0
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    time_limit_s: float | None = None


DEFAULT_OPTIONS: Final = TaskOptions()


class StoredBlob:
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
        self.guesses: dict[Task, None] = {}
        """Tasks that are being processed, whose duration could only be guessed."""


class Task:
    """One key: how to compute it, who needs it, and its phase."""

    __slots__ = (
        "blobs",
        "call",
        "dependencies",
        "dependents",
        "function",
        "history",
        "key",
        "options",
        "phase",
        "priority",
        "token",
        "waiters",
        "wanted",
    )

    def __init__(
        self,
        key: Key,
        priority: int,
        function: StoredBlob | None,
        call: bytes,
        options: TaskOptions,
        wanted: tuple[PeerId, ...],
    ) -> None:
        self.key = key
        self.priority = priority
        self.function = function
        """None for data that a client scattered: it cannot be computed again."""
        self.call = call
        self.options = options
        self.wanted = wanted
        """Clients that want the result (a tuple, since nearly all tasks share one of one)."""
        self.dependencies: tuple[Task, ...] = ()
        self.dependents: dict[Task, None] | None = None
        self.waiters = 0
        """Dependents that are waiting, queued or processing."""
        self.phase: Phase = RELEASED
        self.history: RetryHistory | None = None
        self.blobs: tuple[StoredBlob, ...] = ()
        self.token = b""

    def __repr__(self) -> str:
        return f"<Task {self.key} {self.phase.state}>"


class Queue:
    """Ready tasks with the same demands on a worker, and the workers that meet them."""

    __slots__ = ("eligible", "options", "phase", "tasks")

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.tasks = TaskQueue()
        self.eligible: dict[Worker, None] = {}
        self.phase = Queued(self)


class Worker:
    """One worker, through all sessions of one life: it may be away for a while, and come back with what it has.

    It is given work while it has slots. It has as many as it can run at once, its capacity; but none while it is away,
    until it has said what it brings back, and once it is leaving.
    """

    __slots__ = (
        "available",
        "away_said_at",
        "away_until",
        "backlog",
        "blocked_on_return",
        "capacity",
        "copies",
        "drains",
        "failed_readers",
        "former",
        "heard_at",
        "holds",
        "info",
        "last_metrics",
        "leaving",
        "managed_bytes",
        "occupancy_s",
        "peer",
        "processing",
        "queues",
        "returning",
        "self_tuple",
        "slots",
        "why_away",
    )

    def __init__(self, peer: PeerId, info: WorkerInfo) -> None:
        self.peer = peer
        self.info = info
        self.capacity = self.slots = info.nthreads
        self.processing: dict[RunId, Task] = {}
        self.occupancy_s = 0.0
        self.holds: dict[Task, None] = {}
        self.managed_bytes = 0
        self.backlog = TaskQueue()
        """Queued tasks whose inputs are here."""
        self.queues: list[Queue] = []
        """Queues with demands that this worker meets."""
        self.available = dict(info.resources)
        self.self_tuple = (self,)
        self.last_metrics: Mapping[str, object] = info.metrics
        self.heard_at = 0.0
        self.away_until: float | None = None
        self.away_said_at = float("inf")
        """When it is said that this worker is away, if it has neither come back nor been buried by then."""
        """While it is away: when it is given up."""
        self.why_away = ""
        self.former: tuple[Incarnation, ...] = ()
        """Earlier sessions, until it has shown that it knows of the one that it has now."""
        self.returning = False
        """It is back, and has not said yet what it brings."""
        self.blocked_on_return: dict[Task, None] = {}
        """Ready tasks that wait for its return, because it alone has inputs of theirs."""
        self.failed_readers: list[tuple[PeerId, Task]] = []
        """Clients that could not get a result from it while it was away."""
        self.leaving = ""
        """Why it is on its way out, if it is."""
        self.drains = False
        """It said so itself: it takes no runs any more, and cannot be kept."""
        self.copies: dict[Task, tuple[Worker | None, int]] = {}
        """Results that others are copying, because it leaves: who does, and how often it was tried."""

    def __repr__(self) -> str:
        return f"<Worker {self.info.name}>"


class Nanny(NamedTuple):
    """One session of a nanny: who it is, and what it calls the worker process that it last vouched for."""

    peer: PeerId
    name: str
    process: str


class StuckNews:
    """What a client was told of its tasks that wait for a worker, since they do."""

    __slots__ = ("aloud", "aloud_at", "since", "told")

    def __init__(self, since: float) -> None:
        self.since = since
        self.told: Stuck | None = None
        self.aloud = ""
        """What of that it was told to say aloud, last."""
        self.aloud_at = float("-inf")


class Client:
    """One client, from its first hello to its goodbye; its link may be cut meanwhile. See `clients`."""

    __slots__ = (
        "away_until",
        "blobs",
        "confirmed",
        "grace_s",
        "incarnation",
        "name",
        "owed",
        "peer",
        "received",
        "self_tuple",
        "sent",
        "stuck",
        "unconfirmed",
        "wants",
    )

    def __init__(self, peer: PeerId, incarnation: Incarnation, name: str, grace_s: float = 0.0) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.name = name
        self.grace_s = grace_s
        """How long it may be away. With 0 it does not come back, and nothing is kept for it."""
        self.away_until: float | None = None
        self.wants: dict[Task, None] = {}
        self.blobs: dict[StoredBlob, None] = {}
        self.self_tuple = (peer,)
        self.received = 0
        """Messages of it that were handled."""
        self.owed = 0
        """The weight of those since it was last told."""
        self.sent = 0
        """Messages to it."""
        self.confirmed = 0
        """How many of those stand before `unconfirmed`."""
        self.unconfirmed: deque[list[Message]] = deque()
        """What was sent to it, and has not been confirmed, in batches."""
        self.stuck: StuckNews | None = None
        """While tasks of it wait for a worker that is not there: what it was told of them."""


class ClosePeer(NamedTuple):
    """Ask of the service: end the session of this peer."""

    peer: PeerId
    reason: str


class Stop(NamedTuple):
    """Ask of the service: end the scheduler."""

    reason: str


class LogLine(NamedTuple):
    """Ask of the service: tell this to whoever runs the cluster; `serious` if it was not planned and costs work."""

    text: str
    serious: bool = False


Request: TypeAlias = ClosePeer | Stop | LogLine


class State:
    """The whole of it. Functions of this room work on one `State`; nobody outside the core touches it."""

    def __init__(self, settings: CoreSettings) -> None:
        self.settings = settings
        self.validating = settings.validate
        self.now = 0.0
        self.tasks: dict[Key, Task] = {}
        self.workers: dict[PeerId, Worker] = {}
        """Those that have a session."""
        self.away: dict[Incarnation, Worker] = {}
        """Those that lost theirs a moment ago, by the incarnation of that session."""
        self.leaving: dict[Worker, None] = {}
        self.leaving_at = float("inf")
        """When to look again what keeps those that are leaving."""
        self.heartbeat_check_at = float("inf")
        """When to look again who has given no sign of life."""
        self.stuck_at = float("inf")
        """When to look again which tasks wait for a worker that is not there."""
        self.stuck_queues: dict[Queue, float] = {}
        """Queues where some do, and since when; or infinity, once that was said."""
        self.idle_at = float("inf")
        """When to look again whether there is anything to do."""
        self.idle_mark: tuple[int, int, float] = (0, 0, 0.0)
        """The last run, the last submission, and since when they are the last."""
        self.departed: list[Worker] = []
        """Those that were buried since `place` was called."""
        self.processes: dict[str, Worker] = {}
        self.nannies: dict[PeerId, Nanny] = {}
        self.nanny_of: dict[str, PeerId] = {}
        """By what a nanny calls its process."""
        self.retirements: list[tuple[PeerId, int, dict[Worker, None], list[str]]] = []
        """Retirements under way: (client, request, workers that have not left yet, names of those that have)."""
        self.clients: dict[PeerId, Client] = {}
        """Those that are away are among them."""
        self.away_clients: dict[PeerId, Client] = {}
        self.names: dict[str, Worker] = {}
        self.addresses: dict[str, Worker] = {}
        self.incarnations: dict[str, Client] = {}
        self.blobs: dict[Digest, StoredBlob] = {}
        self.queue = Queue(DEFAULT_OPTIONS)
        self.queues: dict[tuple[object, ...], Queue] = {}
        self.prune_queues_at = PRUNE_QUEUES_FROM
        """With so many it is looked which are still used."""
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
