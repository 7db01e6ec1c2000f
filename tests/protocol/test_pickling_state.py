"""What carries state and what does not, what is watched, and large content that is hashed once."""

import collections
import dataclasses
import enum
import logging
import mmap
import os
import pathlib
import re
import threading
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.protocol.kit import in_main
from trio_dask.protocol import blob_contents, call_tokens, pickled_definitions, pickled_names, raw_memory
from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.captured_values import CarriesState, is_immutable
from trio_dask.protocol.pickled_definitions import by_value, kept_definition
from trio_dask.protocol.pickling import call_token, load_call, load_function, pickle_call, pickle_function

T = typing.TypeVar("T")


def content_of(thing: object) -> Any:
    return call_tokens.ContentTokens().of(thing)


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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all content that is hashed."""
    sizes = []
    original = blob_contents._digest_by_leaves

    def counted(view: memoryview, target: Any) -> Any:
        sizes.append(view.nbytes)
        return original(view, target)

    monkeypatch.setattr(blob_contents, "_digest_by_leaves", counted)
    return sizes


@pytest.mark.parametrize("where", ["captured", "argument", "bound"])
def test_large_content_is_hashed_once_and_a_change_in_place_is_noticed(where: str, hashed: list[int]) -> None:
    array = np.zeros(1_000_000)
    names = in_main("def f(x): return array[0]\nclass C:\n    def m(self, x): return self.array[0]\n")
    names["array"] = array
    bound = names["C"]()
    bound.array = array

    def submit() -> tuple[bytes, dict[bytes, bytes | memoryview]]:
        function = {"captured": names["f"], "bound": bound.m}.get(where, len)
        arguments = (array,) if where == "argument" else (1,)
        pickled, call = pickle_function(function), pickle_call(arguments, {})
        content = dict(pickled.blobs + call.blobs)
        return call_token(pickled.token, arguments, {}, call), content

    (first, sent), (again, _) = submit(), submit()
    assert first == again
    assert hashed == [array.nbytes]
    array[7] = 1
    other, sent_later = submit()
    assert other != first
    assert len(hashed) == 2
    assert {bytes(content) for content in sent.values()} != {bytes(content) for content in sent_later.values()}


def test_content_is_let_go_with_its_array() -> None:
    array = np.zeros(raw_memory.MAPPED_BYTES, dtype=np.uint8)
    ((_, data),) = pickle_call((array,), {}).blobs
    assert isinstance(data, memoryview)
    kept = weakref.ref(data.obj)
    del data
    assert kept() is not None
    del array
    assert kept() is None


def test_kept_content_has_a_limit() -> None:
    kept = blob_contents._KeptContents(5 << 20)
    arrays = [np.full(1 << 20, number, dtype=np.uint8) for number in range(8)]
    for array in arrays:
        kept.keep(array, bytes([array[0]]), bytes(array))
    found = [kept.find(array, memoryview(array.data)) is not None for array in arrays]
    assert found == [False] * 3 + [True] * 5


@pytest.mark.parametrize(
    "nbytes", [blob_contents.LEAF_BYTES - 1, blob_contents.LEAF_BYTES, blob_contents.LEAF_BYTES + 1, 7_000_001]
)
def test_the_digest_depends_on_content_alone(nbytes: int) -> None:
    data = np.random.default_rng(nbytes).bytes(nbytes)
    digest = blob_contents.content_digest(data)
    assert blob_contents.fixed_content(np.frombuffer(bytearray(data), dtype=np.uint8).data) == (digest, data)
    assert blob_contents.content_digest(memoryview(bytearray(data))) == digest
    other = bytearray(data)
    other[-1] ^= 1
    assert blob_contents.content_digest(other) != digest
    assert blob_contents.content_digest(data[:-1]) != digest


@pytest.mark.parametrize("nbytes", [0, 100, raw_memory.MAPPED_BYTES, raw_memory.MAPPED_BYTES + 5])
def test_copies_of_a_buffer_are_each_ones_own(nbytes: int) -> None:
    buffer = raw_memory.shared_memory(nbytes)
    buffer[:] = bytes(nbytes)
    one, other = raw_memory.own_copy(buffer), raw_memory.own_copy(buffer)
    if nbytes:
        one[0] = 1
        one[-1] = 2
    assert bytes(buffer) == bytes(nbytes) == bytes(other)


def test_maps_are_closed_with_the_last_use() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    buffer = raw_memory.shared_memory(raw_memory.MAPPED_BYTES)
    array = np.frombuffer(raw_memory.own_copy(buffer), dtype=np.uint8)
    del buffer
    assert array[-1] == 0
    del array
    assert descriptors() == before


def test_each_task_loads_a_method_for_itself_and_a_function_is_shared() -> None:
    names = in_main("class C:\n    def m(self): self.n = getattr(self, 'n', 0) + 1; return self.n\ndef f(): pass\n")
    pickled = pickle_function(names["C"]().m)
    (one, shared), (other, _) = (load_function(pickled.digest, pickled.data, dict(pickled.blobs)) for _ in range(2))
    assert not shared
    assert (one(), one(), other()) == (1, 2, 1)
    assert load_function(b"", pickle_function(names["f"]).data, {})[1]


def test_a_class_is_built_once_however_many_threads_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from trio_dask.protocol import rebuilt_classes

    made, barrier = [], threading.Barrier(4)

    def maker() -> type:
        barrier.wait()
        return type("C", (), {})

    def load() -> None:
        made.append(rebuilt_classes.make_class("a name", b"content", maker, ()))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, made))) == 1


def test_a_dynamic_module_is_told_by_what_is_in_it() -> None:
    module: Any = types.ModuleType("made_in_this_test")
    module.scale = 1
    names = in_main("def f(x): return module.scale * x")
    names["module"] = module
    before = pickle_function(names["f"])
    module.scale = 777
    after = pickle_function(names["f"])
    assert before.token != after.token
    assert load_function(b"", after.data, {})[0](2) == 1554


def test_a_copy_is_made_where_no_map_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = raw_memory.shared_memory(raw_memory.MAPPED_BYTES)
    monkeypatch.setattr(raw_memory, "MOST_MAPS", 2)
    monkeypatch.setattr(raw_memory, "_NO_DESCRIPTOR", {})
    copies = [raw_memory.own_copy(buffer) for _ in range(4)]
    assert [type(copy) for copy in copies] == [memoryview, memoryview, bytearray, bytearray]
    assert raw_memory.has_private_maps()
    copies.clear()
    assert not raw_memory.has_private_maps()
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "too many")))
    assert type(raw_memory.own_copy(buffer)) is bytearray


def test_large_content_is_hashed_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 * blob_contents.LEAF_BYTES)
    expected = blob_contents.content_digest(data)

    def refuse(_: object) -> typing.Never:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert blob_contents.content_digest(data) == expected


def test_a_large_definition_is_loaded_once_as_well() -> None:
    names = in_main("rows = tuple(range(400_000))\ndef f(): return rows[0]")
    pickled = pickle_function(names["f"])
    assert len(pickled.data) > 1 << 20
    assert pickled_definitions.load_shared(pickled.digest, pickled.data) is pickled_definitions.load_shared(
        pickled.digest, pickled.data
    )


def test_caches_of_definitions_have_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_definitions, "CACHE_BYTES", 100)
    cache: pickled_definitions._Cache[int, str] = pickled_definitions._Cache()
    for key in range(6):
        cache.put(key, str(key), 40)
    cache.put(5, "five", 30)
    cache.put(6, "too large", 101)
    assert [cache.get(key) for key in (3, 4, 5, 6)] == [None, "4", "five", None]


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


def test_a_class_is_another_where_one_that_it_reaches_is_another() -> None:
    names = in_main(
        "class A:\n    items = []\n    def b(self): return B()\nclass B:\n    n = 1\n    def a(self): return A"
    )

    before = content_of(names["A"])
    assert content_of(names["A"]) == before
    names["B"].n = 2
    assert content_of(names["A"]) != before


def test_a_bytearray_that_stands_in_two_places_is_one() -> None:
    data = bytearray(200_000)
    pickled = pickle_call((data, [data]), {})
    (one, (other,)), _ = load_call(pickled.call, dict(pickled.blobs), {})
    assert one is other


def test_shared_parts_of_a_tuple_are_looked_at_once() -> None:
    parts: tuple[Any, ...] = ()
    for _ in range(60):
        parts = parts, parts
    assert is_immutable(parts)
    parts = (parts, [])
    assert not is_immutable((parts, parts))


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


@pytest.mark.parametrize("slots", ["()", "('__weakref__',)"])
def test_named_objects_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch, slots: str) -> None:
    monkeypatch.setattr(pickled_names, "MOST_HELD", 10)
    names = in_main(f"class S:\n    __slots__ = {slots}\n    def __reduce__(self): return 'gone'")
    before = len(pickled_names._by_id)
    for _ in range(50):
        pickle_call((names["S"](),), {})
    assert len(pickled_names._by_id) <= before + 10
    assert len(pickled_names._by_name) == len(pickled_names._by_id)


def test_plain_objects_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(20):  # such as other tests leave
        pickled_names.reduce_sentinel(object())
    monkeypatch.setattr(pickled_names, "MOST_HELD", 10)
    names = {pickled_names.reduce_sentinel(object())[1] for _ in range(50)}
    assert len(names) == 50
    assert len(pickled_names._sentinels._things) <= 10
