"""What carries state and what does not, and what is watched."""

import collections
import dataclasses
import enum
import logging
import os
import pathlib
import re
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.protocol.kit import in_main
from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.captured_values import CarriesState, is_immutable
from trio_dask.protocol.pickled_definitions import by_value, kept_definition
from trio_dask.protocol.pickling import pickle_call, pickle_function

T = typing.TypeVar("T")


def plain() -> type:
    class Plain:
        def __init__(self, x: object) -> None:
            super().__init__()
            self.x = x

    return Plain


def data_class() -> type:
    @dataclasses.dataclass
    class Data:
        x: int
        y: list[int] = dataclasses.field(default_factory=list)
        z: typing.Optional[int] = None  # noqa: UP045

    return Data


def frozen_class() -> type:
    @dataclasses.dataclass(frozen=True, slots=True, order=True)
    class Frozen:
        x: int = 3

    return Frozen


def enumeration() -> type:
    class Colour(enum.Enum):
        RED = 1
        BLUE = "x"

    return Colour


def flags() -> type:
    class Mode(enum.IntFlag):
        A = 1
        B = 2

    return Mode


def named_tuple() -> type:
    class Pair(typing.NamedTuple):
        a: int
        b: str = "x"

    return Pair


def protocol() -> type:
    class Reads(typing.Protocol):
        def read(self) -> int: ...

    return Reads


def generic() -> type:
    class Box(typing.Generic[T]):
        __slots__ = ("v",)

        def __init__(self, v: T) -> None:
            self.v = v

    return Box


def uses_constants() -> Callable[..., Any]:
    log, pattern, path = logging.getLogger("x"), re.compile("a"), pathlib.Path("/")

    scalars, kind, part = (np.float64(1), np.int8(1), np.bool_(True), np.str_("a")), np.dtype("f8"), slice(1, 2)

    def f(x: typing.Optional[int]) -> list[Any]:  # noqa: UP045
        log.info("x")
        return [pattern, path, x, os.path.join("a", "b"), scalars, kind, part]

    return f


STATELESS = [plain, data_class, frozen_class, enumeration, flags, named_tuple, protocol, generic, uses_constants]


@pytest.mark.parametrize("make", [*STATELESS, lambda: collections.namedtuple("P", "a b"), lambda: lambda x: x + 1])
def test_ordinary_definitions_carry_no_state_and_are_pickled_once(make: Callable[..., Any]) -> None:
    thing = make()
    assert by_value(thing) is by_value(thing)
    if isinstance(thing, type) and not issubclass(thing, enum.Enum) and not getattr(thing, "_is_protocol", False):
        pickle_call((thing(*[1] * len(getattr(thing, "_fields", "x"))),), {})
        assert kept_definition(thing) is not None, "to pickle an instance is no change"


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    global n\n    n = 1",
        "def f(x=[]): pass",
        "def f(x=slice([])): pass",
        "import numpy\na = numpy.zeros(1, 'i4,f4')[0]\ndef f(): return a",
        "import numpy\na = numpy.dtype('i4,f4')\ndef f(): return a",
        "class C: pass\ndef f(c): super(C, c).__dict__['x'] = 1",
        "a = []\ndef f(): return a",
        "a = {}\ndef f(): return (lambda: a)",
        "def g(): pass\ndef f(): g.x = 1",
        "class C: pass\ndef f(): C.x = 1",
        "class C: pass\ndef f(c): type(c).x = 1",
        "class C: pass\ndef f(c): c.__class__.x = 1",
        "def f(): globals()['x'] = 1",
        "def f(x): setattr(x, 'y', 1)",
        "import functools\n@functools.lru_cache\ndef f(): pass",
        "class f:\n    items = []",
        "class f:\n    @classmethod\n    def g(cls): cls.n = 1",
        "class f:\n    def __init_subclass__(cls): cls.n = 1",
        "class f(type):\n    def g(cls): cls.n = 1",
        "import types\na = types.ModuleType('only_here'); a.b = []\ndef f(): return a",
        "import enum\nclass f(enum.Enum):\n    A = [1]",
        "def make():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n    return f\nf = make()",
        "import functools\ndef g(a): return a\nh = functools.partial(g, [])\ndef f(): return h",
    ],
)
def test_what_can_carry_state_is_known(source: str) -> None:
    with pytest.raises(CarriesState):
        by_value(in_main(source)["f"])


def test_only_names_that_code_reads_are_globals() -> None:
    source = (
        "def f(x):\n    a = x.one\n    class C:\n        b = two\n    return [three for _ in a], (lambda: four), len\n"
    )
    assert set(code_use(in_main(source)["f"].__code__).globals) - {"__name__"} == {"two", "three", "four", "len"}


def test_a_local_variable_that_a_nested_function_binds_is_no_state() -> None:
    use = code_use(in_main("def f():\n    n = 0\n    def g():\n        nonlocal n\n        n = 1\n")["f"].__code__)
    assert not use.outer
    assert not use.keeps_state


@pytest.mark.parametrize("change", ["C.register(int)", "D.x = 5", "f.__annotations__['x'] = str"])
def test_changes_that_leave_no_trace_in_the_function_are_noticed(change: str) -> None:
    names = in_main(
        "import abc, dataclasses\n"
        "class C(abc.ABC): pass\n"
        "@dataclasses.dataclass\nclass D:\n    x: int = 3\n"
        "def f(x: int): return C, D\n"
    )
    before = pickle_function(names["f"])
    assert pickle_function(names["f"]) is before
    exec(change, names)
    after = pickle_function(names["f"])
    assert after.token != before.token
    assert after.data != before.data


def test_shared_parts_of_a_tuple_are_looked_at_once() -> None:
    parts: tuple[Any, ...] = ()
    for _ in range(60):
        parts = parts, parts
    assert is_immutable(parts)
    parts = (parts, [])
    assert not is_immutable((parts, parts))
