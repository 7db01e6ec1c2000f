"""Every message of the wire protocol: its fields, its tag, and who sends it to whom.

A message is a named tuple without behaviour; it names no socket. On the wire it is the msgpack row `[tag, *fields]`
(`codec`). Fields are flat and positional; rare ones stand in one `extra` map, so that the common row stays short.
Only clients and workers can read the opaque fields `call`, `value`, `error` and `data`.

The messages of one connection arrive in the order in which they were sent, and the roles rely on it: a blob comes
before the first message that refers to it, a `Free` after the last `Run` that needed the key.

To add a message, define it here with a tag that was never used, add it to the union of its direction, and write its
handler in the room that receives it; `tests/architecture/test_message_handlers.py` fails until all three are there.

This file is long because it is a reference: one list in which every message can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from trio_dask.ids import Digest, Key, RunId

_M = TypeVar("_M")

TAGS: dict[int, type[Any]] = {}
"""The message of each tag. A tag never gets a second meaning."""


def tagged(tag: int) -> Callable[[type[_M]], type[_M]]:
    """Give a message the tag that stands for it on the wire."""

    def register(kind: type[_M]) -> type[_M]:
        if TAGS.setdefault(tag, kind) is not kind:
            raise ValueError(f"{kind.__name__} and {TAGS[tag].__name__} have the same tag, {tag}")
        return kind

    return register


# ---------------------------------------------------------------------------------------------- in several directions


@tagged(1)
class Blob(NamedTuple):
    """A piece of content that later messages refer to by digest: a function, or a large argument.

    The pieces of one blob follow one another; it is complete when `total` bytes have come. Most blobs have one piece.
    Each blob crosses a connection once, until `ForgetBlobs`.
    """

    digest: Digest
    total: int
    data: bytes
    """The sender may give a view of bytes instead."""


@tagged(2)
class ForgetBlobs(NamedTuple):
    """The sender will not refer to these blobs again without sending them anew."""

    digests: tuple[Digest, ...]


@tagged(3)
class Goodbye(NamedTuple):
    """The sender leaves on purpose. An end of the stream after it is silent; without it, it is a loss.

    Every peer may send it. The connection takes it in, so no room has a handler for it.
    """

    reason: str


@tagged(34)
class Reply(NamedTuple):
    """The answer to a `Query`, `Restart`, `RestartWorkers`, `Retire`, `Rebalance`, `Replicate`,
    `ManageMemory`, `Coordinate`, `SetMetadata`, `RegisterPlugin`, `UnregisterPlugin`, `CallNanny` or `Control`.
    """

    request: int
    payload: Any


@tagged(35)
class Received(NamedTuple):
    """The sender has handled this many messages, counted over all connections of the session.

    Client and scheduler send it to each other from time to time. The receiver may then forget these messages: after a
    lost connection each side repeats exactly what the other has not handled.
    """

    number: int


@tagged(123)
class SetUpPlugin(NamedTuple):
    """Set up this plugin, unless that was done or begun already; `PluginDone` answers. `plugin` names it for ever."""

    plugin: str
    name: str
    data: tuple[bytes, ...]


@tagged(124)
class TearDownPlugin(NamedTuple):
    """Tear down this plugin, if it was set up; `PluginDone` answers."""

    plugin: str


@tagged(125)
class PluginDone(NamedTuple):
    """A worker or nanny has set up a plugin, or torn it down, or that raised.

    `error` is the pickled exception, or None if there is only `text`; both are empty if all went well.
    """

    plugin: str
    torn_down: bool
    error: bytes | None
    text: str


@tagged(54)
class Leave(NamedTuple):
    """To a worker: end this session and exit with 0; with `restart`, drop everything, and register again afresh if it
    shares its process.

    To a nanny: end the worker's process, as planned; with `restart`, start another, else exit with 0.
    """

    reason: str
    restart: bool


@tagged(56)
class SchedulerStops(NamedTuple):
    """The session is over, because the scheduler stops; another one may be started in its place.

    A worker leaves or waits for the next scheduler, as its own settings say. If the whole cluster ends, every worker
    and nanny gets a `Leave` instead.
    """


@tagged(130)
class LogEvent(NamedTuple):
    """Keep this event under these topics, and tell the clients that subscribe to them. `payload` is a pickled value.

    Clients and workers send it.
    """

    topics: tuple[str, ...]
    payload: bytes


# ---------------------------------------------------------------------------------------------- client -> scheduler


@tagged(10)
class Submit(NamedTuple):
    """Tasks that call one function. The client wants all of them, from now until `Release`.

    `function` names a blob. `keys` and `calls` are parallel. `dependencies` and `blobs` are parallel to them, or empty
    if no call has any. `tokens` is empty for keys that the client derived from the call itself; for keys that the user
    chose it is parallel to `keys` and fingerprints the call: the same key with another token is a conflict.
    A call whose first byte is 0 is a reference: the next 16 bytes name the blob that holds the call.
    Tasks of one client run in the order of submission where nothing else decides.
    `extra` may hold: priority (a number, larger first), retries (int), workers (names, addresses or hosts),
    allow_other_workers (bool), resources (name -> amount), time_limit (seconds), actor (True), span (names),
    output ("forward": what they print goes to the clients), executor (the name of one that its worker has).
    """

    function: Digest
    keys: tuple[Key, ...]
    calls: tuple[bytes, ...]
    dependencies: tuple[tuple[Key, ...], ...]
    blobs: tuple[tuple[Digest, ...], ...]
    tokens: tuple[bytes, ...]
    extra: Mapping[str, Any]


@tagged(22)
class SubmitGraph(NamedTuple):
    """A part of a graph: tasks of several functions, each after those it needs, in the order in which they shall run.

    All columns are parallel to `keys`, or empty where that is said. `functions` names blobs, `function_of` has the
    number of each task's function there; `options` holds what `Submit.extra` may hold, and `options_of` (empty: the
    first of them for all, or none) numbers of it. `dependencies` has numbers: below the count of keys they are tasks of
    this part, from there on items of `inputs`, which are other tasks that the scheduler knows. `calls`, `blobs` and
    `tokens` are as in `Submit`.

    The client wants only the tasks with the numbers in `wanted`. Those in `held` are kept for parts that come later,
    until one of these has their keys in `unheld`. The others live as long as tasks that need them.
    """

    functions: tuple[Digest, ...]
    function_of: tuple[int, ...]
    keys: tuple[Key, ...]
    calls: tuple[bytes, ...]
    inputs: tuple[Key, ...]
    dependencies: tuple[tuple[int, ...], ...]
    blobs: tuple[tuple[Digest, ...], ...]
    tokens: tuple[bytes, ...]
    options: tuple[Mapping[str, Any], ...]
    options_of: tuple[int, ...]
    wanted: tuple[int, ...]
    held: tuple[int, ...]
    unheld: tuple[Key, ...]


@tagged(11)
class Want(NamedTuple):
    """The client wants these keys, which another client submitted. `Dropped` answers for unknown ones."""

    keys: tuple[Key, ...]


@tagged(12)
class Release(NamedTuple):
    """The client no longer wants these keys."""

    keys: tuple[Key, ...]


@tagged(13)
class Cancel(NamedTuple):
    """Give up these tasks and their dependents: for this client, or with `force` for every client."""

    keys: tuple[Key, ...]
    force: bool


@tagged(14)
class Retry(NamedTuple):
    """Run these erred tasks again, from the erred task at the root of each."""

    keys: tuple[Key, ...]


@tagged(15)
class FireAndForget(NamedTuple):
    """Finish these tasks whether or not any client still wants them."""

    keys: tuple[Key, ...]


@tagged(16)
class FetchFailed(NamedTuple):
    """The client could not fetch `key` from the worker at `address`."""

    key: Key
    address: str


@tagged(17)
class Query(NamedTuple):
    """A question about the state of the cluster, answered by one `Reply` with the same `request`.

    `what` names a row of the table at the end of `scheduler/core/queries.py`; `arguments` (keys, or workers) narrows
    the answer, and empty means all. `wait_for_workers` (a number) is answered once there are as many workers,
    `ready_workers` like `scheduler_info`, once these workers have set up the plugins with which they began, and
    `nannies` like it, once the nannies of these workers have sessions, or after a while.
    """

    request: int
    what: str
    arguments: tuple[str, ...]


@tagged(18)
class Restart(NamedTuple):
    """Forget every task of every client and restart all workers; a `Reply` says when as many are there again."""

    request: int


@tagged(20)
class RestartWorkers(NamedTuple):
    """Have these workers (names, addresses or hosts) begin afresh; a `Reply` says when they are back."""

    request: int
    workers: tuple[str, ...]


@tagged(21)
class Retire(NamedTuple):
    """Have workers leave without losing anything; a `Reply` says when they have left, or refuses.

    `workers` are names, addresses or hosts; if there are none, the scheduler chooses `number` workers. The payload of
    the answer is a map: `retired` (names of those that left) and, if that was impossible, `refused` (a sentence).
    """

    request: int
    workers: tuple[str, ...]
    number: int


@tagged(140)
class Rebalance(NamedTuple):
    """Move these results (none: all) between these workers (names, addresses or hosts; none: all) to even out bytes.

    A `Reply` says when the copies are there; its payload is a map with `missing`, the keys of results that could not be
    copied and stay where they are, or with `refused`, a sentence. A result whose old place is still needed goes later.
    """

    request: int
    keys: tuple[Key, ...]
    workers: tuple[str, ...]


@tagged(141)
class Replicate(NamedTuple):
    """Have `number` (0: all) of these workers hold each of these results; each gives it to `fan_out` others at once.

    If there are more, surplus ones are dropped as soon as nothing needs them, unless all are to `stay`. The answer is
    as for `Rebalance`.
    """

    request: int
    keys: tuple[Key, ...]
    number: int
    workers: tuple[str, ...]
    fan_out: int
    stay: bool = False


@tagged(142)
class ManageMemory(NamedTuple):
    """Switch the active memory manager on (`start`) or off (`stop`), have it work now (`run_once`), or ask (`running`).

    A `Reply` says whether it is on.
    """

    request: int
    action: str


@tagged(27)
class Coordinate(NamedTuple):
    """Use a lock, an event, a queue, ... of this `kind` and `name`; one `Reply` answers, perhaps much later.

    `kind` names a row of the table in `scheduler/core/coordination/table.py`, `operation` and `arguments` what the file
    of that kind reads. The payload of the reply is a pair: `done` and a value, `refused` or `closed` and a sentence, or
    `ended` and None, after an `EndRequest`.
    """

    request: int
    kind: str
    name: str
    operation: str
    arguments: tuple[Any, ...]


@tagged(28)
class EndRequest(NamedTuple):
    """The client waits no longer for a `Coordinate` request, or releases the lock or lease that the answer gave it.

    If `is_taken`, it has taken over the futures in the values of the answer instead; the scheduler has kept their
    results until then. The request may be unknown.
    """

    request: int
    kind: str
    name: str
    is_taken: bool


@tagged(120)
class SetMetadata(NamedTuple):
    """Keep metadata at this path of texts. `value` is a map from texts to such values, or a tuple: a pickle's frames.

    A `Reply` says that it is there. The question `metadata` reads it.
    """

    request: int
    path: tuple[str, ...]
    value: Any


@tagged(121)
class RegisterPlugin(NamedTuple):
    """Have every worker, or every nanny (`kind`), set up this plugin, now or when it joins; a `Reply` has the outcomes.

    `data` are the frames of its pickle. A plugin of the same kind and name is replaced; if `idempotent`, it stays, and
    this one is not registered. The payload of the answer is a map: `outcomes` has for each peer its address, the
    pickled exception (or None) and its text, which is empty if all went well. If any failed, nobody keeps the plugin.
    """

    request: int
    kind: str
    name: str
    data: tuple[bytes, ...]
    idempotent: bool


@tagged(122)
class UnregisterPlugin(NamedTuple):
    """Have every worker or nanny tear down this plugin; the answer is as for `RegisterPlugin`, or has `refused`."""

    request: int
    kind: str
    name: str


@tagged(127)
class CallNanny(NamedTuple):
    """Call a function in the process of the nanny of the worker at this address (`client.run`).

    `data` are the frames of its pickle. The payload of the `Reply` is a map: `ok`, `text` and `data` as in
    `NannyAnswer`, or `refused`, a sentence.
    """

    request: int
    worker: str
    data: tuple[bytes, ...]


@tagged(131)
class Subscribe(NamedTuple):
    """The client wants a `TopicEvent` for each event of this topic from now on, or (not `wanted`) no longer.

    Every client gets those of the topics `print` and `warn`.
    """

    topic: str
    wanted: bool


@tagged(19)
class Shutdown(NamedTuple):
    """End the cluster: workers, clients and scheduler."""


FromClient = (
    Blob
    | ForgetBlobs
    | Received
    | Submit
    | SubmitGraph
    | Want
    | Release
    | Cancel
    | Retry
    | FireAndForget
    | FetchFailed
    | Query
    | Restart
    | RestartWorkers
    | Retire
    | Rebalance
    | Replicate
    | ManageMemory
    | Coordinate
    | EndRequest
    | SetMetadata
    | RegisterPlugin
    | UnregisterPlugin
    | CallNanny
    | LogEvent
    | Subscribe
    | Shutdown
)


# ---------------------------------------------------------------------------------------------- scheduler -> client


@tagged(30)
class KeyReady(NamedTuple):
    """The result of `key` exists. A small one comes along in `value` (pickled, without out-of-band buffers).

    `holders` are the addresses of the workers with a replica; it is empty when `value` is there.
    """

    key: Key
    nbytes: int
    type_name: str
    value: bytes | None
    holders: tuple[str, ...]


@tagged(31)
class KeyFailed(NamedTuple):
    """`key` has erred. `blamed` is the task that failed: `key` itself or an ancestor.

    `kind` is `exception` (then `error` is the pickled exception, or None if there is only `text`), `killed`
    (`details["deaths"]` has a line for each attempt), `conflict`, `timeout`, `actor` (it is lost) or `refused`.
    `text` says it in words (for an exception: qualified type, message and traceback as text, see
    `protocol.pickling`). `details` may hold: worker (name), address, attempt (int), duration_s; input (key: that of a
    task that was refused, which the scheduler does not know).
    """

    key: Key
    blamed: Key
    kind: str
    error: bytes | None
    text: str
    details: Mapping[str, Any]


@tagged(32)
class KeyPending(NamedTuple):
    """`key` was ready or erred and is being computed again."""

    key: Key


@tagged(33)
class Dropped(NamedTuple):
    """`key` will not be computed: `reason` is `cancelled` or `lost`; `text` says why in words."""

    key: Key
    reason: str
    text: str


@tagged(36)
class Stuck(NamedTuple):
    """Why tasks of this client wait for a worker that is not there: one sentence, empty if no task waits any more.

    `aloud`: it has lasted long enough, or changed enough, to tell it to users who did not ask. `reasons` pairs each
    reason with the keys that it holds up, directly or through their dependencies; None stands for all keys of the
    client. If there are very many keys, some are left out.
    """

    text: str
    aloud: bool
    reasons: tuple[tuple[str, tuple[Key, ...] | None], ...]


@tagged(132)
class TopicEvent(NamedTuple):
    """An event of a topic, with the scheduler's time in seconds since 1970.

    `payload` is that of a `LogEvent`, or a plain value of a plugin alone in a tuple.
    """

    topic: str
    at: float
    payload: Any


ToClient = KeyReady | KeyFailed | KeyPending | Dropped | Reply | Received | Stuck | TopicEvent


# ---------------------------------------------------------------------------------------------- scheduler -> worker


@tagged(50)
class Run(NamedTuple):
    """Run one task; its outcome quotes `run`.

    `dependencies` lists each key that the call needs with its value, if that is a small one, or with the addresses to
    fetch it from; no address means that the worker has it, or computes it by an earlier `Run`. Lower `priority`, the
    order of submission, runs first. `extra` may hold: announce (bool: send `Started` and flush it before the task
    starts), time_limit (seconds), attempt (int, absent means 1), actor (True: keep the object, and take a proxy for the
    result), priority (int, absent means 0: the user's, which comes before that order; lower runs first), output
    ("forward": so does what it prints), executor (the name of one that the worker has, in which it runs). If a client
    has `wanted` the result so far, a small one is to come along with the report, and so is a very small one, of
    `SMALL_VALUE_BYTES`, if it is `shared`: tasks depend on it that may run elsewhere.
    """

    run: RunId
    key: Key
    function: Digest
    call: bytes
    dependencies: tuple[tuple[Key, tuple[str, ...] | bytes], ...]
    priority: int
    extra: Mapping[str, Any]
    wanted: bool = True
    shared: bool = False


@tagged(51)
class ReturnRuns(NamedTuple):
    """Give back those of these runs that have not started; `RunsReturned` or its outcome answers for each."""

    runs: tuple[RunId, ...]


@tagged(52)
class CancelRuns(NamedTuple):
    """The scheduler no longer wants these runs, and expects no answer.

    The worker drops those that have not started, cancels those that run, and drops a result that one of them has just
    given, unless a later run or a fetch has brought the same key again.
    """

    runs: tuple[RunId, ...]


@tagged(53)
class Free(NamedTuple):
    """Drop these results."""

    keys: tuple[Key, ...]


@tagged(55)
class Acquire(NamedTuple):
    """Fetch these keys, each from one of the addresses with it, and keep them.

    `Replicas` tells what has come, `NotAcquired` what no address could give; both quote the `order`. A `Free` withdraws
    the order for a key. The scheduler uses it to save the results of a worker that is leaving, and to have results
    where clients want them.
    """

    keys: tuple[tuple[Key, tuple[str, ...]], ...]
    order: int = 0


@tagged(57)
class HandOverActor(NamedTuple):
    """Have the actor that is the result of `key` rest, once the call that runs has ended, and pickle its object.

    `ActorHeld` answers: then the pickle is there for others to fetch, as the value of `ids.actor_state(key)`. Calls
    wait until `SettleActor` comes.
    """

    key: Key
    order: int


@tagged(58)
class TakeActor(NamedTuple):
    """Fetch the pickled object of this actor from `address`, and make it anew; `run` is the one that made it first.

    `ActorTaken` answers. Calls wait until `SettleActor` comes.
    """

    key: Key
    run: RunId
    order: int
    address: str


@tagged(59)
class SettleActor(NamedTuple):
    """The actor of `key` lives `here`: it goes on; or elsewhere: what is here of its object takes no calls any more.

    A worker that has the actor, and neither hands it over nor takes it over, does nothing.
    """

    key: Key
    here: bool


ToWorker = (
    Blob
    | ForgetBlobs
    | Run
    | ReturnRuns
    | CancelRuns
    | Free
    | Acquire
    | HandOverActor
    | TakeActor
    | SettleActor
    | SetUpPlugin
    | TearDownPlugin
    | Leave
    | SchedulerStops
)


# ---------------------------------------------------------------------------------------------- worker -> scheduler


@tagged(70)
class RunFinished(NamedTuple):
    """A run gave a result, which this worker now holds. A small one comes along in `value` (pickled)."""

    run: RunId
    nbytes: int
    type_name: str
    duration_s: float
    value: bytes | None


@tagged(71)
class RunFailed(NamedTuple):
    """A run gave no result.

    `kind` is "exception" (it raised, or its result cannot be pickled), "timeout" (it hit its time limit), or
    "reschedule" (it asks to be run elsewhere).
    """

    run: RunId
    kind: str
    error: bytes | None
    text: str
    duration_s: float


@tagged(72)
class Started(NamedTuple):
    """These runs are running now. Sent before the start where `announce` asks for it, else for long ones."""

    runs: tuple[RunId, ...]


@tagged(73)
class RunsReturned(NamedTuple):
    """These runs have not started and never will here; the scheduler places them anew."""

    runs: tuple[RunId, ...]


@tagged(74)
class InputMissing(NamedTuple):
    """The worker gives `run` back, because it could not get `key` from `address` (empty: it was not here)."""

    run: RunId
    key: Key
    address: str


@tagged(75)
class Replicas(NamedTuple):
    """This worker has fetched these keys from others, by this `order` or (0) for its runs, and now holds replicas."""

    keys: tuple[Key, ...]
    order: int = 0


@tagged(76)
class Scattered(NamedTuple):
    """A client (named by its incarnation) has put this value here."""

    key: Key
    nbytes: int
    type_name: str
    client: str


@tagged(77)
class Lost(NamedTuple):
    """This worker no longer holds these keys, although the scheduler did not free them."""

    keys: tuple[Key, ...]


@tagged(78)
class Capacity(NamedTuple):
    """From now on this many tasks can run here at once; a thread that ignores its cancellation keeps its slot."""

    slots: int


@tagged(79)
class Heartbeat(NamedTuple):
    """Periodic figures for people and dashboards: `cpu_percent`, `memory_bytes`, `managed_bytes` and others.

    The scheduler itself reads `paused`, and `bandwidth_bytes_per_s`: how fast large values come from others.
    """

    metrics: Mapping[str, Any]


@tagged(80)
class Inventory(NamedTuple):
    """What a worker has when it comes back after a lost connection; everything it had to say before precedes this.

    `held` has a row for each value: key, the run that made it (-1: it was fetched or scattered), size in bytes, type.
    `runs` are the runs that wait, are ready or run here. The scheduler answers with `Free` and `CancelRuns` for what
    it no longer wants.
    """

    held: tuple[tuple[Key, int, int, str], ...]
    runs: tuple[RunId, ...]


@tagged(81)
class Drain(NamedTuple):
    """This worker is leaving: it takes no more runs, has given back what has not started, and finishes the rest.

    The scheduler has other workers copy what only this one holds, then sends `Leave`.
    """

    reason: str


@tagged(82)
class NotAcquired(NamedTuple):
    """No address could give these keys of an `Acquire`; with `order` 0, of any."""

    keys: tuple[Key, ...]
    order: int = 0


@tagged(83)
class ActorHeld(NamedTuple):
    """By this `order` an actor rests, and its pickled object is there; or the `text` says why it goes on here."""

    key: Key
    order: int
    run: RunId
    text: str


@tagged(84)
class ActorTaken(NamedTuple):
    """By this `order` an actor is here, and waits; or the `text` says why not. A small proxy comes in `value`."""

    key: Key
    order: int
    value: bytes | None
    text: str


FromWorker = (
    RunFinished
    | RunFailed
    | Started
    | RunsReturned
    | InputMissing
    | Replicas
    | Scattered
    | Lost
    | Capacity
    | Heartbeat
    | Inventory
    | Drain
    | NotAcquired
    | ActorHeld
    | ActorTaken
    | PluginDone
    | LogEvent
)


# ---------------------------------------------------------------------------------------------- nanny <-> scheduler


@tagged(90)
class WorkerAlive(NamedTuple):
    """The worker's process that this nanny calls `process` is alive, and not stopped."""

    process: str


@tagged(91)
class WorkerExited(NamedTuple):
    """The worker's process that this nanny calls `process` has ended.

    `planned`: the nanny ended it, or it ended in good order, and no task is to blame. `cause` is one line. If `exact`,
    `runs` are the runs that were running then; else the scheduler has to go by what it knows. `details` are figures
    and last words for people.
    """

    process: str
    planned: bool
    cause: str
    exact: bool
    runs: tuple[RunId, ...]
    details: Mapping[str, Any]


@tagged(126)
class PluginsSent(NamedTuple):
    """A nanny has been sent all plugins with which it begins; it starts its worker once these are set up."""


@tagged(128)
class NannyCall(NamedTuple):
    """Call the function of this pickle in this process; `NannyAnswer` answers, with the same `number`.

    A call belongs to the session in which it came: the next one has no answer for it.
    """

    number: int
    data: tuple[bytes, ...]


@tagged(129)
class NannyAnswer(NamedTuple):
    """What the function of a `NannyCall` returned (`ok`) or raised (`text` says what); `data` is its pickle."""

    number: int
    ok: bool
    text: str
    data: tuple[bytes, ...]


FromNanny = WorkerAlive | WorkerExited | PluginDone | NannyAnswer
ToNanny = Leave | SchedulerStops | SetUpPlugin | TearDownPlugin | PluginsSent | NannyCall


# ---------------------------------------------------------------------------------------------- programs and scripts


@tagged(95)
class Control(NamedTuple):
    """A program or a script asks a scheduler, worker or nanny; one `Reply` with the same `request` answers.

    `command` is one of: identity, status, restart, terminate. A scheduler also knows `overview`, `demand`,
    `retire_idle` and `look_back`, a nanny `logs`.
    """

    request: int
    command: str
    arguments: Mapping[str, Any]


FromControl = Control
ToControl = Reply


# ---------------------------------------------------------------------------------------------- the data plane


@tagged(100)
class Fetch(NamedTuple):
    """Send me these keys; `Value` or `Absent` answers for each, in this order."""

    keys: tuple[Key, ...]


@tagged(101)
class Value(NamedTuple):
    """A pickled value follows as raw bytes: `sizes[0]` of pickle, then each out-of-band buffer."""

    key: Key
    sizes: tuple[int, ...]


@tagged(102)
class Absent(NamedTuple):
    """The key is not here, or (`text` not empty) could not be sent, for the reason given."""

    key: Key
    text: str


@tagged(103)
class Put(NamedTuple):
    """Keep this value, which follows as raw bytes like that of `Value`; `PutDone` answers."""

    key: Key
    client: str
    type_name: str
    sizes: tuple[int, ...]


@tagged(104)
class PutDone(NamedTuple):
    """The value is stored."""

    key: Key
    nbytes: int


@tagged(105)
class Call(NamedTuple):
    """Call a function in this process, outside the task slots (`client.run`); it follows as raw bytes, pickled."""

    sizes: tuple[int, ...]


@tagged(106)
class CallResult(NamedTuple):
    """What the function of `Call` returned (`ok`) or raised; it follows as raw bytes, pickled."""

    ok: bool
    text: str
    sizes: tuple[int, ...]


@tagged(107)
class MemoryOffered(NamedTuple):
    """The raw bytes of the message after this one lie in the memory of process `pid`, each buffer at its place.

    The process has the bytes of `liveness_token` at `token_address` as long as they are valid. `MemoryRead` answers.
    """

    pid: int
    token_address: int
    liveness_token: bytes
    places: tuple[int, ...]


@tagged(108)
class MemoryRead(NamedTuple):
    """The offered memory has been read, or (not `ok`) could not be: then the raw bytes follow after all."""

    ok: bool


@tagged(110)
class ActorCall(NamedTuple):
    """Call the method `name` of the actor that the run `run` of `key` made, or read an attribute, if no bytes follow.

    The pickled arguments follow as raw bytes. An `ActorAnswer` has the same `number`. After the first of these a data
    channel carries nothing else: calls and answers cross each other, in any number and order.
    """

    number: int
    key: Key
    run: RunId
    name: str
    sizes: tuple[int, ...]


@tagged(111)
class ActorAnswer(NamedTuple):
    """The pickled `value`, or the `error` that the call raised (with its `text`), follows as raw bytes.

    With `gone` the actor was released, and the call was not made.
    """

    number: int
    outcome: str
    text: str
    sizes: tuple[int, ...]


@tagged(112)
class ActorMoved(NamedTuple):
    """The actor that the run `run` of `key` made is not here: the scheduler knows where it lives, if it does.

    All calls of it that were made here were answered before this; no other was made, or will be. The caller makes these
    where the actor is, and ends this line once no other actor has an answer to give on it.
    """

    key: Key
    run: RunId


DataRequest = Fetch | Put | Call | ActorCall
DataAnswer = Value | Absent | PutDone | CallResult | ActorAnswer | ActorMoved
MemoryLending = MemoryOffered | MemoryRead
"""Either end of a data channel, as a part of sending a value; the channel takes these in itself."""

OnDataPlane = DataRequest | DataAnswer | MemoryLending | Goodbye


# ---------------------------------------------------------------------------------------------- all of them


class Direction(NamedTuple):
    """Who sends which messages to whom."""

    sender: str
    receiver: str
    messages: Any
    """A message, or a union of messages."""


DIRECTIONS = (
    Direction("any peer", "any peer", Goodbye),
    Direction("client", "scheduler", FromClient),
    Direction("scheduler", "client", ToClient),
    Direction("worker", "scheduler", FromWorker),
    Direction("scheduler", "worker", ToWorker),
    Direction("nanny", "scheduler", FromNanny),
    Direction("scheduler", "nanny", ToNanny),
    Direction("program", "scheduler, worker, nanny", FromControl),
    Direction("scheduler, worker, nanny", "program", ToControl),
    Direction("client, worker", "worker", DataRequest),
    Direction("worker", "client, worker", DataAnswer),
    Direction("client, worker", "client, worker", MemoryLending),
)

Message = FromClient | ToClient | FromWorker | ToWorker | FromNanny | ToNanny | FromControl | ToControl | OnDataPlane
