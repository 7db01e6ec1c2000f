"""What the scheduler knows: tasks, workers, clients, blobs, and the messages that wait to be sent.

Everything here is plain data. Ordered containers only (dicts and lists, never sets of objects), so that the order of
every decision follows from the order of the events alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from trio_dask.ids import Digest, Incarnation, Key, PeerId, RunId
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Free, Message, Stuck
from trio_dask.scheduler.core.pending_requests import PendingRequests
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
from trio_dask.scheduler.core.worker_index import WorkerIndex
from trio_dask.scheduler.core.worker_states import NEW, WorkerPhase

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
"""Stands among the clients that want a task until it has finished, if one asked for `fire_and_forget`."""

STORY_LENGTH: Final = 10_000
"""Steps kept for `story`: about 2 MB, and the last second or so of a busy scheduler."""


PRUNE_QUEUES_FROM: Final = 1000
"""Above this many task queues, empty ones are dropped."""


RETIREMENT_GAP_S: Final = 0.01
"""A check of retiring workers reads all that they hold, so there are no more than this allows."""

HEARTBEAT_CHECKS_PER_TTL: Final = 10
"""Checks within the time that a worker may be silent."""


class CoreSettings(NamedTuple):
    """What the decisions depend on. Times in seconds, sizes in bytes."""

    allowed_failures: int = 3
    """Workers that may die while they run a task; with the next one it fails."""
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
    """How long a worker may keep unneeded results when there is no other message for it."""
    restart_timeout_s: float = 30.0
    reconnect_grace_s: float = 5.0
    """How long what a lost worker held and ran is kept for its return."""
    worker_ttl_s: float = float("inf")
    """A worker is lost after this time without a sign of life from itself or its nanny."""
    lone_worker_ttl_s: float = float("inf")
    """The same for a worker without a nanny, which cannot give signs of life while a task holds the interpreter."""
    idle_timeout_s: float = float("inf")
    stuck_after_s: float = 10.0
    """Tasks that no worker can take are reported after this time."""
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
    """Its nanny's name for its process, if it has a nanny."""
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
    """One worker, through all sessions of one life: it may be away for a while, and come back with what it has."""

    __slots__ = (
        "available",
        "backlog",
        "capacity",
        "heard_at",
        "holds",
        "info",
        "last_metrics",
        "managed_bytes",
        "occupancy_s",
        "peer",
        "phase",
        "processing",
        "queues",
        "self_tuple",
        "slots",
    )

    def __init__(self, peer: PeerId, info: WorkerInfo) -> None:
        self.peer = peer
        """Its session, or, while it is away, its last one."""
        self.info = info
        self.phase: WorkerPhase = NEW
        self.capacity = info.nthreads
        """The runs that it can execute at once."""
        self.slots = 0
        """Its capacity while it is here; 0 in every other phase, so that it is given no work."""
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
        """The holders of a result that only this worker has: one tuple for all of them."""
        self.last_metrics: Mapping[str, object] = info.metrics
        self.heard_at = 0.0

    def __repr__(self) -> str:
        return f"<Worker {self.info.name} {self.phase.name}>"


class Nanny(NamedTuple):
    """One session of a nanny: its name, and its name for the worker process that it last reported alive."""

    peer: PeerId
    name: str
    process: str


class ClientAway:
    """The connection of a client was lost; what it wants is kept until its grace is over."""

    __slots__ = ("offered_to", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.offered_to: Hello | None = None
        """The last hello of the client that was answered with the offer to go on."""


class Offer(NamedTuple):
    """The answer to a hello said that its sender may go on with the session that it had."""

    hello: Hello
    subject: Worker | Client
    expires_at: float


class StuckNews:
    """What a client was told about its tasks that wait for a worker."""

    __slots__ = ("aloud", "aloud_at", "since", "told")

    def __init__(self, since: float) -> None:
        self.since = since
        self.told: Stuck | None = None
        self.aloud = ""
        """The sentence that it was last told to say aloud."""
        self.aloud_at = float("-inf")


class Client:
    """One client, from its first hello to its goodbye; its link may be cut meanwhile. See `clients`."""

    __slots__ = (
        "away",
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
        self.away: ClientAway | None = None
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
    """Ask of the service: tell this to the operator; `serious` if it was not planned and costs work."""

    text: str
    serious: bool = False


Request: TypeAlias = ClosePeer | Stop | LogLine


class State:
    """The whole of it. Functions of this room work on one `State`; no code outside the core touches it."""

    def __init__(self, settings: CoreSettings, incarnation: Incarnation) -> None:
        self.settings = settings
        self.incarnation = incarnation
        """The scheduler's own: a peer that resumes a session names the scheduler that it had it with."""
        self.last_peer = 0  # a session never gets 0: that is FIRE_AND_FORGET
        self.validating = settings.validate
        self.now = 0.0
        self.tasks: dict[Key, Task] = {}
        self.workers: dict[PeerId, Worker] = {}
        """Those that have a session."""
        self.away: dict[Worker, None] = {}
        """Those that lost theirs a moment ago."""
        self.retiring: dict[Worker, None] = {}
        self.retirements_at = float("inf")
        """When to check what keeps retiring workers: soon after a change that may matter to them."""
        self.retirements_checked_at = float("-inf")
        self.offers: dict[int, Offer] = {}
        """Hellos that were answered with the offer to go on, by identity; the oldest first."""
        self.heartbeat_check_at = float("inf")
        """When to check which workers have given no sign of life."""
        self.stuck_at = float("inf")
        """When to check which tasks wait for a worker that is not there."""
        self.stuck_queues: dict[Queue, float] = {}
        """Queues where some do, and since when; or infinity, once that was said."""
        self.idle_at = float("inf")
        """When to check whether there is anything to do."""
        self.idle_mark: tuple[int, int, float] = (0, 0, 0.0)
        """The last run, the last submission, and since when they are the last."""
        self.processes: dict[str, Worker] = {}
        self.nannies: dict[PeerId, Nanny] = {}
        self.nanny_of: dict[str, PeerId] = {}
        """By the nanny's name for its process."""
        self.pending = PendingRequests()
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
        """Empty queues are dropped when there are this many."""
        self.ready: list[Task] = []
        """Waiting tasks that miss nothing any more; `place` decides on them once per batch."""
        self.chain_candidates: list[Task] = []
        """Waiting tasks whose inputs may all be on one worker soon."""
        self.index = WorkerIndex(settings)
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

    def check_retirements_soon(self) -> None:
        """Something has changed that may let a retiring worker go. What changes at once is checked together."""
        if self.retiring and self.retirements_at == float("inf"):
            self.retirements_at = max(self.now, self.retirements_checked_at + RETIREMENT_GAP_S)

    def schedule_heartbeat_check(self) -> None:
        """Have the signs of life of workers checked in time."""
        if self.workers and self.heartbeat_check_at == float("inf"):
            shortest_s = min(self.settings.worker_ttl_s, self.settings.lone_worker_ttl_s)
            self.heartbeat_check_at = self.now + shortest_s / HEARTBEAT_CHECKS_PER_TTL

    def flush_frees(self, peer: PeerId) -> None:
        """Put what a worker is to drop into its box."""
        keys = self.frees.pop(peer)
        self.outboxes.setdefault(peer, []).append(Free(tuple(keys)))

    def note(self, key: Key, what: str) -> None:
        """Add a step to a task's story."""
        self.story.append((self.now, key, what))
