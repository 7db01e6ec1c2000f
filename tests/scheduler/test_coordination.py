"""Primitives against models that are too simple to be wrong, and planted bugs that the models find."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.scheduler.kit import Kit
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.core.coordination import queue, table
from trio_dask.scheduler.core.coordination.datasets import Datasets
from trio_dask.scheduler.core.coordination.event import Event
from trio_dask.scheduler.core.coordination.multi_lock import MultiLocks
from trio_dask.scheduler.core.coordination.queue import Queue
from trio_dask.scheduler.core.coordination.requests import Answer, Drop, Effects, Keep, Request
from trio_dask.scheduler.core.coordination.semaphore import Lock, Semaphore
from trio_dask.scheduler.core.coordination.table import Coordination
from trio_dask.scheduler.core.coordination.values import Item
from trio_dask.scheduler.core.coordination.variable import Variable

PEERS = (1, 2, 3)
Step: TypeAlias = tuple[Any, ...]
BUSY = (HealthCheck.too_slow,)
"""The machine may have other work."""


class Model:
    """What a kind should do, as plainly as possible: `answers` gathers (request, outcome, value)."""

    OPERATIONS: ClassVar[tuple[tuple[str, tuple[Any, ...]], ...]]

    def __init__(self) -> None:
        self.waiting: list[tuple[Request, tuple[Any, ...]]] = []
        self.answers: list[Answer] = []

    def answer(self, request: Request, value: Any = None, outcome: str = "done") -> None:
        self.answers.append(Answer(request, outcome, value))

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        raise NotImplementedError

    def end(self, request: Request) -> None:
        if request in [waiting for waiting, _ in self.waiting]:
            self.forget(lambda other: other == request)
            self.answer(request, outcome="ended")
        self.release(lambda other: other == request)

    def leave(self, peer: int) -> None:
        self.forget(lambda request: request.peer == peer)
        self.release(lambda request: request.peer == peer)

    def forget(self, is_meant: Callable[[Request], bool]) -> None:
        self.waiting = [entry for entry in self.waiting if not is_meant(entry[0])]

    def release(self, is_meant: Callable[[Request], bool]) -> None:
        """These requests hold nothing any more."""


class EventModel(Model):
    OPERATIONS = (("wait", ()), ("wait", ()), ("set", ()), ("clear", ()), ("is_set", ()))
    is_set = False

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "wait" and not self.is_set:
            self.waiting.append((request, ()))
            return
        if operation in ("set", "clear"):
            self.is_set = operation == "set"
        if self.is_set:
            for waiter, _ in self.waiting:
                self.answer(waiter, True)
            self.waiting.clear()
        self.answer(request, {"wait": True, "is_set": self.is_set}.get(operation))


class LockModel(Model):
    OPERATIONS: ClassVar[tuple[tuple[str, tuple[Any, ...]], ...]] = (
        ("acquire", (True,)),
        ("acquire", (True,)),
        ("acquire", (False,)),
        ("count", ()),
    )
    leases = 1

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[Request] = []

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "count":
            self.answer(request, len(self.holders))
        elif len(self.holders) < self.leases:
            self.holders.append(request)
            self.answer(request, True)
        elif arguments[0]:
            self.waiting.append((request, ()))
        else:
            self.answer(request, False)

    def release(self, is_meant: Callable[[Request], bool]) -> None:
        self.holders = [holder for holder in self.holders if not is_meant(holder)]
        while self.waiting and len(self.holders) < self.leases:
            request, _ = self.waiting.pop(0)
            self.holders.append(request)
            self.answer(request, True)


class SemaphoreModel(LockModel):
    OPERATIONS = (
        ("acquire", (True, 2)),
        ("acquire", (True, 2)),
        ("acquire", (False, 2)),
        ("acquire", (True, 3)),
        ("count", ()),
        ("close", ()),
    )
    leases = 0

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "close":
            for waiter, _ in self.waiting:
                self.answer(waiter, "this semaphore was closed", "closed")
            self.waiting, self.holders, self.leases = [], [], 0
            self.answer(request)
        elif operation == "acquire" and self.leases not in (0, arguments[1]):
            self.answer(request, f"this semaphore has {self.leases} leases, not {arguments[1]}", "refused")
        else:
            self.leases = arguments[1] if operation == "acquire" else self.leases
            super().begin(request, operation, arguments)


class MultiLockModel(Model):
    OPERATIONS = tuple(
        ("acquire", (names, number, waits))
        for names, number, waits in (
            (("a", "b"), 2, True),
            (("b", "c"), 2, True),
            (("c", "a"), 2, True),
            (("a", "b", "c"), 2, True),
            (("a",), 1, True),
            (("a", "b"), 1, False),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[tuple[Request, tuple[str, ...]]] = []

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        self.waiting.append((request, arguments))
        self.serve()
        if not arguments[2] and request in [waiting for waiting, _ in self.waiting]:
            self.forget(lambda other: other == request)
            self.answer(request, ())

    def serve(self) -> None:
        for position, (request, (names, number, _)) in enumerate(self.waiting):
            taken = {name for _, held in self.holders for name in held}
            wanted_before = {name for _, (others, *_) in self.waiting[:position] for name in others}
            free = tuple(name for name in names if name not in taken | wanted_before)[:number]
            if len(free) == number:
                del self.waiting[position]
                self.holders.append((request, free))
                self.answer(request, free)
                self.serve()
                return

    def release(self, is_meant: Callable[[Request], bool]) -> None:
        self.holders = [(holder, names) for holder, names in self.holders if not is_meant(holder)]
        self.serve()


def item(name: str, *keys: str) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    return (name.encode(),), keys


class QueueModel(Model):
    """Puts and gets wait in one list; whatever of them can be done is done, the oldest first."""

    OPERATIONS = (
        ("put", (item("a", "k"), 2, True)),
        ("put", (item("b"), 2, True)),
        ("put", (item("c", "k", "l"), 0, False)),
        ("get", (1, True)),
        ("get", (3, True)),
        ("get", (1, False)),
        ("get_all", ()),
        ("unget", ((item("d", "m"), item("e")),)),
        ("qsize", ()),
        ("close", ()),
    )

    def __init__(self) -> None:
        super().__init__()
        self.max_size = 0
        self.items: list[Any] = []
        self.putting: list[tuple[Request, Any]] = []
        self.getting: list[tuple[Request, int, list[Any]]] = []

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "put", (given, max_size, waits):
                self.max_size = self.max_size or max_size
                if not waits and not self.getting and self.max_size and len(self.items) >= self.max_size:
                    self.answer(request, False)
                else:
                    self.putting.append((request, given))
            case "get", (count, waits):
                if waits or (not self.getting and len(self.items) + len(self.putting) >= count):
                    self.getting.append((request, count, []))
                else:
                    self.answer(request, ())
            case "get_all", ():
                count = 0 if self.getting else len(self.items) + len(self.putting)
                if self.getting:
                    self.answer(request, ())
                else:
                    self.getting.append((request, count, []))
            case "unget", (items,):
                self.items = [*items, *self.items]
                self.answer(request)
            case "qsize", ():
                self.answer(request, len(self.items))
            case _:
                waiting = [waiter for waiter, _, _ in self.getting] + [waiter for waiter, _ in self.putting]
                for waiter in waiting:
                    self.answer(waiter, "this queue was closed", "closed")
                self.items, self.putting, self.getting, self.max_size = [], [], [], 0
                self.answer(request)
        self.serve()

    def serve(self) -> None:
        while self.getting and len(self.getting[0][2]) == self.getting[0][1]:
            waiter, _, got = self.getting.pop(0)
            self.answer(waiter, tuple(got))
        if self.getting and self.items:
            self.getting[0][2].append(self.items.pop(0))
            self.serve()
        elif self.putting and (self.getting or not self.max_size or len(self.items) < self.max_size):
            putter, given = self.putting.pop(0)
            self.items.append(given)
            self.answer(putter, True)
            self.serve()

    def end(self, request: Request) -> None:
        if request in [waiter for waiter, *_ in (*self.getting, *self.putting)]:
            self.answer(request, outcome="ended")
        self.release(lambda other: other == request)

    def release(self, is_meant: Callable[[Request], bool]) -> None:
        given_back = [value for waiter, _, got in self.getting if is_meant(waiter) for value in got]
        self.items = [*given_back, *self.items]
        self.getting = [entry for entry in self.getting if not is_meant(entry[0])]
        self.putting = [entry for entry in self.putting if not is_meant(entry[0])]
        self.serve()


class VariableModel(Model):
    OPERATIONS = (
        ("set", (item("a", "k"),)),
        ("set", (item("b"),)),
        ("get", (True,)),
        ("get", (False,)),
        ("delete", ()),
    )
    items: tuple[Any, ...] = ()

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "get":
            self.waiting.append((request, arguments))
        else:
            self.items = arguments
            self.answer(request)
        if self.items or arguments == (False,):
            for waiter, _ in self.waiting if self.items else self.waiting[-1:]:
                self.answer(waiter, self.items)
            self.waiting = [] if self.items else self.waiting[:-1]


class DatasetModel(Model):
    OPERATIONS = (
        ("publish", ((("a", item("1", "k")), ("b", item("2", "l"))), False)),
        ("publish", ((("b", item("3", "l", "m")), (("c", 1), item("4"))), True)),
        ("publish", ((("b", item("5", "n")),), False)),
        ("get", ("a",)),
        ("get", ("b",)),
        ("delete", ("a", ("c", 1))),
        ("delete", ("b",)),
        ("names", ()),
    )

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[Any, Any] = {}

    def begin(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "publish":
            entries, override = arguments
            taken = () if override else tuple(name for name, _ in entries if name in self.items)
            if not taken:
                self.items.update(entries)
            self.answer(request, taken)
        elif operation == "get":
            self.answer(request, tuple(value for name, value in self.items.items() if name == arguments[0]))
        elif operation == "delete":
            self.items = {name: value for name, value in self.items.items() if name not in arguments}
            self.answer(request)
        else:
            self.answer(request, tuple(self.items))


MODELS: dict[str, type[Model]] = {
    "dataset": DatasetModel,
    "event": EventModel,
    "lock": LockModel,
    "multilock": MultiLockModel,
    "queue": QueueModel,
    "semaphore": SemaphoreModel,
    "variable": VariableModel,
}
LAST_WORDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "dataset": ("delete", ("a", "b", ("c", 1))),
    "event": ("clear", ()),
    "queue": ("close", ()),
    "variable": ("delete", ()),
    "semaphore": ("close", ()),
}
"""After these nothing is left of a primitive that no client uses."""


def steps_of(model: type[Model]) -> st.SearchStrategy[list[Step]]:
    step = st.one_of(
        st.tuples(st.just("begin"), st.sampled_from(PEERS), st.sampled_from(model.OPERATIONS)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("taken"), st.integers(0, 30)),
        st.tuples(st.just("leave"), st.sampled_from(PEERS)),
    )
    return st.lists(step, max_size=30)


def compare(kind: str, steps: list[Step]) -> None:
    """Take these steps, and compare each answer with the model's."""
    coordination, model = Coordination(), MODELS[kind]()
    requests: list[Request] = []
    kept: Counter[str] = Counter()

    def take_answers() -> list[Answer]:
        """The answers since the last time; the results that are kept are counted on the way."""
        effects = coordination.take_effects()
        for effect in effects:
            if isinstance(effect, Keep):
                kept.update(effect.keys)
            elif isinstance(effect, Drop):
                kept.subtract(effect.keys)
            assert min(kept.values(), default=0) >= 0
        return [effect for effect in effects if isinstance(effect, Answer)]

    for step in steps:
        match step:
            case "begin", int(peer), (operation, arguments):
                request = Request(PeerId(peer), len(requests))
                requests.append(request)
                coordination.begin(request, kind, "x", operation, arguments)
                model.begin(request, operation, arguments)
            case "end", int(index):
                if requests:
                    ended = requests[index % len(requests)]
                    coordination.end(ended, kind, "x", is_taken=False)
                    model.end(ended)
            case "taken", int(index):
                if requests:
                    coordination.end(requests[index % len(requests)], kind, "x", is_taken=True)
            case "leave", int(peer):
                coordination.session_ended(PeerId(peer))
                model.leave(peer)
            case _:
                raise AssertionError(step)
        assert sorted(take_answers(), key=repr) == sorted(model.answers, key=repr)
        model.answers.clear()
        coordination.check([PeerId(peer) for peer in PEERS])
    for peer in PEERS:
        coordination.session_ended(PeerId(peer))
        model.leave(peer)
    if kind in LAST_WORDS:
        coordination.begin(Request(PeerId(9), 0), kind, "x", *LAST_WORDS[kind])
    take_answers()
    assert not +kept, "results are kept for nobody"
    assert len(coordination) == 0
    coordination.check([])


@pytest.mark.parametrize("kind", table.KINDS)
def test_a_kind_does_what_its_model_does(kind: str) -> None:
    @given(steps_of(MODELS[kind]))
    @settings(max_examples=300, deadline=None, suppress_health_check=BUSY)
    def property_holds(steps: list[Step]) -> None:
        compare(kind, steps)

    property_holds()


class EventWithForgottenWaiter(Event):
    """Only the first of those that wait is woken."""

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "set":
            self._waiting = dict(list(self._waiting.items())[:1])
        super().handle(request, operation, arguments)


class EventWithDeadWaiter(Event):
    """A session ends, and its requests stay."""

    def session_ended(self, peer: PeerId) -> None: ...


class LockHeldTwice(Lock):
    """A request that does not want to wait gets the lock whoever has it."""

    def _acquire(self, request: Request, *, waits: bool) -> None:
        if waits:
            super()._acquire(request, waits=waits)
        else:
            self._holders[request] = None
            self._effects.append(Answer(request, "done", True))


class LockNotFreed(Lock):
    """The session of the holder ends, and the lock is not given to the next one."""

    def session_ended(self, peer: PeerId) -> None:
        self._waiting = {request: None for request in self._waiting if request.peer != peer}


class LockLost(Lock):
    """A waiter is ended, and the lease with it."""

    def end(self, request: Request) -> None:
        super().end(request)
        self._holders.clear()


class LockWithForgottenWaiter(Lock):
    """A released lock is given to nobody."""

    def _give_free_leases(self) -> None: ...


class UnfairLock(Lock):
    """The last that came is the first that gets it."""

    def _give_free_leases(self) -> None:
        self._waiting = dict(reversed(self._waiting.items()))
        super()._give_free_leases()


class MultiLocksThatOvertake(MultiLocks):
    """Of two that wait the later one may be first."""

    def _give_free_names(self) -> None:
        self._waiting = dict(sorted(self._waiting.items(), key=lambda entry: len(entry[1].names)))
        super()._give_free_names()


class MultiLocksNotFreed(MultiLocks):
    """One of the names stays locked."""

    def _forget(self, request: Request) -> None:
        if request in self._held:
            self._held[request] = self._held[request][:1]
        super()._forget(request)


class QueueThatLosesValues(Queue):
    """What a request had got when it ended is lost."""

    def _forget(self, requests: list[Request]) -> None:
        for request in requests:
            if request in self._getting:
                self._getting[request].items.clear()
        super()._forget(requests)


class QueueThatForgetsResults(Queue):
    """The results of a value that never went in are kept for ever."""

    def _forget(self, requests: list[Request]) -> None:
        for request in requests:
            self._putting.pop(request, None)
        super()._forget(requests)


class SemaphoreHeldTooOften(Semaphore):
    """A waiter gets the lease of a holder that still has it."""

    def _give_free_leases(self) -> None:
        if self._waiting:
            self._holders[next(iter(self._waiting))] = None
        super()._give_free_leases()


class VariableThatForgetsResults(Variable):
    """The results of a value that was replaced are kept for ever."""

    def _delete(self) -> None:
        self._item = None


class DatasetsThatForgetResults(Datasets):
    """The results of a dataset that was replaced are kept for ever."""

    def _publish(self, request: Request, entries: dict[Any, Item], *, override: bool) -> None:
        if override:
            self._items.clear()
        super()._publish(request, entries, override=override)


class DatasetsPublishedInPart(Datasets):
    """Names that are free are published, although others are taken."""

    def _publish(self, request: Request, entries: dict[Any, Item], *, override: bool) -> None:
        before = dict(self._items)
        super()._publish(request, entries, override=override)
        self._items = entries | before


PLANTED: list[tuple[str, Callable[[Effects], Any]]] = [
    ("dataset", DatasetsThatForgetResults),
    ("dataset", DatasetsPublishedInPart),
    ("event", EventWithForgottenWaiter),
    ("event", EventWithDeadWaiter),
    ("lock", LockHeldTwice),
    ("lock", LockNotFreed),
    ("lock", LockLost),
    ("lock", LockWithForgottenWaiter),
    ("lock", UnfairLock),
    ("multilock", MultiLocksThatOvertake),
    ("multilock", MultiLocksNotFreed),
    ("queue", QueueThatLosesValues),
    ("queue", QueueThatForgetsResults),
    ("semaphore", SemaphoreHeldTooOften),
    ("variable", VariableThatForgetsResults),
]


@pytest.mark.parametrize(("kind", "broken"), PLANTED)
def test_a_planted_bug_is_found(kind: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.KINDS, kind, broken)

    @given(steps_of(MODELS[kind]))
    @settings(
        max_examples=2000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=BUSY,
    )
    def property_holds(steps: list[Step]) -> None:
        compare(kind, steps)

    with pytest.raises(AssertionError):
        property_holds()


@pytest.mark.parametrize("kind", [*table.KINDS, "no such kind"])
def test_an_unknown_operation_is_refused_and_changes_nothing(kind: str) -> None:
    coordination = Coordination()
    with pytest.raises(ProtocolError, match="no such"):
        coordination.begin(Request(PeerId(1), 1), kind, "x", "explode", (1,))
    assert len(coordination) == 0


def values(effects: Effects) -> Any:
    """Of the last answer."""
    answer = effects[-1]
    assert isinstance(answer, Answer)
    return answer.value


def test_a_batch_of_many_small_values_and_long_keys_fits_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is the next batch."""
    monkeypatch.setattr(queue, "LARGEST_BATCH_BYTES", 64 * 2**10)
    effects: Effects = []
    many = Queue(effects)
    for number in range(3000):
        many.handle(Request(PeerId(1), number), "put", (((b"x",), ()), 0, True))
    many.handle(Request(PeerId(2), 1), "get_all", ())
    assert 500 < len(values(effects)) < 1100
    many.handle(Request(PeerId(2), 2), "get", (1, True))
    for number in range(3000, 3100):
        many.handle(Request(PeerId(1), number), "put", (((b"x",), ("k" * 4096,)), 0, True))
    for number in range(3, 9):
        many.handle(Request(PeerId(2), number), "get_all", ())
        assert len(values(effects)) < 1100
    assert sum(len(item.keys) for item in values(effects)) < 10


def test_a_waiter_hears_of_what_another_client_does() -> None:
    kit = Kit()
    one, two = kit.client("one"), kit.client("two")
    one.send(m.Coordinate(1, "event", "x", "wait", ()))
    assert one.take(m.Reply) == []
    two.send(m.Coordinate(1, "event", "x", "set", ()))
    assert one.take(m.Reply) == [m.Reply(1, ("done", True))]
    two.send(m.Coordinate(2, "event", "x", "clear", ()))
    assert two.take(m.Reply) == [m.Reply(1, ("done", None)), m.Reply(2, ("done", None))]
    one.send(m.Coordinate(2, "event", "x", "wait", ()), m.EndRequest(2, "event", "x", False))
    assert one.take(m.Reply) == [m.Reply(2, ("ended", None))]
    kit.assert_empty()


def test_a_lock_is_kept_while_its_holder_is_away_and_free_when_the_grace_is_over() -> None:
    kit = Kit()
    hello = Hello(role="client", incarnation=Incarnation("c"), name="c", details={"grace_s": 5})
    peer = kit.join(hello)
    kit.core.handle(peer, m.Coordinate(1, "lock", "x", "acquire", (True,)), kit.now)
    kit.core.drain()
    kit.core.end_session(peer, "lost", kit.now, expected=False)
    other = kit.client()
    other.send(m.Coordinate(1, "lock", "x", "acquire", (True,)))
    kit.tick(4)
    assert other.take(m.Reply) == []
    kit.tick(2)
    assert other.take(m.Reply) == [m.Reply(1, ("done", True))]


def test_a_lock_is_free_as_soon_as_the_worker_whose_tasks_hold_it_is_lost() -> None:
    kit = Kit()
    worker = kit.worker(process="p")
    nanny = kit.nanny("p")
    details = {"grace_s": 50, "worker": worker.info.incarnation}
    peer = kit.join(Hello(role="client", incarnation=Incarnation("c"), name="c", details=details))
    kit.core.handle(peer, m.Coordinate(1, "lock", "x", "acquire", (True,)), kit.now)
    kit.core.drain()
    other = kit.client()
    other.send(m.Coordinate(1, "lock", "x", "acquire", (True,)))
    kit.core.end_session(peer, "lost", kit.now, expected=False)
    nanny.send(m.WorkerExited("p", False, "killed", True, (), {}))
    assert other.take(m.Reply) == [m.Reply(1, ("done", True))]


def test_a_client_that_leaves_waits_no_longer() -> None:
    kit = Kit()
    one, two = kit.client("one"), kit.client("two")
    one.send(m.Coordinate(1, "event", "x", "wait", ()))
    one.leave()
    two.send(m.Coordinate(1, "event", "x", "set", ()), m.Coordinate(2, "event", "x", "clear", ()))
    assert len(kit.state.coordination) == 0
