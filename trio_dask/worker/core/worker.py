"""The worker core: what to run, what to fetch, what to keep, what to say.

A run that the scheduler has assigned is *current* until its outcome was reported, it was handed back, or it is no
longer wanted. A current run is in exactly one of three states:

    waiting     some of its inputs are not here: they are being fetched, or computed by another current run; it may
                *follow* that run, and a slot may then take it before the core hears of the result
    ready       it is offered to the slots, best (priority, arrival) first
    executing   a slot has taken it

    Run ──► waiting ──► ready ──► executing ──► RunFinished | RunFailed
               │          │           │
               │          │           └──► cancelled | RunFailed(timeout): its slot is *leaving*, later *overdue*
               └──────────┴──► Returned | Missing | cancelled

A slot whose run was stopped has `grace_s` to leave it; after that the scheduler hears that the worker has one slot
less, and once more when the slot came back after all.

The slots move runs from ready to executing on their own (see `ReadyQueue`), so a run is executing when it is current
and neither waiting nor ready. Events name a run by the very object that was offered: what is no longer current is
stale, also when a new scheduler counts its runs from one again, and a stale outcome is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.identity import Digest, Key, RunId
from trio_dask.protocol.messages import (
    Blob,
    CancelRuns,
    Capacity,
    ForgetBlobs,
    Free,
    FromWorker,
    Goodbye,
    Leave,
    Missing,
    Replicas,
    Retract,
    Returned,
    Run,
    RunFailed,
    RunFinished,
    Started,
    Stored,
    ToWorker,
)
from trio_dask.worker.core.blobs import BlobTable
from trio_dask.worker.core.fetching import FetchLimits, FetchPlan, GivenUp
from trio_dask.worker.core.holdings import Holdings
from trio_dask.worker.core.ready import ReadyQueue
from trio_dask.worker.core.requests import (
    CancelFetch,
    CancelRun,
    Effects,
    EndSession,
    FetchId,
    ForgetFunctions,
    FreeKeys,
    Request,
)
from trio_dask.worker.core.slots import SlotBook

__all__ = ["Waiting", "WorkerCore"]


class Waiting(NamedTuple):
    """A run whose inputs are not all here."""

    run: Run
    missing: dict[Key, None]


class WorkerCore:
    """One worker's decisions, over all its sessions. `slots` is how many runs can execute at once.

    Events come in by method, with the time where it matters; effects gather until `drain`.
    """

    def __init__(self, slots: int, *, limits: FetchLimits | None = None, grace_s: float = 0.2) -> None:
        self.slots = SlotBook(slots, grace_s)
        self.ready = ReadyQueue()
        self.blobs = BlobTable()
        self.fetches = FetchPlan(limits or FetchLimits())
        self.held = Holdings()
        self._address: str | None = None  # None between sessions
        self._runs: dict[RunId, Run] = {}
        self._waiting: dict[RunId, Waiting] = {}
        self._waiters: dict[Key, dict[RunId, None]] = {}  # the inverse of Waiting.missing
        self._producers: dict[Key, RunId] = {}
        self._leaders: dict[RunId, RunId] = {}  # of waiting runs that follow another
        self._replicas: list[Key] = []
        self._outbox: list[FromWorker] = []
        self._requests: list[Request] = []

    # ------------------------------------------------------------------------------------------ what others may read

    @property
    def runs(self) -> Mapping[RunId, Run]:
        """Every current run, oldest first."""
        return self._runs

    @property
    def waiting(self) -> Mapping[RunId, Waiting]:
        """The current runs whose inputs are not all here."""
        return self._waiting

    @property
    def executing(self) -> int:
        """How many current runs slots have taken."""
        return len(self._runs) - len(self._waiting) - len(self.ready)

    def is_current(self, run: Run) -> bool:
        """Whether the outcome of this run is still wanted."""
        return self._runs.get(run.run) is run

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return self.slots.next_deadline()

    def drain(self) -> Effects:
        """Everything to be done since the last call. Call it once per batch of events."""
        if self.blobs.fading:
            self._forget(self.blobs.forget_before(next(iter(self._runs), None)))
        if self.fetches.queues:
            self._requests.extend(self.fetches.launch())
        if self._replicas:
            self._outbox.append(Replicas(tuple(self._replicas)))
            self._replicas.clear()
        effects = Effects(self._outbox, self._requests, self.ready.offered)
        self._outbox, self._requests, self.ready.offered = [], [], 0
        return effects

    # ------------------------------------------------------------------------------------------ sessions

    def session_began(self, address: str) -> None:
        """The scheduler has registered this worker; peers reach it at `address`."""
        self._address = address
        self._outbox.clear()
        if self.slots.overdue:
            self._outbox.append(Capacity(self.slots.capacity))

    def session_ended(self, now: float) -> None:
        """The scheduler is gone, and nothing here means anything to the next one: drop all of it."""
        self._address = None
        for number in list(self._runs):
            self._cancel(number, now)
        self._requests.extend(CancelFetch(fetch) for fetch in self.fetches.clear())
        if self.held:
            self._requests.append(FreeKeys(self.held.clear()))
        self._replicas.clear()
        self._outbox.clear()
        self._forget(self.blobs.clear())

    # ------------------------------------------------------------------------------------------ from the scheduler

    def handle(self, message: ToWorker, now: float) -> None:
        """Take one message of the scheduler.

        Raises:
          ProtocolError: the scheduler said something that makes no sense; the session should end.
        """
        if isinstance(message, Run):
            self._accept(message)
            return
        match message:
            case Blob():
                self.blobs.add(message)
            case ForgetBlobs(digests):
                self.blobs.fade(digests, next(reversed(self._runs), RunId(-1)))
            case Free(keys):
                self._free(keys)
            case Retract(numbers):
                self._retract(numbers)
            case CancelRuns(numbers):
                self._abandoned([key for number in numbers if (key := self._cancel(number, now)) is not None])
                # The scheduler has not heard of a result that crosses its cancellation, so it will not free it.
                self._free([key for number in numbers if (key := self.held.results.get(number)) is not None])
            case Leave(reason, restart):
                self._requests.append(EndSession(reason, restart))
            case Goodbye(reason):
                self._requests.append(EndSession(reason, restart=False))

    def _accept(self, run: Run) -> None:
        number = run.run
        if number in self._runs:
            raise ProtocolError(f"run {number} was assigned twice")
        if run.function not in self.blobs.complete:
            raise ProtocolError(f"run {number} calls a function that was never sent")
        if run.extra and not isinstance(run.extra.get("time_limit", 0), int | float):
            raise ProtocolError(f"run {number} has a time limit that is no number")
        if not self.slots.capacity:
            self._outbox.append(Returned((number,)))
            return
        if run.dependencies:
            missing = {key: holders for key, holders in run.dependencies if key not in self.held}
            if missing and not self._wait_for(run, missing):
                return
        self._runs[number] = run
        self._producers[run.key] = number
        if number not in self._waiting:
            self.ready.push(run)

    def _wait_for(self, run: Run, missing: Mapping[Key, tuple[str, ...]]) -> bool:
        """Have the run wait for these inputs; False if it was handed back, since one of them can never come."""
        number = run.run
        remote = {key: [at for at in holders if at != self._address] for key, holders in missing.items()}
        for key, holders in remote.items():
            if not (holders or key in self._producers or key in self.fetches.sought):
                self._outbox.append(Missing(number, key, missing[key][0] if missing[key] else ""))
                return False
        for key, holders in remote.items():
            if holders:
                self.fetches.seek(key, holders)
            self._waiters.setdefault(key, {})[number] = None
        waiting = self._waiting[number] = Waiting(run, dict.fromkeys(missing))
        self._let_follow(waiting)
        return True

    def _let_follow(self, waiting: Waiting) -> None:
        """If a run misses one thing only, and that is being computed here, let the slot that has it go on with it."""
        if len(waiting.missing) == 1:
            (key,) = waiting.missing
            leader = self._producers.get(key)
            if leader is None or key in self.fetches.sought:
                return
            if self.ready.follow(self._runs[leader], waiting.run):
                self._leaders[waiting.run.run] = leader

    def _claim(self, number: RunId) -> bool:
        """Make sure that no slot takes this waiting run; False if one has, then it is executing."""
        leader = self._leaders.pop(number, None)
        if leader is None or self.ready.unfollow(leader, number):
            return True
        self._end_wait(number)
        return False

    def _free(self, keys: Iterable[Key]) -> None:
        freed = [key for key in keys if self.held.drop(key)]
        if freed:
            self._requests.append(FreeKeys(tuple(freed)))

    def _retract(self, numbers: tuple[RunId, ...]) -> None:
        returned: list[RunId] = []
        keys: list[Key] = []
        for number in numbers:
            run = self._runs.get(number)
            if run is not None and self._withdraw(number):
                self._remove(run)
                returned.append(number)
                keys.append(run.key)
        if returned:
            self._outbox.append(Returned(tuple(returned)))
        self._abandoned(keys)

    # ------------------------------------------------------------------------------------------ from the slots

    def started(self, runs: Iterable[Run], now: float) -> None:
        """Slots have taken these runs: ones that are to be announced, or have a time limit, or have run for long.

        Where `announce` asks for it, the slot waits until the messages of this batch have left.
        """
        fresh = [run.run for run in runs if self.is_current(run) and self.slots.begin(run, now)]
        if fresh:
            self._outbox.append(Started(tuple(fresh)))

    def finished(self, run: Run, nbytes: int, type_name: str, value: bytes | None, duration_s: float) -> bool:
        """A run gave a result. True if it is kept; then the value must have been stored before this call."""
        number = run.run
        if self._runs.get(number) is not run:
            self._slot_returned(run)
            return False
        self._remove(run)
        self.held.add(run.key, nbytes, number)
        self._outbox.append(RunFinished(number, nbytes, type_name, duration_s, value))
        if run.key in self._waiters:
            self._came(run.key)
        return True

    def failed(self, run: Run, error: bytes | None, text: str, duration_s: float) -> None:
        """A run raised, or its result is not fit to be kept."""
        if self.is_current(run):
            self._outbox.append(RunFailed(run.run, "exception", error, text, duration_s))
            self._remove(run)
            self._abandoned([run.key])
        else:
            self._slot_returned(run)

    def input_gone(self, run: Run, key: Key) -> None:
        """A slot has taken this run, and found that an input is not here any more."""
        if self.is_current(run):
            self._outbox.append(Missing(run.run, key, ""))
            self._remove(run)
            self._abandoned([run.key])
        else:
            self._slot_returned(run)

    def tick(self, now: float) -> None:
        """Give up the runs that are out of time, and the slots that do not come back."""
        for number in self.slots.expired(now):
            run = self._runs[number]
            limit = float(run.extra["time_limit"])
            text = f"{run.key} ran longer than its time limit of {limit:g} s"
            self._outbox.append(RunFailed(number, "timeout", None, text, limit))
            self._cancel(number, now)
            self._abandoned([run.key])
        if self.slots.give_up(now):
            self._capacity_changed()

    # ------------------------------------------------------------------------------------------ from the data plane

    def expects(self, fetch: FetchId, key: Key) -> bool:
        """Whether a value from this fetch is wanted."""
        return self.fetches.expects(fetch, key)

    def fetched(self, fetch: FetchId, key: Key, nbytes: int) -> bool:
        """A value came from a peer. True if it is kept; then it must have been stored before this call."""
        if not self.fetches.arrived(fetch, key):
            return False
        self._replicas.append(key)
        self.held.add(key, nbytes)
        self._came(key)
        return True

    def absent(self, fetch: FetchId, key: Key) -> None:
        """The peer does not have this key, or cannot send it."""
        given_up = self.fetches.absent(fetch, key)
        if given_up is not None:
            self._hand_back([given_up])

    def fetch_ended(self, fetch: FetchId, *, unreachable: bool) -> None:
        """The fetch is over; what it has not answered for will not come. `unreachable`: the peer is gone."""
        self._hand_back(self.fetches.ended(fetch, unreachable=unreachable))

    def stored(self, key: Key, nbytes: int, type_name: str, client: str) -> bool:
        """A client has put a value here. True if it is kept; then it must have been stored before this call."""
        if self._address is None:
            return False
        self.held.add(key, nbytes)
        self._outbox.append(Stored(key, nbytes, type_name, client))
        if key in self._waiters:
            self._came(key)
        return True

    # ------------------------------------------------------------------------------------------ steps

    def _came(self, key: Key) -> None:
        """A key that runs were waiting for is here, from wherever it came first."""
        if key in self.fetches.sought:
            self._drop_fetch(key)
        for number in list(self._waiters.pop(key, ())):
            waiting = self._waiting[number]
            del waiting.missing[key]
            if not self._claim(number):
                continue
            if waiting.missing:
                self._let_follow(waiting)
            else:
                del self._waiting[number]
                self.ready.push(waiting.run)

    def _remove(self, run: Run) -> None:
        """Take a run out of every table. A slot that has taken it keeps it."""
        number = run.run
        del self._runs[number]
        if self._producers.get(run.key) == number:
            del self._producers[run.key]
        self.slots.end(number)
        if self._waiting and number in self._waiting:
            self._leaders.pop(number, None)
            self._end_wait(number)

    def _withdraw(self, number: RunId) -> bool:
        """Make sure that no slot takes this run; False if one has."""
        return self._claim(number) if number in self._waiting else self.ready.withdraw(number)

    def _end_wait(self, number: RunId) -> None:
        for key in self._waiting.pop(number).missing:
            self._stop_waiting(key, number)

    def _stop_waiting(self, key: Key, number: RunId) -> None:
        waiters = self._waiters[key]
        del waiters[number]
        if not waiters:
            del self._waiters[key]
            if key in self.fetches.sought:
                self._drop_fetch(key)

    def _drop_fetch(self, key: Key) -> None:
        fetch = self.fetches.drop(key)
        if fetch is not None:
            self._requests.append(CancelFetch(fetch))

    def _cancel(self, number: RunId, now: float) -> Key | None:
        """Drop a run that is no longer wanted. Gives its key, or None if it is not current."""
        run = self._runs.get(number)
        if run is None:
            return None
        executing = not self._withdraw(number)
        self._remove(run)
        if executing:
            self._requests.append(CancelRun(run))
            self.slots.stop(run, now)
        return run.key

    def _slot_returned(self, run: Run) -> None:
        """A run that is not current has left its slot."""
        if self.slots.came_back(run):
            self._capacity_changed()

    def _capacity_changed(self) -> None:
        self._outbox.append(Capacity(self.slots.capacity))
        if self.slots.capacity:
            return
        # No slot may ever come free again, so nothing must wait for one.
        stranded = [run for run in list(self._runs.values()) if self._withdraw(run.run)]
        for run in stranded:
            self._remove(run)
        if stranded:
            self._outbox.append(Returned(tuple(run.run for run in stranded)))

    def _hand_back(self, given_up: list[GivenUp]) -> None:
        """Hand back the runs that wait for keys no peer could give, unless a run here is computing them."""
        keys: list[Key] = []
        for key, address in given_up:
            if key not in self._producers:
                keys += self._lack(key, address)
        self._abandoned(keys)

    def _abandoned(self, keys: list[Key]) -> None:
        """The runs that computed these keys are gone: hand back those that waited for them, and so on."""
        for key in keys:  # which grows on the way
            if key in self._waiters and key not in self._producers and key not in self.fetches.sought:
                keys += self._lack(key, "")

    def _lack(self, key: Key, address: str) -> list[Key]:
        lost: list[Key] = []
        for number in list(self._waiters.get(key, ())):
            if not self._claim(number):
                continue
            run = self._waiting[number].run
            self._outbox.append(Missing(number, key, address))
            self._remove(run)
            lost.append(run.key)
        return lost

    def _forget(self, digests: tuple[Digest, ...]) -> None:
        if digests:
            self._requests.append(ForgetFunctions(digests))
