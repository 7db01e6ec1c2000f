"""Tokens: equal for equal calls, in every process; different for different ones."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trio_dask.errors
from tests.protocol.kit import Future, in_main
from trio_dask.protocol import call_tokens
from trio_dask.protocol.call_tokens import canonical_token
from trio_dask.protocol.pickled_definitions import token_of_definition
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import call_token, pickle_call, pickle_function

FUNCTION = b"f" * 16


class Plain:
    def __init__(self, **state: object) -> None:
        self.__dict__.update(state)


def token(*args: Any, **kwargs: Any) -> bytes:
    return call_token(FUNCTION, args, kwargs, pickle_call(args, kwargs))


def rebuilt(value: Any) -> Any:
    """An equal value in which no two objects are one, and no object is one of those in `value`."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return kind([rebuilt(item) for item in value])
    if kind is dict:
        return {rebuilt(key): rebuilt(item) for key, item in value.items()}
    if kind is str:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    return copy.copy(value)


# Equal in Python, but not the same argument: 1, True and 1.0.
atoms = st.none() | st.text(max_size=3) | st.integers() | st.binary(max_size=3)
hashable = st.recursive(atoms, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=6)
values = st.recursive(
    hashable | st.sets(hashable, max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=3))
def test_equal_calls_have_equal_tokens_whatever_is_identical_in_them(args: list[Any], kwargs: dict[str, Any]) -> None:
    again = dict(reversed(rebuilt(kwargs).items()))
    assert token(*args, **kwargs) == token(*rebuilt(args), **again)
    text = "".join("abc")
    assert token(text, text) == token(text, "".join("abc"))
    assert token(args, args, [args]) == token(args, rebuilt(args), [rebuilt(args)])


@given(values, values)
def test_different_arguments_have_different_tokens(one: Any, other: Any) -> None:
    assert token(one) != token(other) or (one == other and type(one) is type(other))
    assert token(one, other) != token([one, other])
    assert token(one) != token(a=one)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (0, None), ("1", 1), (b"1", "1"), ([1], (1,)), ({1}, frozenset({1})), (0.0, -0.0)],
)
def test_equal_but_other_types_are_other_arguments(one: Any, other: Any) -> None:
    assert token(one) != token(other)
    assert token([one]) != token([other])


def test_the_function_counts() -> None:
    pickled = pickle_call((1,), {})
    assert call_token(b"f" * 16, (1,), {}, pickled) != call_token(b"g" * 16, (1,), {}, pickled)
    pickled = pickle_call(([1],), {})
    assert call_token(b"f" * 16, ([1],), {}, pickled) != call_token(b"g" * 16, ([1],), {}, pickled)
    assert len(token(1)) == len(token([1])) == 16


def test_futures_count_by_key_wherever_they_are() -> None:
    for wrap in (lambda f: f, lambda f: [f], lambda f: Plain(a={"b": f}), lambda f: lambda: f):
        assert token(wrap(Future("a"))) == token(wrap(Future("".join("a"))))
        assert token(wrap(Future("a"))) != token(wrap(Future("b")))
        assert token(wrap(Future("a"))) != token(wrap("a"))
    one, two = Future("".join("kk")), Future("".join("kk"))
    assert one.key is not two.key
    assert token(one, one) == token(one, two)


@pytest.mark.parametrize("size", [4, 100_000])
def test_arrays_count_by_content(size: int) -> None:
    base = np.arange(size, dtype=np.float64)
    other = base.copy()
    other.flags.writeable = False
    assert token(base) == token(base.copy())
    assert token(base) != token(other)  # a task that writes to it gets another answer
    assert token([base, base]) == token([base, base.copy()])
    changed = base.copy()
    changed[-1] += 1
    assert token(base) != token(changed)
    assert token(base) != token(base.astype(np.float32))
    assert token(base) != token(base.reshape(2, -1))
    assert token(base[: size // 2]) != token(base[size // 2 :])
    assert token(bytes(base)) != token(bytearray(base))


class Temporary:
    """Its pickle holds an object that lives no longer than the pickling."""

    def __init__(self, byte: bytes, wrap: Callable[[bytes], object]) -> None:
        self.byte = byte
        self.wrap = wrap

    def __reduce__(self) -> tuple[Any, ...]:
        return Temporary, (self.wrap(self.byte * 200_000), self.wrap)


def as_buffer(data: Buffer) -> pickle.PickleBuffer:
    return pickle.PickleBuffer(bytearray(data))


@pytest.mark.parametrize("wrap", [bytes, bytearray, as_buffer])
def test_content_that_lives_only_while_it_is_pickled_is_not_mistaken(wrap: Callable[..., Any]) -> None:
    """Another object may have its address when the token is made."""
    tokens = {token([Temporary(byte, wrap) for byte in (b"1", b"1", last)]) for last in (b"1", b"2", b"3", b"4")}
    assert len(tokens) == 4


class Part:
    """A view of a part of some buffer, as of a column store."""

    def __init__(self, view: Buffer) -> None:
        self.view = view

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (pickle.PickleBuffer(self.view),)


def test_parts_of_one_buffer_are_told_apart() -> None:
    raw = bytearray(os.urandom(400_000))
    for wrap in (Part, lambda view: np.frombuffer(view, dtype=np.uint8)):
        halves = [wrap(memoryview(raw)[start:][:200_000]) for start in (0, 200_000)]
        assert token(halves[0]) != token(halves[1])
        assert token(*halves) != token(*reversed(halves))
        assert token(halves[0]) == token(wrap(memoryview(raw[:200_000])))


def test_cycles_have_tokens() -> None:
    def ring(last: object) -> list[Any]:
        first = ["a", last]
        first.append(first)
        return first

    assert token(ring(1)) == token(ring(1)) != token(ring(2))
    assert list({0, 8}) != list({8, 0})
    assert token(ring({0, 8})) == token(ring({8, 0}))
    node: Any = Plain(name="a")
    node.self = node
    other: Any = Plain(name="a")
    other.self = other
    assert token(node) == token(other)


def test_parts_that_multiply_do_not_take_for_ever() -> None:
    def tower() -> list[Any]:
        value: list[Any] = ["x"]
        for _ in range(60):
            value = [value, value]
        return value

    began = time.perf_counter()
    assert token(tower()) == token(tower())
    assert time.perf_counter() - began < 5


def define(source: str) -> Any:
    """The `f` of a script."""
    return in_main(textwrap.dedent(source))["f"]


SAME = [
    "def f(x): return x + 1",
    "def f(x, y={1: 'a'}): return {x, 'b', 'c'}",
    "def f(n): return n and f(n - 1)",
    "def g(n): return f(n)\ndef f(n): return n and g(n - 1)",
    "import functools\n@functools.lru_cache\ndef f(x): return x in {'a', 'b', 'c'}",
    "import functools, operator\nf = functools.partial(operator.add, 1)",
    "f = (lambda n: lambda x: x + n)(3)",
    "names = {'a', 'b', 'c'}\ndef f(): return names",
    "class f:\n    kinds = frozenset('abc')\n    def m(self): return f(self.kinds)",
    "from dataclasses import *\n@dataclass\nclass f:\n    x: int = 1\n    y: list = field(default_factory=list)",
    "import enum\nclass f(enum.Enum):\n    A = 1\n    B = 2",
    "import abc\nclass f(abc.ABC):\n    @abc.abstractmethod\n    def m(self): ...",
    "import typing\nclass f(typing.NamedTuple):\n    x: int\n    y: str = 'a'",
    "class A:\n    def m(self): return 1\nclass f(A):\n    def m(self): return super().m()",
]


@pytest.mark.parametrize("source", SAME)
def test_a_definition_made_twice_is_the_same_function(source: str) -> None:
    one, other = define(source), define(f"# elsewhere\n\n\n{source}")
    assert pickle_function(one).token == pickle_function(other).token
    assert token(one) == token(other)
    assert token([one, one]) == token([one, one])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x): return x + 1", "def f(x): return x - 1"),
        ("def f(x, y=1): return x", "def f(x, y=2): return x"),
        ("def f(*, y=1): return y", "def f(*, y=2): return y"),
        ("y = 1\ndef f(): return y", "y = 2\ndef f(): return y"),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()"),
        ("f = (lambda n: lambda: n)(1)", "f = (lambda n: lambda: n)(2)"),
        ("def f(): return lambda: 1", "def f(): return lambda: 2"),
        ("class f:\n    a = 1", "class f:\n    a = 2"),
        ("class f:\n    def m(self): return 1", "class f:\n    def m(self): return 2"),
        ("import functools\nf = functools.partial(max, 1)", "import functools\nf = functools.partial(max, 2)"),
        ("import functools\nf = functools.partial(max, 1)", "import functools\nf = functools.partial(min, 1)"),
        ("f = len", "f = abs"),
    ],
)
def test_another_definition_is_another_function(one: str, other: str) -> None:
    assert pickle_function(define(one)).token != pickle_function(define(other)).token
    assert token(define(one)) != token(define(other))


def test_methods_count_by_their_object() -> None:
    thing = define("class f:\n    def __init__(self, x): self.x = x\n    def m(self): return self.x")
    assert pickle_function(thing(1).m).token == pickle_function(thing(1).m).token
    assert pickle_function(thing(1).m).token != pickle_function(thing(2).m).token
    assert token(thing(1).m) == token(thing(1).m) != token(thing(2).m)


SCRIPT = """
import dataclasses, datetime, decimal, enum, functools, pathlib, uuid
import numpy as np
from trio_dask.protocol.pickling import KeyReference, call_token, pickle_call, pickle_function

class Future(KeyReference):
    def __init__(self, key): self.key = key

@dataclasses.dataclass
class Config:
    name: str
    tags: set
    def method(self): return {"x", "y", "z", self.name}

@dataclasses.dataclass(frozen=True)
class Point:
    x: int

class Color(enum.Enum):
    RED = 1
    BLUE = "b"

words = {"alpha", "beta", "gamma", "delta"}

class Tags(set):
    pass
class Plugin:
    known = set()
    def __init_subclass__(cls): Plugin.known.add(cls)
class First(Plugin): v = 1
class Second(Plugin): v = 2
tags = Tags(words)
tags.note = "n"

def helper(x): return x in {"one", "two", "three"}
def main_function(x, y=frozenset(["p", "q", "r"])): return helper(x) or main_function(y, words)
def by_closure(n):
    def inner(x): return x + n
    return inner

values = [
    1, "a", words, frozenset(words), {"k": [words, ({1, "a", None, 2.5},)]}, {frozenset("abc"), frozenset("xyz")},
    Config("n", set(words)), [Config("n", words)], {Point(1), Point(2), Point(3)}, Color.BLUE, {Color.RED, Color.BLUE},
    np.arange(10), np.arange(100_000), np.array(["a", None], dtype=object), np.float32(1.5), np.dtype("f4"),
    Future("k-1"), [Future("k-1"), {"a": Future("k-2")}], main_function, [main_function, helper], by_closure(3),
    functools.partial(main_function, y=words), Config("n", words).method, lambda x: words, Config, Color,
    datetime.datetime(2020, 1, 1), decimal.Decimal("1.5"), pathlib.PurePosixPath("/a"), uuid.UUID(int=5), range(3),
    tags, [Tags(words)], Plugin, First(), lambda: Plugin.known,
    b"x" * 100_000, "y" * 100_000, Ellipsis, int, np.sin, len, str.upper, slice(1, 2), 1 + 2j,
]
for number, value in enumerate(values):
    print(number, call_token(b"f" * 16, (value, 1), {}, pickle_call((value, 1), {})).hex())
    print(number, call_token(b"f" * 16, (), {"b": 1, "a": value}, pickle_call((), {"a": value, "b": 1})).hex())
    if callable(value):
        print(number, pickle_function(value).token.hex())
"""


def test_tokens_are_the_same_in_every_process_and_hash_seed() -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(trio_dask.errors.__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "random")
    ]
    outputs = [program.communicate(timeout=30)[0].splitlines() for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    assert len(outputs[0]) > 80
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({line.split()[1] for line in outputs[0]}) == len(outputs[0]), "all of these are different calls"


@pytest.mark.parametrize("words", [1000, 300_000])
def test_long_lists_of_equal_words_are_equal(words: int) -> None:
    """Equal strings that are one object in one list, and many in another."""

    def listed() -> list[str]:
        return [str(number % 1000) for number in range(words)]

    one = [str(number) for number in range(1000)] * (words // 1000)
    tokens = [call_token(b"f", (value,), {}, pickle_call((value,), {})) for value in (listed(), listed(), one)]
    assert tokens[0] == tokens[1] == tokens[2]


def test_one_definition_that_carries_state_has_all_told_in_full() -> None:
    """Else the first of a set would decide how the others are told, and sets of functions have no order."""
    names = {"__name__": "__main__"}
    exec("log = []\ndef a(): return log\ndef b(): return 1", names)
    for value in ([names["b"], names["a"]], [names["a"], names["b"]]):
        in_full = canonical_token(value, b"")
        assert canonical_token(value, b"", token_by_value=token_of_definition) == in_full
    assert canonical_token([names["b"]], b"", token_by_value=token_of_definition) != canonical_token([names["b"]], b"")


def content_of(thing: object) -> Any:
    return call_tokens.ContentTokens().of(thing)


def test_each_class_is_looked_into_once_for_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 30
    source = "\n".join(
        f"class C{n}:\n    items = []\n    def other(self): return C{(n + 1) % count}, C{(n + 7) % count}"
        for n in range(count)
    )
    names = in_main(source)
    looks = []
    make = call_tokens._ShallowPickler

    def look(file: Any, memo: Any, root: object, others: Any) -> Any:
        looks.append(root)
        return make(file, memo, root, others)

    monkeypatch.setattr(call_tokens, "_ShallowPickler", look)
    pickle_function(names["C0"]().other)
    assert len({id(look) for look in looks if isinstance(look, type)}) == count
    assert len(looks) <= 3 * count


def test_a_set_that_leads_to_itself_has_a_token() -> None:
    names = in_main(
        "class Base:\n    known = set()\n    def __init_subclass__(cls): Base.known.add(cls)\n"
        "class A(Base): v = 1\nclass B(Base): v = 2"
    )

    before = content_of(names["Base"])
    assert content_of(names["Base"]) == before
    names["A"].v = 3
    assert content_of(names["Base"]) != before


def test_a_named_object_is_told_without_going_round(monkeypatch: pytest.MonkeyPatch) -> None:
    names = in_main("import typing\nUserId = typing.NewType('UserId', int)")
    attempts = []

    class Counted(call_tokens._CanonicalPickler):
        def dump(self, value: object) -> None:
            attempts.append(self.memo_wanted)
            super().dump(value)

    monkeypatch.setattr(call_tokens, "_CanonicalPickler", Counted)
    call_tokens.canonical_token(names["UserId"], b"")
    assert attempts == [False]


def test_a_class_is_another_where_one_that_it_reaches_is_another() -> None:
    names = in_main(
        "class A:\n    items = []\n    def b(self): return B()\nclass B:\n    n = 1\n    def a(self): return A"
    )

    before = content_of(names["A"])
    assert content_of(names["A"]) == before
    names["B"].n = 2
    assert content_of(names["A"]) != before


class Told:
    """What tells dask its token is pickled for the call alone."""

    pickled = 0

    def __init__(self, name: str, cache: object = None) -> None:
        self.name = name
        self.cache = cache

    def __reduce__(self) -> Any:
        type(self).pickled += 1
        return Told, (self.name, self.cache)

    def __dask_tokenize__(self) -> object:
        return self.name


def test_an_object_that_tells_dask_its_token_counts_by_that_and_is_not_pickled_for_it() -> None:
    Told.pickled = 0
    one = Told("a", cache=1)
    found = token(one, [one])
    assert Told.pickled == 1
    assert found == token(Told("a", cache=2), [Told("a")])
    assert found != token(Told("b"), [Told("b")])
    assert token(Told("a")) not in (token("a"), token((Told, "a")))
