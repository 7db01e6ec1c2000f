"""Every message of the wire protocol, as a named tuple; one union per direction.

A message is a value: it carries no behaviour, and names no socket. On the wire it is the msgpack row `[tag, *fields]`
(`codec`). Fields are flat and positional; what is rare stands in one `extra` map, so that the common row stays short.
Fields called `call`, `value`, `error` and `data` are opaque: only the client and the workers can read them.

What workers say stands in `worker_messages`, the data plane in `data_messages`, nannies and control in
`nanny_messages`; all of it can be had from here.

Order matters and is guaranteed: the messages of one connection arrive in the order in which they were sent. So a blob
stands before the first message that refers to it, a `Free` after the last `Run` that needed the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trio_dask.ids import Digest, Key, RunId
from trio_dask.protocol.data_messages import (
    Absent,
    Call,
    CallResult,
    Fetch,
    MemoryOffered,
    MemoryRead,
    Put,
    PutDone,
    Value,
)
from trio_dask.protocol.nanny_messages import Control, Obituary, Vouch
from trio_dask.protocol.worker_messages import (
    Capacity,
    Drain,
    Heartbeat,
    Inventory,
    Lost,
    Missing,
    NotAcquired,
    Replicas,
    Returned,
    RunFailed,
    RunFinished,
    Started,
    Stored,
)

__all__ = [
    "TAGS",
    "Absent",
    "Acquire",
    "Blob",
    "Call",
    "CallResult",
    "Cancel",
    "CancelRuns",
    "Capacity",
    "Control",
    "Detach",
    "Drain",
    "Dropped",
    "Fetch",
    "ForgetBlobs",
    "Free",
    "FromClient",
    "FromControl",
    "FromNanny",
    "FromWorker",
    "Goodbye",
    "Heartbeat",
    "Inventory",
    "KeyFailed",
    "KeyPending",
    "KeyReady",
    "Leave",
    "Lost",
    "MemoryOffered",
    "MemoryRead",
    "Message",
    "Missing",
    "NotAcquired",
    "Obituary",
    "OnDataPlane",
    "Put",
    "PutDone",
    "Query",
    "Received",
    "Release",
    "Replicas",
    "Reply",
    "Restart",
    "RestartWorkers",
    "Retire",
    "Retract",
    "Retry",
    "Returned",
    "Run",
    "RunFailed",
    "RunFinished",
    "SchedulerStops",
    "Shutdown",
    "Started",
    "Stored",
    "Submit",
    "ToClient",
    "ToControl",
    "ToNanny",
    "ToWorker",
    "Unreachable",
    "Value",
    "Vouch",
    "Want",
]

# ---------------------------------------------------------------------------------------------- both directions


class Blob(NamedTuple):
    """A piece of content that later messages refer to by digest: a function, or a large argument.

    Pieces of one blob follow one another in order; it is complete when `total` bytes have come. A blob of one piece is
    the rule. Each blob crosses a connection once, until `ForgetBlobs`.
    """

    digest: Digest
    total: int
    data: bytes
    """A view of bytes will do for one that is sent."""


class ForgetBlobs(NamedTuple):
    """The sender will not refer to these blobs again without sending them anew."""

    digests: tuple[Digest, ...]


class Goodbye(NamedTuple):
    """The sender leaves on purpose; end of stream after it is silent, without it is a loss."""

    reason: str


class Received(NamedTuple):
    """So many messages of the other side have been handled, in all links of this session together.

    Between client and scheduler, in both directions, now and then. The other side may forget these: after a lost link
    each sends again what the other has not handled, and nothing else.
    """

    number: int


# ---------------------------------------------------------------------------------------------- client -> scheduler


class Submit(NamedTuple):
    """Tasks that call one function. All of them are wanted by the client that sends this, from now until `Release`.

    `function` names a blob. `keys` and `calls` are parallel. `dependencies` and `blobs` are parallel to them, or empty
    when no call has any. `tokens` is empty for keys that the client derived from the call itself; for keys that the
    user chose it is parallel to `keys` and fingerprints the call: the same key with another token is a conflict.
    A call whose first byte is 0 is a reference: the 16 bytes after it name the blob that holds the call.
    Tasks of one client run in the order of submission where nothing else decides; senders of graphs order them
    depth-first, and release the inner tasks of the graph right after it: what later tasks need is kept without a wish.
    `extra` may hold: priority (a number, larger first), retries (int), workers (names, addresses or hosts),
    allow_other_workers (bool), resources (name -> amount), time_limit (seconds).
    """

    function: Digest
    keys: tuple[Key, ...]
    calls: tuple[bytes, ...]
    dependencies: tuple[tuple[Key, ...], ...]
    blobs: tuple[tuple[Digest, ...], ...]
    tokens: tuple[bytes, ...]
    extra: Mapping[str, Any]


class Want(NamedTuple):
    """The client wants these keys, which somebody else submitted. Unknown ones are answered with `Dropped`."""

    keys: tuple[Key, ...]


class Release(NamedTuple):
    """The client no longer wants these keys."""

    keys: tuple[Key, ...]


class Cancel(NamedTuple):
    """Give these tasks up, and what depends on them: for this client, or with `force` for all of them."""

    keys: tuple[Key, ...]
    force: bool


class Retry(NamedTuple):
    """Run these erred tasks again, from the erred task at the root of each."""

    keys: tuple[Key, ...]


class Detach(NamedTuple):
    """Finish these tasks whether or not any client still wants them (`fire_and_forget`)."""

    keys: tuple[Key, ...]


class Unreachable(NamedTuple):
    """The client could not fetch `key` from the worker at `address`."""

    key: Key
    address: str


class Query(NamedTuple):
    """A question about the state of the cluster, answered by one `Reply` with the same `request`.

    `what` is one of: who_has (keys), has_what (workers), processing (workers), nbytes (keys), nthreads (workers),
    scheduler_info (), story (keys). `arguments` narrows the answer; empty means all. `wait_for_workers` (a number) is
    answered once there are as many workers.
    """

    request: int
    what: str
    arguments: tuple[str, ...]


class Restart(NamedTuple):
    """Forget every task of every client and have all workers begin afresh; answered by a `Reply` once it is done."""

    request: int


class RestartWorkers(NamedTuple):
    """Have these workers (names, addresses or hosts) begin afresh; answered by a `Reply` once they are back."""

    request: int
    workers: tuple[str, ...]


class Retire(NamedTuple):
    """Have workers leave without losing anything; answered by a `Reply` once they have left, or with a refusal.

    `workers` are names, addresses or hosts; if there are none, the scheduler chooses `number` workers. The payload of
    the answer is a map: `retired` (names of those that left) and, if that could not be done, `refused` (a sentence).
    """

    request: int
    workers: tuple[str, ...]
    number: int


class Shutdown(NamedTuple):
    """End the cluster: workers, clients and scheduler."""


# ---------------------------------------------------------------------------------------------- scheduler -> client


class KeyReady(NamedTuple):
    """The result of `key` exists. A small one rides along in `value` (pickled, without out-of-band buffers).

    `holders` are the addresses of workers that hold it; it is empty when `value` is there.
    """

    key: Key
    nbytes: int
    type_name: str
    value: bytes | None
    holders: tuple[str, ...]


class KeyFailed(NamedTuple):
    """`key` has erred. `blamed` is the task whose failure it is, `key` itself or an ancestor.

    `kind` is `exception` (then `error` is the pickled exception, or None if only `text` could be made), `killed`
    (`details["deaths"]` has a line an attempt), `conflict`, `timeout`, `refused`.
    `text` says it in words (for an exception: qualified type, message and traceback as text, see
    `protocol.pickling`). `details` may hold: worker (name), address, attempt (int), duration_s.
    """

    key: Key
    blamed: Key
    kind: str
    error: bytes | None
    text: str
    details: Mapping[str, Any]


class KeyPending(NamedTuple):
    """`key` was ready or erred and is being computed again."""

    key: Key


class Dropped(NamedTuple):
    """`key` will not be computed: `reason` is `cancelled` or `lost`; `text` says why in words."""

    key: Key
    reason: str
    text: str


class Reply(NamedTuple):
    """Answer to a `Query`, `Restart`, `RestartWorkers`, `Retire` or `Control`."""

    request: int
    payload: Any


class Stuck(NamedTuple):
    """Why tasks of this client wait for a worker that is not there: `text`, one sentence; empty if none does any more.

    `aloud`: it has lasted long enough, or changed enough, to be told to people who did not ask. For those who ask about
    some of them, `reasons` has each reason with the keys that it holds up, themselves or through what they depend on;
    None stands for all keys of the client. Of very many keys some are left out.
    """

    text: str
    aloud: bool
    reasons: tuple[tuple[str, tuple[Key, ...] | None], ...]


# ---------------------------------------------------------------------------------------------- scheduler -> worker


class Run(NamedTuple):
    """Run one task; its outcome quotes `run`.

    `dependencies` lists each key the call needs with the addresses to fetch it from; no address means that it is here
    or is being computed here by an earlier `Run`. Lower `priority`, the order of submission, runs first. `extra` may
    hold: announce (bool: send `Started` and flush it before the task starts), time_limit (seconds), attempt (int,
    absent means 1), priority (int, absent means 0: the user's, which comes before that order; lower runs first).
    """

    run: RunId
    key: Key
    function: Digest
    call: bytes
    dependencies: tuple[tuple[Key, tuple[str, ...]], ...]
    priority: int
    extra: Mapping[str, Any]


class Retract(NamedTuple):
    """Hand back those of these runs that have not started; each is answered with `Returned` or by its outcome."""

    runs: tuple[RunId, ...]


class CancelRuns(NamedTuple):
    """These runs are no longer wanted; no answer is due.

    What has not started is dropped, what runs is cancelled, and a result that one of them gave just now is dropped too
    (unless a later run or a fetch has brought the same key here again).
    """

    runs: tuple[RunId, ...]


class Free(NamedTuple):
    """Drop these results."""

    keys: tuple[Key, ...]


class Leave(NamedTuple):
    """To a worker: end this session; with `restart`, drop everything and register again afresh, else exit with 0.

    To a nanny: end its worker process, which is planned; with `restart`, start another, else exit with 0.
    """

    reason: str
    restart: bool


class SchedulerStops(NamedTuple):
    """To workers and nannies: the scheduler stops, and another one may be started in its place; the session is over.

    A worker leaves, or waits for the other one, as its own settings say. (Where the cluster ends, all get `Leave`.)
    """


class Acquire(NamedTuple):
    """Fetch these keys, each from one of the addresses with it, and keep them.

    What has come is told by `Replicas`, what cannot be had by `NotAcquired`. Used to save the results of a worker that
    is leaving.
    """

    keys: tuple[tuple[Key, tuple[str, ...]], ...]


FromClient = (
    Blob
    | ForgetBlobs
    | Goodbye
    | Submit
    | Want
    | Release
    | Cancel
    | Retry
    | Detach
    | Unreachable
    | Query
    | Restart
    | RestartWorkers
    | Retire
    | Shutdown
    | Received
)
ToClient = Goodbye | KeyReady | KeyFailed | KeyPending | Dropped | Reply | Received | Stuck
ToWorker = Blob | ForgetBlobs | Goodbye | Run | Retract | CancelRuns | Free | Leave | Acquire | SchedulerStops
FromWorker = (
    Goodbye
    | RunFinished
    | RunFailed
    | Started
    | Returned
    | Missing
    | Replicas
    | Stored
    | Lost
    | Capacity
    | Heartbeat
    | Inventory
    | Drain
    | NotAcquired
)
FromNanny = Goodbye | Vouch | Obituary
ToNanny = Goodbye | Leave | SchedulerStops
FromControl = Goodbye | Control
ToControl = Goodbye | Reply
OnDataPlane = Goodbye | Fetch | Value | Absent | Put | PutDone | Call | CallResult | MemoryOffered | MemoryRead
Message = FromClient | ToClient | ToWorker | FromWorker | FromNanny | FromControl | OnDataPlane

TAGS: Mapping[int, type[Any]] = {
    1: Blob,
    2: ForgetBlobs,
    3: Goodbye,
    10: Submit,
    11: Want,
    12: Release,
    13: Cancel,
    14: Retry,
    15: Detach,
    16: Unreachable,
    17: Query,
    18: Restart,
    19: Shutdown,
    20: RestartWorkers,
    21: Retire,
    30: KeyReady,
    31: KeyFailed,
    32: KeyPending,
    33: Dropped,
    34: Reply,
    35: Received,
    36: Stuck,
    50: Run,
    51: Retract,
    52: CancelRuns,
    53: Free,
    54: Leave,
    55: Acquire,
    56: SchedulerStops,
    70: RunFinished,
    71: RunFailed,
    72: Started,
    73: Returned,
    74: Missing,
    75: Replicas,
    76: Stored,
    77: Lost,
    78: Capacity,
    79: Heartbeat,
    80: Inventory,
    81: Drain,
    82: NotAcquired,
    90: Vouch,
    91: Obituary,
    95: Control,
    100: Fetch,
    101: Value,
    102: Absent,
    103: Put,
    104: PutDone,
    105: Call,
    106: CallResult,
    107: MemoryOffered,
    108: MemoryRead,
}
"""What each tag on the wire means. A tag is never given a second meaning."""
