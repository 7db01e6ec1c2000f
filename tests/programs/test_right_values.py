"""What a task computes is what its call computes in a process of its own, whatever ran before it and beside it.

The reference is `pickle.loads(cloudpickle.dumps(call))` in a process that is forked for that one call, with our own
pickler by value where cloudpickle fails.
"""

import collections
import contextlib
import functools
import io
import operator
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_dask import Client
from trio_dask.protocol.pickled_definitions import DefinitionPickler

pytestmark = pytest.mark.slow

REFERENCE = """
import os, pickle, sys
import cloudpickle, numpy, trio_dask.protocol.picklers
while True:
    try:
        data = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if os.fork():
        os.wait()
        continue
    try:
        function, args, kwargs = pickle.loads(data)
        outcome = function(*args, **kwargs)
    except Exception as error:
        outcome = type(error).__name__
    pickle.dump(outcome, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    os._exit(0)
"""

SCRIPT = """
import abc, enum, functools, types

number, numbers, table = 3, [1, 2], {"a": 1}
conf = types.ModuleType("conf_of_the_script")
conf.scale, conf.seen = 2, []
name = "global"

def read(x): return number * x
def bind(x):
    global number
    number += x
    return number
def bind_and_read(x): return bind(x), read(1)
def append(x): numbers.append(x); return list(numbers)
def append_twice(x): append(x); return append(x)
def remember(x, seen=[]): seen.append(x); return list(seen)
def count(x): count.calls = getattr(count, "calls", 0) + x; return count.calls
def bind_by_name(x): globals()["number"] += x; return number
def scaled(x): conf.seen.append(x); return conf.scale * x, len(conf.seen)
def put(x): table["a"] += x; return table["a"]
def body(x):
    class Body:
        value = number + x
    return Body.value
def attribute(x): return getattr(types.SimpleNamespace(name=x), "name") if x.name else 0
@functools.lru_cache
def cached(x): return [x]
def from_cache(x): cached(1).append(x); return cached(1)
def closure():
    calls, seen = 0, []
    def inner(x):
        nonlocal calls
        calls += x
        seen.append(x)
        return calls, list(seen)
    return inner
def set_first(x, a): a[0] += x; return float(a[0]), len(a)
def own_class(x):
    Holder.last = x if not hasattr(Holder, "last") else Holder.last + x
    return Holder.last

class Holder:
    made = 0
    items = []
    def __init__(self, k=0): self.k = k
    def fit(self, x): self.k += x; return self.k
    def __call__(self, x): self.last = getattr(self, "last", 0) + x; return self.last
    def read(self, x): return number + x + self.k
class Counting:
    made = 0
    def bump(self, x): type(self).made += x; return Counting.made
    @classmethod
    def all(cls, x): cls.made += x; return cls.made
    def listed(self, x): Listing.items.append(x); return len(Listing.items)
class Listing:
    items = []
class Level(enum.Enum):
    LOW = [1]
    HIGH = {"a": 2}
    def __init__(self, value): self.marks = 0
class Step(enum.Enum):
    FIRST = 1
class Shape(abc.ABC):
    pass
class Sentinel:
    def __init__(self): self.seen = 0
    def __reduce__(self): return "SENTINEL"
SENTINEL = Sentinel()
def default_function(x, h=read): h.calls = getattr(h, "calls", 0) + x; return h.calls
HANDLERS = (read, append)
def in_tuple(x): HANDLERS[0].calls = getattr(HANDLERS[0], "calls", 0) + x; return HANDLERS[0].calls
def is_read(x, f=read): return f is read, f is HANDLERS[0], {read: 1}.get(f)
nothing = object()
def is_nothing(x, y=nothing): return y is nothing
def by_module(x): counts.n += x; return counts.n
counts = types.ModuleType("counts_of_the_script")
counts.n = 0
def in_static(x): return Static.keep(x)
class Static:
    keep = staticmethod(functools.partial(lambda seen, x: seen.append(x) or list(seen), []))
class Hidden(enum.Enum):
    ONE = 1
    __seen = []
    @classmethod
    def note(cls, x): cls.__seen.append(x); return list(cls.__seen)
class Registry:
    known = set()
    def __init_subclass__(cls): Registry.known.add(cls); Registry.names.append(cls.__name__)
    names = []
class First(Registry): v = 1
def registered(x): return list(Registry.names), sorted(cls.v for cls in Registry.known)
def fill_member(x): Level.LOW.value.append(x); return sum(Level.LOW.value), Level(Level.LOW.value) is Level.LOW
def mark_member(x): Level.HIGH.marks += x; return Level.HIGH.marks
def mark_step(x): setattr(Step.FIRST, "marks", getattr(Step.FIRST, "marks", 0) + x); return Step.FIRST.marks
def of_sentinel(x): SENTINEL.seen += x; return SENTINEL.seen
def gives_length(x): setattr(Holder, "__len__", lambda self: x); return hasattr(Listing, "__len__"), len(Holder())
def has_length(x): return hasattr(Holder, "__len__"), x
def registers(x): Shape.register(int); return isinstance(x, Shape)
def is_shape(x): return isinstance(x, Shape)
"""


def apply(function: Any, x: Any) -> Any:
    """By reference in this process alone, so by value: a function that calls another one."""
    return function(x)


class Program:
    """A script and the objects that it keeps, which change while it runs."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        exec(SCRIPT, self.names)
        n = self.names
        self.small: Any = np.zeros(100)
        self.large: Any = np.zeros(40_000)
        self.generator = random.Random(7)
        self.counter: collections.Counter[str] = collections.Counter()
        self.holder = n["Holder"](5)
        apply.__module__ = "__main__"
        by_name = ["read", "bind", "bind_and_read", "append", "append_twice", "remember", "count", "bind_by_name"]
        by_name += ["scaled", "put", "body", "from_cache", "default_function", "in_tuple", "is_read", "is_nothing"]
        by_name += ["by_module"]
        self.callables: list[Callable[..., Any]] = [n[name] for name in by_name]
        self.callables += [
            n["closure"](),
            n["closure"](),
            self.holder.fit,
            self.holder,
            self.holder.read,
            n["Holder"](1).fit,
            functools.partial(n["set_first"], a=self.small),
            functools.partial(n["set_first"], a=self.large),
            functools.partial(operator.mul, 3),
            functools.partial(functools.partial(n["append"])),
            operator.neg,
            abs,
            self.generator.randrange,
            n["numbers"].count,
            self.reading_array(self.large),
            self.reading_array(self.small),
        ]
        self.of_classes = [n["own_class"], n["Counting"]().bump, n["Counting"].all, n["Counting"]().listed]
        by_name = ["in_static", "registered", "fill_member", "mark_member", "mark_step", "of_sentinel"]
        self.of_classes.append(n["Hidden"].note)
        self.of_classes += [n[name] for name in [*by_name, "gives_length", "has_length", "registers", "is_shape"]]

    def reading_array(self, array: Any) -> Any:
        names: dict[str, Any] = {"__name__": "__main__", "array": array}
        exec("def add(x):\n    array[0] += x\n    return float(array[0])", names)
        return names["add"]

    def changes(self) -> list[Callable[[], object]]:
        n = self.names

        def redefine() -> None:
            exec("def read(x): return number - x", n)

        return [
            lambda: n.__setitem__("number", n["number"] + 10),
            lambda: n["numbers"].append(9),
            lambda: n["table"].__setitem__("a", 50),
            lambda: setattr(n["conf"], "scale", n["conf"].scale + 5),
            lambda: n["conf"].seen.append(0),
            lambda: setattr(self.holder, "k", 77),
            lambda: operator.setitem(self.small, 0, 5),
            lambda: operator.setitem(self.large, 0, 6),
            lambda: n["remember"].__defaults__[0].append(8),
            lambda: setattr(n["count"], "calls", 4),
            lambda: setattr(n["Holder"], "read", lambda self, x: x),
            lambda: setattr(n["Counting"], "made", 30),
            lambda: n["Listing"].items.append(1),
            lambda: n["Level"].LOW.value.append(1),
            lambda: setattr(n["Level"].HIGH, "marks", 7),
            lambda: setattr(n["Step"].FIRST, "marks", 8),
            lambda: setattr(n["read"], "calls", 5),
            lambda: setattr(n["counts"], "n", 6),
            lambda: setattr(n["First"], "v", 7),
            lambda: n["Hidden"]._Hidden__seen.append(3),
            lambda: n["Static"].keep.args[0].append(4),
            lambda: setattr(n["SENTINEL"], "seen", 9),
            lambda: n["closure"]().__closure__,
            redefine,
            lambda: self.generator.random(),
        ]


BEYOND_CLOUDPICKLE = {"body", "from_cache", "fill_member", "mark_member", "mark_step", "of_sentinel", "registered"}


def pickled(call: Any) -> bytes:
    if not BEYOND_CLOUDPICKLE.isdisjoint(getattr(part, "__name__", "") for part in (call[0], *call[1])):
        file = io.BytesIO()
        DefinitionPickler(file, pickle.HIGHEST_PROTOCOL).dump(call)
        return file.getvalue()
    content: bytes = cloudpickle.dumps(call)
    return content


@pytest.fixture(scope="module")
def reference() -> Iterator[Callable[..., Any]]:
    with subprocess.Popen([sys.executable, "-c", REFERENCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def compute(function: Any, *args: Any, **kwargs: Any) -> Any:
            pickle.dump(pickled((function, args, kwargs)), stdin)
            stdin.flush()
            return pickle.load(stdout)

        yield compute
        stdin.close()


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[tuple[int, int], Client]]:
    with contextlib.ExitStack() as stack:
        yield {
            layout: stack.enter_context(Client(n_workers=layout[0], threads_per_worker=layout[1]))
            for layout in [(1, 1), (1, 4), (3, 1)]
        }


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """A few callables, and steps about them: what to do, and with which callable or change.

    Neighbours in the lists of a program often have something in common, so they are chosen together.
    """
    first = draw(st.lists(st.integers(0, 99), min_size=1, max_size=2))
    chosen = [number + step for number in first for step in (0, 1)]
    changes = draw(st.lists(st.integers(0, 99), min_size=1, max_size=2))
    step = st.one_of(
        st.tuples(st.sampled_from(["submit", "map", "argument"]), st.sampled_from(chosen), st.integers(1, 3)),
        st.tuples(st.just("change"), st.sampled_from(changes), st.just(0)),
    )
    return draw(st.lists(step, min_size=3, max_size=20))


def plain(value: Any) -> Any:
    return type(value).__name__ if isinstance(value, Exception) else value


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories(), layout=st.sampled_from([(1, 1), (1, 1), (1, 4), (3, 1)]))
def test_a_task_gets_what_its_call_was_and_nothing_of_other_tasks(
    history: list[tuple[str, int, int]],
    layout: tuple[int, int],
    reference: Callable[..., Any],
    clusters: dict[tuple[int, int], Client],
) -> None:
    client = clusters[layout]
    program = Program()
    changes = program.changes()
    callables = program.callables + program.of_classes
    made, expected = [], []
    for what, number, x in history:
        function = callables[number % len(callables)]
        if what == "change":
            changes[number % len(changes)]()
        elif what == "submit":
            made.append(client.submit(function, x, pure=False))
            expected.append(reference(function, x))
        elif what == "argument":
            made.append(client.submit(apply, function, x, pure=False))
            expected.append(reference(apply, function, x))
        else:
            made += client.map(function, [x, x + 1], pure=False)
            expected += [reference(function, x), reference(function, x + 1)]
    found = [error if (error := future.exception()) is not None else future.result() for future in made]
    assert [plain(value) for value in found] == expected


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_a_key_stays_while_nothing_changes_and_never_stands_for_two_behaviours(
    history: list[tuple[str, int, int]], reference: Callable[..., Any], clusters: dict[tuple[int, int], Client]
) -> None:
    client = clusters[1, 1]
    program = Program()
    changes = program.changes()
    callables = program.callables + program.of_classes
    behaviours: dict[tuple[int, str], Any] = {}
    last: dict[int, str] = {}
    for what, number, _ in history:
        if what == "change":
            changes[number % len(changes)]()
            last.clear()
            continue
        index = number % len(callables)
        key, value = client.submit(callables[index], 1).key, reference(callables[index], 1)
        assert last.setdefault(index, key) == key
        assert behaviours.setdefault((index, key), value) == value
