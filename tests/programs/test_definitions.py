"""What a script defines means on the workers what it means in the script, at the time of the submit."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PREAMBLE = """
import time
import numpy as np
from trio_dask import Client
"""


def run(script: str, tmp_path: Path, layout: str = "n_workers=1, threads_per_worker=4") -> list[str]:
    path = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(script).partition("# cluster\n")[2], "    ")
    definitions = textwrap.dedent(script).partition("# cluster\n")[0]
    path.write_text(f"{PREAMBLE}{definitions}\nwith Client({layout}) as client:\n{body}\n")
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_methods_and_bound_arguments_are_each_tasks_own(tmp_path: Path) -> None:
    run(
        """
        class Model:
            def fit(self, k): self.k = k; time.sleep(.05); return self
        def add_one(i, a): a += 1; return float(a[0])
        # cluster
        assert [m.k for m in client.gather([client.submit(Model().fit, k) for k in range(6)])] == list(range(6))
        for size in (100, 500, 200_000):
            assert client.gather(client.map(add_one, range(4), a=np.zeros(size), pure=False)) == [1] * 4
        """,
        tmp_path,
    )


def test_a_class_that_is_changed_between_submits_is_another_class_for_each(tmp_path: Path) -> None:
    run(
        """
        class Conf:
            scale = 0
        def scaled(x): time.sleep(.02); return Conf.scale * x
        # cluster
        futures = []
        for scale in range(12):
            Conf.scale = scale
            futures.append(client.submit(scaled, 10))
        assert client.gather(futures) == [10 * scale for scale in range(12)]
        """,
        tmp_path,
    )


def test_values_of_a_class_of_the_script_are_instances_of_it_for_every_task(tmp_path: Path) -> None:
    run(
        """
        import dataclasses
        @dataclasses.dataclass
        class Point:
            x: int
            colours = ["red"]
        def make(x): return Point(x)
        def check(a, b, x): return isinstance(a, Point) and a == Point(x) and type(a) is type(b)
        def grow(x): Point.colours.append(x); return len(Point.colours)
        # cluster
        a = client.submit(make, 1, workers=0 and None)
        assert client.submit(check, a, Point(3), 1).result() is True
        assert client.gather(client.map(grow, range(3), pure=False)) == [2, 2, 2]
        assert client.submit(check, a, Point(4), 1).result() is True
        assert type(a.result()) is Point and Point.colours == ["red"]
        """,
        tmp_path,
        "n_workers=2, threads_per_worker=1",
    )


def test_a_module_that_travels_by_value_is_watched(tmp_path: Path) -> None:
    run(
        """
        import importlib, pathlib, sys, types
        import cloudpickle
        sys.dont_write_bytecode = True
        conf = types.ModuleType("made_here")
        conf.scale = 1
        pathlib.Path("settings_of_mine.py").write_text("factor = 2\\ndef times(x): return factor * x\\n")
        sys.path.insert(0, ".")
        import settings_of_mine
        cloudpickle.register_pickle_by_value(settings_of_mine)
        def scaled(x): return conf.scale * x
        def with_settings(x): return settings_of_mine.times(x) + settings_of_mine.factor
        # cluster
        first = client.submit(scaled, 3)
        conf.scale = 777
        second = client.submit(scaled, 3)
        assert (first.result(), second.result()) == (3, 2331) and first.key != second.key
        first = client.submit(with_settings, 3), client.submit(settings_of_mine.times, 3)
        pathlib.Path("settings_of_mine.py").write_text("factor = 5\\n\\ndef times(x): return factor * x + 1\\n")
        importlib.reload(settings_of_mine)
        second = client.submit(with_settings, 3), client.submit(settings_of_mine.times, 3)
        assert client.gather([*first, *second]) == [8, 6, 21, 16]
        assert len({future.key for future in (*first, *second)}) == 4
        """,
        tmp_path,
    )


def test_names_of_attributes_are_no_globals(tmp_path: Path) -> None:
    run(
        """
        import pathlib, types
        name, data = "global", np.zeros(1_000_000)
        def name_of(path): return path.name
        def sum_of(x): return x.data
        def nested(path):
            class Inner:
                label = path.name
            return [p.name for p in [path]] + [Inner.label]
        # cluster
        path = pathlib.Path("a/b")
        before = [client.submit(f, path).key for f in (name_of, nested)]
        fixed = client.submit(name_of, path, key="fixed")
        name = "another"
        assert [client.submit(f, path).key for f in (name_of, nested)] == before
        assert client.submit(name_of, path, key="fixed").result() == "b"
        key = client.submit(sum_of, types.SimpleNamespace(data=1)).key
        data[0] = 1
        assert client.submit(sum_of, types.SimpleNamespace(data=1)).key == key
        """,
        tmp_path,
    )


def test_what_pickles_as_its_name_travels_by_value_and_is_one_object(tmp_path: Path) -> None:
    run(
        """
        import functools, typing
        UserId = typing.NewType("UserId", int)
        T = typing.TypeVar("T", bound=int)
        P = typing.ParamSpec("P")
        class Missing:
            def __reduce__(self): return "MISSING"
        MISSING = Missing()
        class Box(typing.Generic[T]):
            def __init__(self, value: T): self.value = value
            @functools.cached_property
            def double(self) -> UserId: return UserId(self.value * 2)
        CONST = 3
        def annotated(x: UserId) -> "T": return UserId(x + 1)
        def given(kind, x): return kind(x) if kind is UserId else None
        def same(x): return x is MISSING, MISSING
        def variables(): return UserId, T, P, MISSING
        def body():
            class Inner:
                value = CONST
            return Inner.value
        # cluster
        assert client.submit(annotated, UserId(1)).result() == 2
        assert client.submit(given, UserId, 4).result() == 4
        assert client.submit(same, MISSING).result() == (True, MISSING)
        for _ in range(2):
            assert all(map(lambda a, b: a is b, client.submit(variables, pure=False).result(), (UserId, T, P, MISSING)))
        assert client.submit(lambda b: b.double, Box(4)).result() == 8
        assert client.submit(same, client.submit(lambda: MISSING)).result()[0] is True
        assert client.submit(body).result() == 3
        keys = {client.submit(annotated, UserId(2)).key for _ in range(3)}
        assert len(keys) == 1
        """,
        tmp_path,
    )


def test_methods_are_found_again_whatever_they_are_called(tmp_path: Path) -> None:
    run(
        """
        import dataclasses
        def decorate(f):
            def wrapper(*a): return f(*a)
            return wrapper
        class A:
            @decorate
            def m(self): return "A.m"
            def hi(self): return "A.hi"
            def __private(self): return "private"
            def private(self): return self.__private
        class B(A):
            def hi(self): return "B.hi"
            def base(self): return super().hi
        @dataclasses.dataclass(slots=True)
        class Slotted:
            x: int
        # cluster
        assert client.submit(B().base()).result() == "A.hi"
        assert client.submit(A().m).result() == "A.m"
        assert client.submit(A().private()).result() == "private"
        assert client.submit(lambda f: f(), B().base()).result() == "A.hi"
        assert client.submit(lambda: B().base()).result()() == "A.hi"
        assert client.submit(Slotted, 3).result() == Slotted(3)
        x = bytearray(100_000)
        def alias(a, b): a[0] = 7; return b[0]
        assert client.submit(alias, x, x).result() == 7
        assert client.submit(alias, x, bytearray(100_000), pure=False).result() == 0
        """,
        tmp_path,
    )


def test_what_one_task_did_to_a_shared_definition_the_next_does_not_see(tmp_path: Path) -> None:
    run(
        """
        import abc
        class K: n = 0
        class Shape(abc.ABC): pass
        class M: n = 1
        class L(K): pass
        class Big: rows = tuple(range(400_000))
        def read(): return K.n
        def write(): K.n = 5
        def bump(cls): cls.n += 1; return cls.n
        def g(): pass
        def mark(f): f.calls = getattr(f, "calls", 0) + 1; return f.calls
        def first(): return Big.rows[0]
        def is_shape(): return isinstance(3, Shape)
        def register(): return Shape.register(int)
        # cluster
        def again(f, *args): return client.submit(f, *args, pure=False).result()
        assert [again(read), again(write), again(read)] == [0, None, 0]
        assert [again(bump, K), again(bump, K)] == [1, 1]
        assert [again(setattr, K, "n", 5), again(getattr, K, "n")] == [None, 0]
        assert [again(mark, g), again(mark, g)] == [1, 1]
        assert [again(setattr, K, "__len__", len), again(hasattr, K, "__len__")] == [None, False]
        assert [again(is_shape), again(register), again(is_shape)] == [False, int, False]
        assert [again(setattr, L, "__bases__", (M,)), again(issubclass, L, K)] == [None, True]
        old, seen = Big.rows, [again(first)]
        Big.rows = tuple(range(1, 400_000)); seen.append(again(first))
        Big.rows = old; seen.append(again(first))
        assert seen == [0, 1, 0]
        """,
        tmp_path,
        "n_workers=1, threads_per_worker=1",
    )


def test_an_enumeration_of_the_script_is_whole_on_the_workers(tmp_path: Path) -> None:
    run(
        """
        import datetime, enum
        class Planet(enum.Enum):
            EARTH = 5.9e24, 6.3e6
            def __init__(self, mass, radius): self.mass, self.radius = mass, radius
            @property
            def density(self): return self.mass / self.radius
        class Axis(bytes, enum.Enum):
            def __new__(cls, value, label):
                made = bytes.__new__(cls, [value])
                made._value_, made.label = value, label
                return made
            X = 0, "x axis"
            Y = 1, "y axis"
        class Day(datetime.date, enum.Enum):
            CHRISTMAS = 2020, 12, 25
        class Pair(tuple, enum.Enum):
            A = 1, 2
        class Colour(enum.Enum):
            RED = [1]
            BLUE = {"a": 1}
            ROUGE = [1]
            @classmethod
            def _missing_(cls, value): return cls.BLUE
            def itself(self): return Colour.RED, lambda: Colour.BLUE
        class Access(enum.Flag):
            READ = 4
            WRITE = 2
            BOTH = 6
            ASK = 8
        def look():
            return (
                Planet.EARTH.density, Axis.Y.label, bytes(Axis.Y), Axis(1) is Axis.Y, Day.CHRISTMAS.year, Pair.A[1],
                Colour.ROUGE is Colour.RED, Colour([1]) is Colour.RED, Colour(5) is Colour.BLUE, len(Colour),
                repr(Access.BOTH), repr(Access.READ | Access.WRITE), repr(~Access.READ), Pair((1, 2)) is Pair.A,
            )
        def change(member, x):
            member.value.append(x)
            member.note = x
            return list(member.value)
        def see(member): return list(member.value), hasattr(member, "note"), member is Colour.RED
        # cluster
        assert client.submit(look).result() == look()
        for member in (Planet.EARTH, Axis.Y, Day.CHRISTMAS, Pair.A, Colour.RED, Access.BOTH, Access.READ):
            assert client.submit(lambda member: member, member).result() is member
        kept = client.submit(lambda member: member, Colour.RED)
        for x in (7, 8):
            assert client.submit(change, Colour.RED, x).result() == [1, x]
            assert client.submit(see, Colour.RED, pure=False).result() == ([1], False, True)
        keys = [client.submit(look).key]
        Access.READ | Access.ASK, ~Access.ASK
        keys.append(client.submit(look).key)
        assert keys[0] == keys[1]
        Planet.EARTH.radius = 1.5
        keys.append(client.submit(look).key)
        Colour.RED.value.append(5)
        keys.append(client.submit(look).key)
        assert len(set(keys)) == 3
        assert client.submit(look).result() == look()
        """,
        tmp_path,
    )


def test_what_pickles_as_its_name_is_told_from_others_of_that_name(tmp_path: Path) -> None:
    run(
        """
        import functools, typing
        K, V = typing.TypeVar("T"), typing.TypeVar("T")
        class Box(typing.Generic[K, V]): pass
        class Sentinel:
            def __init__(self): self.seen = 0
            def __reduce__(self): return "SENTINEL"
        SENTINEL = Sentinel()
        def see(thing):
            thing.seen += 1
            thing.note = 1
            return thing.seen, thing is SENTINEL
        @functools.lru_cache
        def cached(x): return x
        cached.version = 3
        # cluster
        assert client.submit(lambda: Box[int, str]).result() == Box[int, str]
        assert client.submit(lambda thing: (thing is V, thing is K), V).result() == (True, False)
        kept = client.submit(lambda thing: thing, SENTINEL)
        kept.result()
        assert [client.submit(see, SENTINEL, pure=False).result() for _ in range(2)] == [(1, True)] * 2
        assert client.submit(lambda: cached.version).result() == 3
        """,
        tmp_path,
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with Python 3.12")
def test_a_type_alias_travels_and_one_that_cannot_says_so(tmp_path: Path) -> None:
    run(
        """
        from trio_dask import SerializationError
        type Json = dict[str, Json] | list[Json] | str
        type Pair[T] = tuple[T, T]
        type Tree[T] = T | list[Tree[T]]
        def first[T](x: list[T]) -> T: return x[0]
        # cluster
        assert client.submit(lambda: Json.__value__.__args__[1].__args__[0] is Json).result() is True
        assert client.submit(lambda: Json).result() is Json
        assert client.submit(lambda: Pair.__value__.__args__[0] is Pair.__type_params__[0]).result() is True
        assert client.submit(lambda: len(first.__type_params__)).result() == 1
        try:
            client.submit(lambda: Tree)
        except SerializationError as error:
            assert "the type alias Tree, which has parameters and refers to itself" in str(error)
        else:
            raise AssertionError
        """,
        tmp_path,
    )


def test_a_function_is_one_object_within_a_call(tmp_path: Path) -> None:
    run(
        """
        import functools
        def double(x): return 2 * x
        def run(op): return op is double
        TABLE = {double: "double"}
        def look_up(op): return TABLE.get(op)
        MISSING = object()
        def given(x=MISSING): return x is not MISSING
        def get_missing(): return MISSING
        class Holder:
            def __init__(self, f): self.f = f
            def has(self): return self.f is double
        # cluster
        assert client.submit(run, double).result()
        assert client.submit(look_up, double).result() == "double"
        assert client.submit(lambda g, h: g() is h, (lambda: double), double).result()
        assert client.submit(lambda fs: fs.count(double), [double, double]).result() == 2
        assert client.submit(lambda holder: holder.has(), Holder(double)).result()
        assert client.submit(lambda p: p.func is double, functools.partial(double, 1)).result()
        assert client.submit(given, MISSING).result() is False
        assert client.submit(given, object()).result() is True
        assert client.submit(lambda g: g() is MISSING, get_missing).result()
        assert client.submit(get_missing).result() is MISSING
        """,
        tmp_path,
    )


def test_what_is_told_apart_by_its_name_has_a_key_of_its_own(tmp_path: Path) -> None:
    run(
        """
        import enum, typing
        def make(name):
            def task(): return task.__name__
            task.__name__ = name
            return task
        META = [1]
        Marked = typing.Annotated[int, META]
        def mark(): return Marked.__metadata__[0][0]
        def aliased(alias):
            class E(enum.Enum):
                A = 1
                def __new__(cls, value):
                    made = object.__new__(cls)
                    made._value_ = value
                    cls._value2member_map_[alias] = made
                    return made
            return E
        def find(E):
            try: return E("uno").name
            except ValueError: return None
        # cluster
        assert [client.submit(lambda f: f.__name__, make(name)).result() for name in "ab"] == ["a", "b"]
        assert client.submit(mark).result() == 1
        META[0] = 2
        assert client.submit(mark).result() == 2
        assert [client.submit(find, aliased(alias)).result() for alias in ("one", "uno")] == [None, "A"]
        """,
        tmp_path,
    )
