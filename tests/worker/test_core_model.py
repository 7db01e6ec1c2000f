"""The worker core under any sequence of events: a Hypothesis machine plays scheduler, slots and peers at random.

The model knows two things. What the scheduler is owed: every run that was assigned is answered exactly once, by its
outcome or by being handed back, and a cancelled one not at all; every key that is to be acquired is answered likewise,
unless it was freed. And, when the link was cut, what the scheduler can believe: what the inventory of a worker that
returns does not name was answered, or is not here.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.worker.invariants import check, check_idle
from trio_dask.ids import RunId
from trio_dask.protocol.messages import (
    Acquire,
    Blob,
    CancelRuns,
    Capacity,
    Drain,
    Free,
    FromWorker,
    InputMissing,
    Inventory,
    Lost,
    NotAcquired,
    Replicas,
    ReturnRuns,
    Run,
    RunFailed,
    RunFinished,
    RunsReturned,
    Scattered,
    Started,
)
from trio_dask.worker.core.effects import CancelFetch, CancelRun, FetchId, Request, StartFetch
from trio_dask.worker.core.fetch_plan import FetchLimits
from trio_dask.worker.core.worker import WorkerCore

FUNCTION = b"f" * 16
KEYS = [f"k{number}" for number in range(8)]
ADDRESSES = ["tcp://here:1", "tcp://b:1", "tcp://c:1", "tcp://d:1"]
HERE = ADDRESSES[0]
GRACE_S = 0.5


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_run = 1
        self.owed: dict[RunId, str] = {}  # runs to be answered, with their keys
        self.to_acquire: dict[str, None] = {}
        self.announced: set[RunId] = set()
        self.capacity = 0
        self.online = True
        self.slots: list[Run] = []
        self.fetches: dict[FetchId, tuple[str, list[str]]] = {}

    @initialize(slots=st.integers(1, 3), fetches=st.integers(1, 3), keys=st.integers(1, 3))
    def begin(self, slots: int, fetches: int, keys: int) -> None:
        limits = FetchLimits(fetches=fetches, fetches_per_address=1, keys_per_fetch=keys)
        self.core = WorkerCore(slots, limits=limits, grace_s=GRACE_S)
        self.new_session()

    def new_session(self) -> None:
        self.online = True
        self.capacity = self.core.slots.slots
        self.core.session_began(HERE)
        self.core.handle(Blob(FUNCTION, 1, b"f"), self.now)

    @precondition(lambda self: self.online)
    @rule(
        key=st.sampled_from(KEYS),
        inputs=st.dictionaries(
            st.sampled_from(KEYS), st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3), max_size=3
        ),
        priority=st.integers(0, 2),
        limit=st.none() | st.integers(1, 3),
    )
    def assign(self, key: str, inputs: dict[str, list[str]], priority: int, limit: int | None) -> None:
        number = RunId(self.next_run)
        self.next_run += 1
        self.owed[number] = key
        # A graph has no cycles: a key depends on smaller ones alone.
        dependencies = tuple((name, tuple(holders)) for name, holders in inputs.items() if name < key)
        extra = {} if limit is None else {"time_limit": limit}
        self.core.handle(Run(number, key, FUNCTION, b"", dependencies, priority, extra), self.now)

    @precondition(lambda self: self.online)
    @rule(offsets=st.lists(st.integers(0, 5), max_size=3))
    def retract(self, offsets: list[int]) -> None:
        self.core.handle(ReturnRuns(self.some_runs(offsets)), self.now)

    @precondition(lambda self: self.online)
    @rule(offsets=st.lists(st.integers(0, 5), max_size=3))
    def cancel(self, offsets: list[int]) -> None:
        numbers = self.some_runs(offsets)
        self.observe()
        self.core.handle(CancelRuns(numbers), self.now)
        for number in numbers:
            self.owed.pop(number, None)

    @precondition(lambda self: self.online)
    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=2))
    def free(self, keys: list[str]) -> None:
        self.observe()
        self.core.handle(Free(tuple(keys)), self.now)
        for key in keys:
            self.to_acquire.pop(key, None)

    @precondition(lambda self: self.online)
    @rule(key=st.sampled_from(KEYS), holders=st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3))
    def acquire(self, key: str, holders: list[str]) -> None:
        self.observe()
        self.to_acquire[key] = None
        self.core.handle(Acquire(((key, tuple(holders)),)), self.now)

    @rule()
    def pause(self) -> None:
        self.core.set_paused(True)
        assert not self.core.is_open

    @rule()
    def resume(self) -> None:
        self.core.set_paused(False)

    @rule(reason=st.sampled_from(["signal", "lifetime"]))
    def drain(self, reason: str) -> None:
        self.core.drain_began(reason)
        assert not self.core.is_open

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=2))
    def lose_values(self, keys: list[str]) -> None:
        self.core.lost_values(keys)
        assert not any(key in self.core.held for key in keys)

    @precondition(lambda self: len(self.slots) < self.core.slots.slots)
    @rule()
    def take(self) -> None:
        run = self.core.ready.take()
        if run is not None:
            self.slots.append(run)
            if run.extra:
                self.core.started([run], self.now)

    @precondition(lambda self: self.slots)
    @rule(which=st.integers(0, 2))
    def go_on(self, which: int) -> None:
        """A slot has its result and goes on with what follows; the core hears of the result only now."""
        position = which % len(self.slots)
        run = self.slots[position]
        follower = self.core.ready.take_chained(run)
        current = self.core.is_current(run)
        assert self.core.finished(run, 3, "int", None, 0.1) == current
        if follower is None:
            del self.slots[position]
        else:
            self.slots[position] = follower

    @precondition(lambda self: self.slots)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["finished", "failed", "gone", "declined"]))
    def leave_slot(self, which: int, how: str) -> None:
        run = self.slots.pop(which % len(self.slots))
        current = self.core.is_current(run)
        if how == "finished":
            assert self.core.finished(run, 3, "int", None, 0.1) == current
        elif how == "failed":
            self.core.failed(run, None, "ValueError", 0.1)
        elif how == "declined" and run.run not in self.core.slots.announced:
            self.core.declined(run)
        else:
            self.core.input_gone(run, run.dependencies[0][0] if run.dependencies else "?")

    @precondition(lambda self: self.fetches)
    @rule(which=st.integers(0, 5), how=st.sampled_from(["value", "absent", "end", "peer gone"]))
    def answer_fetch(self, which: int, how: str) -> None:
        number = list(self.fetches)[which % len(self.fetches)]
        _, keys = self.fetches[number]
        if how in ("value", "absent") and keys:
            key = keys.pop(0)
            if how == "value":
                expected = self.core.fetches.expects(number, key)
                assert self.core.fetched(number, key, 2) == expected
            else:
                self.core.absent(number, key)
        else:
            del self.fetches[number]
            self.core.fetch_ended(number, unreachable=how == "peer gone")

    @rule(key=st.sampled_from(KEYS))
    def put(self, key: str) -> None:
        assert self.core.stored(key, 4, "list", "client", self.now) == self.online

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.core.slots.next_deadline() <= self.now:
            self.core.tick(self.now)
        assert self.core.slots.next_deadline() > self.now

    @precondition(lambda self: self.online)
    @rule()
    def lose_scheduler(self) -> None:
        self.observe()
        self.core.session_lost(self.now)
        self.online = False
        self.observe()

    @precondition(lambda self: not self.online)
    @rule()
    def find_another(self) -> None:
        self.core.reset(self.now)
        assert not self.core.runs
        assert not self.core.held
        self.owed.clear()
        self.to_acquire.clear()
        self.announced.clear()
        self.new_session()
        self.observe()

    @precondition(lambda self: not self.online)
    @rule()
    def come_back(self) -> None:
        self.online = True
        self.core.session_began(HERE, returned=True)
        effects = self.core.take_effects()
        self.take_requests(effects.requests)
        first, *words = effects.messages
        assert first == Capacity(self.core.capacity)
        self.capacity = self.core.capacity
        drain = [words.pop()] if self.core.draining else []
        assert all(isinstance(message, Drain) for message in drain)
        inventory = words.pop()
        assert isinstance(inventory, Inventory)
        failed = {message.run for message in words if isinstance(message, RunFailed)}
        not_acquired = {key for message in words if isinstance(message, NotAcquired) for key in message.keys}
        assert not_acquired == set(self.to_acquire)
        self.to_acquire.clear()
        held = {key: number for key, number, _, _ in inventory.held}
        assert set(held) == set(self.core.held)
        for number in inventory.runs:
            assert number in self.owed, "a run that has ended is in the inventory"
            assert number not in failed
            assert number not in held.values()
        self.owed = {number: self.owed[number] for number in inventory.runs}
        self.core.handle(Blob(FUNCTION, 1, b"f"), self.now)

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "core"):
            check(self.core)
            self.observe()
            check(self.core)

    def observe(self) -> None:
        """Take the effects as scheduler, slots and peers would, and check each answer against what was owed."""
        effects = self.core.take_effects()
        if self.online:
            self.take_messages(effects.messages)
        else:
            # Nobody hears it. What the scheduler would have to be told later is checked when the worker comes back.
            self.owed = {number: self.owed[number] for number in self.core.runs}
        self.take_requests(effects.requests)
        if self.online:
            assert self.capacity == self.core.capacity
        assert {number: run.key for number, run in self.core.runs.items()} == self.owed
        acquiring = set(self.core.fetches.acquiring)
        assert acquiring == set(self.to_acquire) if self.online else not acquiring

    def take_messages(self, messages: list[FromWorker]) -> None:
        for message in messages:
            match message:
                case RunFinished(number):
                    self.settle(number)
                case RunFailed(number):
                    self.settle(number)
                case InputMissing(number):
                    self.settle(number)
                case RunsReturned(numbers):
                    for number in numbers:
                        assert number not in self.announced, "handed back after it was said to have started"
                        self.settle(number)
                case Started(numbers):
                    for number in numbers:
                        assert number in self.owed
                        self.announced.add(number)
                case Capacity(slots):
                    assert 0 <= slots <= self.core.slots.slots
                    self.capacity = slots
                case Replicas(keys):
                    for key in keys:
                        self.to_acquire.pop(key, None)
                case NotAcquired(keys):
                    for key in keys:
                        del self.to_acquire[key]
                case Inventory():
                    raise AssertionError("an inventory that nobody asked for")
                case Drain() | Scattered() | Lost():
                    pass

    def take_requests(self, requests: list[Request]) -> None:
        for request in requests:
            match request:
                case StartFetch(number, address, keys):
                    assert address != HERE, "asks itself"
                    self.fetches[number] = (address, list(keys))
                case CancelFetch(number):
                    del self.fetches[number]
                case CancelRun(run):
                    assert any(run is taken for taken in self.slots), "stops a run that no slot has"
                case _:
                    pass

    def settle(self, number: RunId) -> None:
        assert number in self.owed, f"run {number} was answered twice, or after it was cancelled"
        del self.owed[number]

    def some_runs(self, offsets: list[int]) -> tuple[RunId, ...]:
        return tuple(RunId(max(1, self.next_run - 1 - offset)) for offset in offsets)

    def teardown(self) -> None:
        """Let every slot and every peer come to an end: then nothing may be left."""
        if not hasattr(self, "core"):
            return
        self.observe()
        while self.slots or self.fetches or len(self.core.ready):
            self.take()
            while self.slots:
                self.leave_slot(0, "finished")
            self.observe()
            while self.fetches:
                self.answer_fetch(0, "peer gone")
                self.observe()
        assert not self.owed
        if self.online:
            assert not self.to_acquire
        check_idle(self.core)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnySequenceOfEvents = Machine.TestCase
