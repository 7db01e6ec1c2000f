"""What the scheduler knows: tasks, workers, clients, blobs, and the messages that wait to be sent.

Everything here is plain data. Ordered containers only (dicts and lists, never sets of objects), so that the order of
every decision follows from the order of the events alone. This file is long because it is one list of all there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from trio_dask.ids import Digest, Incarnation, Key, PeerId, RunId, places_of
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Free, Message, Stuck
from trio_dask.protocol.wire_constants import PRIORITY_BITS
from trio_dask.scheduler.core.coordination.table import Coordination
from trio_dask.scheduler.core.copy_records import ActorMove, Copy, MemoryManager, Spread
from trio_dask.scheduler.core.events import EventRing
from trio_dask.scheduler.core.pending_requests import PendingRequests
from trio_dask.scheduler.core.priority_queue import TaskQueue
from trio_dask.scheduler.core.run_record import RunRecord
from trio_dask.scheduler.core.task_states import RELEASED, InMemory, Phase, Queued, RetryHistory
from trio_dask.scheduler.core.topics import Topics
from trio_dask.scheduler.core.worker_index import WorkerIndex
from trio_dask.scheduler.core.worker_states import NEW, WorkerPhase

FIRE_AND_FORGET: Final = PeerId(0)
"""Stands among the clients that want a task until it has finished, if one asked for `fire_and_forget`.

Clients are above it, and hear of what they want; those that only hold a task are below it (`Client.holder`).
"""

COORDINATION: Final = PeerId(-(2**62))
"""Stands there for all that keeps a result in `State.coordinated`."""

STORY_LENGTH: Final = 10_000
"""Steps kept for `story`: about 2 MB, and the last second or so of a busy scheduler."""

PRUNE_QUEUES_FROM: Final = 1000
"""Above this many task queues, empty ones are dropped."""

RETIREMENT_GAP_S: Final = 0.01
"""The least time between two checks of retiring workers, since each reads all that they hold."""

SUBMISSION_MASK: Final = (1 << PRIORITY_BITS) - 1
"""The part of a task's priority that says when the task was submitted."""

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
    bandwidth_bytes_per_s: float = 100e6
    """How fast workers fetch, as long as none has measured it."""
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
    memory_manager_starts: bool = False
    memory_manager_interval_s: float = 2.0
    unix_offset_s: float = 0.0
    """From the clock of `now` to seconds since 1970."""
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
    nanny: str = ""
    """Where its nanny answers `rpc`, if it does."""
    metrics: Mapping[str, float] = {}
    """Its first metrics; each heartbeat brings new ones."""

    @property
    def own_name(self) -> str:
        """The name that it was given, or "": then `name` is the address of its first process."""
        return "" if "://" in self.name else self.name

    @property
    def title(self) -> str:
        """What people call it."""
        return self.own_name or self.address

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether one of these is its name, its host or its address."""
        mine = (self.name, self.host, *places_of(self.address))
        return any(name in mine for name in names)


class TaskOptions(NamedTuple):
    """The conditions under which tasks run; shared by all tasks submitted together."""

    priority: int = 0
    """The user's as a whole number in the same order; larger first."""
    retries: int = 0
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    time_limit_s: float | None = None
    actor: bool = False
    """The worker keeps the object that the task makes. The result is a proxy, and stands or falls with that worker."""
    output: str = ""
    """"forward": what the task prints goes to the clients."""
    executor: str = ""
    """The name of one that its worker has, if not the worker's own threads."""
    span: tuple[str, ...] = ()
    """A name in parts, for people."""


DEFAULT_OPTIONS: Final = TaskOptions()


@dataclass(slots=True, eq=False, repr=False)
class StoredBlob:
    """A blob that tasks refer to, opaque; for a function also how long its calls take."""

    digest: Digest
    total: int
    received: int = 0
    pieces: list[bytes] = field(default_factory=list[bytes])
    references: int = 0
    """Of tasks and clients; at zero the blob is dropped, here and at the workers that have it."""
    shipped: dict[Worker, None] = field(default_factory=dict["Worker", None])
    uploads: dict[Client, int] = field(default_factory=dict["Client", int])
    """Clients that are still sending it, and how much has come from each."""
    expected_s: float | None = None
    """Smoothed duration of its calls, once one has finished."""
    guesses: dict[Task, None] = field(default_factory=dict["Task", None])
    """Tasks that are being processed, whose duration could only be guessed."""


@dataclass(slots=True, eq=False, repr=False)
class Task:
    """One key: how to compute it, which clients and tasks need it, and its phase."""

    key: Key
    priority: int
    function: StoredBlob | None
    """None for data that a client scattered: it cannot be computed again."""
    call: bytes
    options: TaskOptions
    wanted: tuple[PeerId, ...]
    """Clients that want the result, and `Client.holder`s (a tuple, since nearly all tasks share one of one)."""
    dependencies: tuple[Task, ...] = ()
    dependents: dict[Task, None] | None = None
    waiters: int = 0
    """Dependents that are waiting, queued or processing."""
    phase: Phase = RELEASED
    history: RetryHistory | None = None
    blobs: tuple[StoredBlob, ...] = ()
    token: bytes = b""

    @property
    def submission(self) -> int:
        """Its number among all tasks, in the order in which they were submitted."""
        return self.priority & SUBMISSION_MASK

    def is_home_of_actor(self, worker: Worker) -> bool:
        """Whether the result is an actor that lives on this worker; others have copies of its proxy."""
        return self.options.actor and type(self.phase) is InMemory and self.phase.holders[0] is worker

    def __repr__(self) -> str:
        return f"<Task {self.key} {self.phase.state}>"


class Plugin(NamedTuple):
    """A plugin as a client has registered it, opaque; see `plugins`."""

    id: str
    kind: str
    name: str
    data: tuple[bytes, ...]


class PluginOrder(NamedTuple):
    """A request to set up or tear down a plugin, the sessions that have not answered, and the outcomes by address.

    An outcome is a pickled exception or None, and its text, which is empty if there was none.
    """

    client: PeerId
    request: int
    plugin: Plugin
    tears_down: bool
    waiting: dict[PeerId, None]
    outcomes: dict[str, tuple[bytes | None, str]]


class NannyCall(NamedTuple):
    """A function that a nanny runs for a client; `worker` is the address by which the client named the nanny."""

    client: PeerId
    request: int
    nanny: PeerId
    worker: str


class Queue:
    """Ready tasks with the same demands on a worker, and the workers that meet them."""

    __slots__ = ("eligible", "options", "phase", "tasks")

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.tasks = TaskQueue()
        self.eligible: dict[Worker, None] = {}
        self.phase = Queued(self)


@dataclass(slots=True, eq=False, repr=False)
class Worker:
    """One worker, through all sessions of one life: it may be away for a while, and come back with what it has."""

    peer: PeerId
    """Its session, or, while it is away, its last one."""
    info: WorkerInfo
    phase: WorkerPhase = NEW
    capacity: int = field(init=False)
    """The runs that it can execute at once."""
    slots: int = 0
    """Its capacity while it is here; 0 in every other phase, so that it is given no work."""
    processing: dict[RunId, Task] = field(default_factory=dict[RunId, "Task"])
    occupancy_s: float = 0.0
    holds: dict[Task, None] = field(default_factory=dict["Task", None])
    managed_bytes: int = 0
    backlog: TaskQueue = field(default_factory=TaskQueue)
    """Queued tasks whose inputs are here."""
    queues: list[Queue] = field(default_factory=list["Queue"])
    """Queues with demands that this worker meets."""
    available: dict[str, float] = field(init=False)
    self_tuple: tuple[Worker] = field(init=False)
    """The holders of a result that only this worker has: one tuple for all of them."""
    last_metrics: Mapping[str, object] = field(init=False)
    heard_at: float = 0.0
    setting_up: dict[str, None] = field(default_factory=dict[str, None])
    """Plugins that it sets up before it is given work."""

    def __post_init__(self) -> None:
        self.capacity = self.info.nthreads
        self.available = dict(self.info.resources)
        self.self_tuple = (self,)
        self.last_metrics = self.info.metrics

    def __repr__(self) -> str:
        return f"<Worker {self.info.name} {self.phase.name}>"


@dataclass(slots=True, eq=False, repr=False)
class ClientAway:
    """The connection of a client was lost; what it wants is kept until its grace is over."""

    until: float
    offered_to: Hello | None = None
    """The last hello of the client that was answered with the offer to go on."""


class Offer(NamedTuple):
    """The answer to a hello said that its sender may go on with the session that it had."""

    hello: Hello
    subject: Worker | Client
    expires_at: float


@dataclass(slots=True, eq=False, repr=False)
class StuckNews:
    """What a client was told about its tasks that wait for a worker."""

    since: float
    told: Stuck | None = None
    aloud: str = ""
    """The sentence that it was last told to say aloud."""
    aloud_at: float = float("-inf")


@dataclass(slots=True, eq=False, repr=False)
class Client:
    """One client, from its first hello to its goodbye; its connection may be lost meanwhile. See `clients`."""

    peer: PeerId
    incarnation: Incarnation
    name: str
    grace_s: float = 0.0
    """How long it may be away. With 0 it does not come back, and nothing is kept for it."""
    worker: Worker | None = None
    """Whose tasks use it: its session ends when that worker is lost."""
    away: ClientAway | None = None
    """None while it has a connection."""
    wants: dict[Task, None] = field(default_factory=dict["Task", None])
    holds: dict[Task, int] = field(default_factory=dict["Task", int])
    """Tasks that it does not want to hear of, but needs for parts that it has not sent yet: of how many graphs."""
    blobs: dict[StoredBlob, None] = field(default_factory=dict["StoredBlob", None])
    self_tuple: tuple[PeerId] = field(init=False)
    holder: PeerId = field(init=False)
    """Stands among the clients that want a task while this client holds it; below 0."""
    received: int = 0
    """Messages from it that were handled."""
    owed: int = 0
    """The weight of those since it was last told."""
    sent: int = 0
    """Messages to it."""
    confirmed: int = 0
    """The number of those that stand before `unconfirmed`."""
    unconfirmed: deque[list[Message]] = field(default_factory=deque[list[Message]])
    """What was sent to it, and has not been confirmed, in batches."""
    unread_bytes: int = 0
    """What the events of topics among these take."""
    missed: int = 0
    """How many events it did not get, as too many were unread."""
    stuck: StuckNews | None = None
    """While tasks of it wait for a worker that is not there: what it was told of them."""

    def __post_init__(self) -> None:
        self.self_tuple = (self.peer,)
        self.holder = PeerId(-self.peer)


class ClosePeer(NamedTuple):
    """Asks the service to end the session of this peer."""

    peer: PeerId
    reason: str


class Stop(NamedTuple):
    """Asks the service to end the scheduler."""

    reason: str


class LogLine(NamedTuple):
    """Asks the service to tell this to the operator; `serious` if it was not planned and costs work."""

    text: str
    serious: bool = False


class ServiceQuestion(NamedTuple):
    """A client asks what only the service knows, such as `logs`, with these arguments. It answers by `reply`."""

    peer: PeerId
    request: int
    what: str
    arguments: tuple[str, ...]


Request: TypeAlias = ClosePeer | Stop | LogLine | ServiceQuestion


class State:
    """The whole of it. Functions of this room work on one `State`; no code outside the core touches it."""

    def __init__(self, settings: CoreSettings, incarnation: Incarnation) -> None:
        self.settings = settings
        self.incarnation = incarnation
        """The scheduler's own: a peer that resumes a session names the scheduler that it had it with."""
        self.last_peer = 0  # a session never gets 0: that is FIRE_AND_FORGET
        self.validating = settings.validate
        self.events: EventRing | None = None
        """What happens is noted here, if somebody listens."""
        self.watches_tasks = self.validating
        """Whether each step of a task is to be checked, or noted among the events."""
        self.hears_tasks = False
        self.now = 0.0
        self.tasks: dict[Key, Task] = {}
        self.workers: dict[PeerId, Worker] = {}
        """Workers with a session."""
        self.away: dict[Worker, None] = {}
        """Workers that lost theirs a moment ago."""
        self.removed: list[Worker] = []
        """Workers that have left or are lost, and whose tasks' clients have not been removed yet."""
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
        """Queues with such tasks, and since when; infinity once the operator was told."""
        self.idle_at = float("inf")
        """When to check whether there is anything to do."""
        self.idle_mark: tuple[int, int, float] = (0, 0, 0.0)
        """The last run, the last submission, and since when they are the last."""
        self.processes: dict[str, Worker] = {}
        self.nannies: dict[PeerId, str] = {}
        """By session: the nanny's name for the worker process that it last reported alive."""
        self.nanny_of: dict[str, PeerId] = {}
        """By the nanny's name for its process."""
        self.topics = Topics()
        self.run_record: RunRecord | None = None
        """None while no client has asked for it."""
        self.pending = PendingRequests()
        self.coordination = Coordination()
        self.coordinated: dict[Task, int] = {}
        """Results in queues, variables and datasets, or on their way from there to a client: how many times."""
        self.metadata: dict[str, Any] = {}
        """See `metadata`, which alone works on this and the next two."""
        self.metadata_of_tasks: dict[Key, Task] = {}
        """The tasks whose metadata it has, by key."""
        self.sweep_metadata_at = 100
        self.plugins: dict[tuple[str, str], Plugin] = {}
        """By kind and name, in the order in which they are set up."""
        self.plugin_orders: list[PluginOrder] = []
        self.last_plugin = 0
        self.nanny_calls: dict[int, NannyCall] = {}
        """By number: what nannies run for clients."""
        self.last_nanny_call = 0
        self.clients: dict[PeerId, Client] = {}
        """Clients that are away are among them."""
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
        """Waiting tasks that no longer miss an input; `place` decides on them once per batch."""
        self.chain_candidates: list[Task] = []
        """Waiting tasks whose inputs may all be on one worker soon."""
        self.index = WorkerIndex(settings)
        self.copies: dict[Task, dict[Worker, Copy]] = {}
        """Copies under way, by result and by the worker that makes them. See `copies`."""
        self.actor_moves: dict[Task, ActorMove] = {}
        """Actors on their way to another worker."""
        self.spreads: dict[Task, list[Spread]] = {}
        """What clients want copied, until it is; a copy is under way for each of them."""
        self.surplus: dict[tuple[Task, Worker], InMemory] = {}
        """Replicas, of these very results, to be dropped once nothing needs them."""
        self.manager: MemoryManager | None = None
        """None while it is off."""
        self.moved: list[tuple[Task, Worker, InMemory]] = []
        """Replicas that are surplus since the last batch of events."""
        self.surplus_at = float("inf")
        """When to look at them, if no event comes before."""
        self.surplus_read_at = float("-inf")
        self.last_order = 0
        self.last_run = 0
        self.last_submission = 0
        self.outboxes: dict[PeerId, list[Message]] = {}
        self.frees: dict[PeerId, list[Key]] = {}
        """Keys that workers are to drop, gathered into one message each; `send` keeps them in their place."""
        self.free_at = float("inf")
        """When they are sent at the latest. Each message wakes a worker that perhaps has nothing else to do."""
        self.requests: list[Request] = []
        self.story: deque[tuple[float, Key, str]] = deque(maxlen=STORY_LENGTH)
        """The last steps of all tasks: when, which, what."""
        self.balance_at = float("inf")
        self.bandwidth_bytes_per_s = settings.bandwidth_bytes_per_s
        """How fast workers fetch, smoothed over what they report."""

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
        """A change may let a retiring worker go. Changes that come together are checked together."""
        if self.retiring and self.retirements_at == float("inf"):
            self.retirements_at = max(self.now, self.retirements_checked_at + RETIREMENT_GAP_S)

    def schedule_heartbeat_check(self) -> None:
        """Schedule the next check for signs of life of workers."""
        if self.workers and self.heartbeat_check_at == float("inf"):
            shortest_s = min(self.settings.worker_ttl_s, self.settings.lone_worker_ttl_s)
            self.heartbeat_check_at = self.now + shortest_s / HEARTBEAT_CHECKS_PER_TTL

    def flush_frees(self, peer: PeerId) -> None:
        """Put what a worker is to drop into its box."""
        keys = self.frees.pop(peer)
        self.outboxes.setdefault(peer, []).append(Free(tuple(keys)))

    def listen(self, events: EventRing, *, to_tasks: bool) -> None:
        """Note what happens among these events from now on, and the steps of tasks, which are many, if asked."""
        self.events = events
        self.hears_tasks = to_tasks
        self.watches_tasks = self.validating or to_tasks

    def note(self, key: Key, what: str) -> None:
        """Add a step to a task's story."""
        self.story.append((self.now, key, what))
