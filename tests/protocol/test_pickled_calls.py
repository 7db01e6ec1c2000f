"""Calls: what goes in comes out, references become dependencies, large things become blobs."""

import array
import collections
import contextlib
import functools
import gc
import pickle
import threading
import types
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Never

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.kit import Future
from trio_dask.errors import SerializationError
from trio_dask.protocol import pickled_calls
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import call_token, load_call, pickle_call

LARGE = 1 << 16


class Holder:
    def __init__(self, inside: object) -> None:
        self.inside = inside


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside: object) -> None:
        self.inside = inside


def there_and_back(*args: Any, values: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    pickled = pickle_call(args, kwargs)
    return load_call(pickled.call, dict(pickled.blobs), values or {})


atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


@given(st.lists(nested), st.dictionaries(st.text(), nested))
def test_arguments_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    pickled = pickle_call(tuple(args), kwargs)
    assert load_call(pickled.call, dict(pickled.blobs), {}) == (tuple(args), kwargs)
    assert pickled.dependencies == ()


@given(st.lists(st.text(max_size=5)))
def test_every_reference_is_a_dependency_once_and_in_order(keys: list[str]) -> None:
    futures = [Future(key) for key in keys]
    pickled = pickle_call((1, futures), {"more": {"deep": futures}})
    assert pickled.dependencies == tuple(dict.fromkeys(keys))
    values = {key: object() for key in keys}
    args, kwargs = load_call(pickled.call, {}, values)
    assert args[1] == [values[key] for key in keys]
    assert kwargs["more"]["deep"] == args[1]


@given(st.lists(atoms | st.text(max_size=3).map(Future)))
def test_atoms_and_references_side_by_side(args: list[Any]) -> None:
    keys = [argument.key for argument in args if isinstance(argument, Future)]
    pickled = pickle_call(tuple(args), {})
    assert pickled.dependencies == tuple(dict.fromkeys(keys))
    values = {key: object() for key in keys}
    expected = tuple([values[argument.key] if isinstance(argument, Future) else argument for argument in args])
    assert load_call(pickled.call, dict(pickled.blobs), values) == (expected, {})


def test_a_reference_is_told_from_what_it_is_written_as() -> None:
    tokens = {
        call_token(b"f" * 16, args, {}, pickle_call(args, {}))
        for args in ((Future("k"),), ("k",), (("k",),), (Future("k"), Future("k")), (Future("k"), ("k",)))
    }
    assert len(tokens) == 5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda future: future,
        lambda future: [future],
        lambda future: {"a": (future, 1)},
        lambda future: {future: 1},
        Holder,
        Slotted,
        lambda future: functools.partial(print, future),
        lambda future: Holder([Slotted({"x": future})]),
        lambda future: lambda: future,
        lambda future: [lambda: future, Holder],
        lambda future: types.SimpleNamespace(x=future),
    ],
)
def test_a_reference_is_found_wherever_it_is(wrap: Callable[..., Any]) -> None:
    pickled = pickle_call((wrap(Future("k-1")),), {})
    assert pickled.dependencies == ("k-1",)
    assert not any(b"k-1" in data for _, data in pickled.blobs), "a blob is shared by calls with other futures"


def test_a_reference_in_a_closure_becomes_the_value() -> None:
    future = Future("k-1")
    ((function,), _) = there_and_back(lambda: (future, future), values={"k-1": "result"})
    assert function() == ("result", "result")


def test_a_missing_value_is_a_key_error() -> None:
    pickled = pickle_call((Future("k-1"),), {})
    with pytest.raises(KeyError, match="k-1"):
        load_call(pickled.call, {}, {})


def test_a_small_call_has_no_blobs() -> None:
    assert pickle_call((1, "a", 2.5, None), {}).blobs == ()
    assert pickle_call(([np.arange(10)],), {"a": b"x"}).blobs == ()


@pytest.mark.parametrize("content", [b"x" * LARGE, bytearray(b"x" * LARGE), np.zeros(LARGE), array.array("d", [1.0])])
def test_large_content_is_a_blob_that_calls_share(content: Buffer) -> None:
    first, second = pickle_call((1, content), {}), pickle_call((), {"a": [2, content]})
    if isinstance(content, array.array):
        assert first.blobs == ()  # small
        return
    assert len(first.blobs) == 1
    assert first.blobs == second.blobs
    assert len(first.call) < 400
    ((_, loaded), _) = load_call(first.call, dict(first.blobs), {})
    assert type(loaded) is type(content)
    assert bytes(loaded) == bytes(content)


def test_a_call_that_is_large_as_a_whole_is_a_blob() -> None:
    for argument in ("x" * LARGE, list(range(LARGE)), {"a": "x" * LARGE, "b": Future("k")}):
        pickled = pickle_call((argument,), {})
        assert len(pickled.call) == 17
        ((loaded,), _) = load_call(pickled.call, dict(pickled.blobs), {"k": 5})
        if isinstance(argument, dict):
            assert loaded == {"a": "x" * LARGE, "b": 5}
        else:
            assert loaded == argument


def test_a_blob_does_not_change_when_the_argument_does() -> None:
    """Blobs leave later than `submit` returns."""
    numbers, raw = np.zeros(LARGE), bytearray(LARGE)
    pickled = pickle_call((numbers, raw), {})
    numbers[:] = 1
    raw[:] = b"y" * LARGE
    ((loaded, loaded_raw), _) = load_call(pickled.call, dict(pickled.blobs), {})
    assert not loaded.any()
    assert not any(loaded_raw)


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_task_may_write_to_its_arrays_and_disturbs_no_other(size: int) -> None:
    pickled = pickle_call((np.zeros(size),), {})
    ((first,), _) = load_call(pickled.call, dict(pickled.blobs), {})
    first += 1
    ((second,), _) = load_call(pickled.call, dict(pickled.blobs), {})
    assert not second.any()


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_read_only_array_stays_read_only(size: int) -> None:
    numbers = np.zeros(size)
    numbers.flags.writeable = False
    ((loaded,), _) = there_and_back(numbers)
    assert not loaded.flags.writeable


def test_arrays_of_every_layout_come_back() -> None:
    base = np.arange(4 * LARGE).reshape(4, LARGE)
    layouts = [base, base.T, base[:, ::2], base[1:3], np.asfortranarray(base), base.astype(object)]
    (loaded, _) = there_and_back(*layouts)
    for before, after in zip(layouts, loaded, strict=True):
        np.testing.assert_array_equal(before, after)


def test_one_object_in_two_places_stays_one_object() -> None:
    shared = [1]
    ((first, second), _) = there_and_back(shared, {"again": shared})
    assert second["again"] is first


def test_cycles_come_back() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    ((loaded,), _) = there_and_back(ring)
    assert loaded[1] is loaded


def test_a_definition_by_value_is_one_blob_for_many_calls() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    pickled = [pickle_call((Point(number), lambda: 1), {}) for number in range(10)]
    digests = {digest for call in pickled for digest, _ in call.blobs[:1]}
    assert len(digests) == 1, "the class"
    assert all(len(call.call) < 200 for call in pickled)
    ((loaded, _), _) = load_call(pickled[7].call, dict(pickled[7].blobs), {})
    assert type(loaded) is Point
    assert loaded.x == 7


def test_what_ordinary_pickle_cannot_do_cloudpickle_does() -> None:
    view = memoryview(b"abc")
    module: Any = types.ModuleType("made_here")
    module.answer = 42
    ((loaded, keys, loaded_module), _) = there_and_back(view, {1: 2}.keys(), module)
    assert bytes(loaded) == b"abc"
    assert list(keys) == [1]
    assert loaded_module.answer == 42


class Exiting:
    def __reduce__(self) -> Never:
        raise SystemExit(3)


class Deep:
    def __init__(self) -> None:
        self.config = {"models": [1, Slotted(threading.Lock())]}


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, threading.Lock()), {}, ["argument 2", "_thread.lock"]),
        ((), {"guard": threading.Lock()}, ["argument 'guard'", "_thread.lock"]),
        ((Future("k"), {"a": [0, (n for n in [0])]}), {}, ["argument 2, a dict", "argument['a'][1]", "generator"]),
        ((Deep(),), {}, ["argument 1", ".Deep", "argument.config['models'][1].inside", "_thread.lock"]),
        ((Exiting(),), {}, ["argument 1", "Exiting"]),
        ((functools.partial(print, threading.Lock()),), {}, ["argument.args[0]", "_thread.lock"]),
        (([*range(5000), threading.Lock()],), {}, ["argument[5000]", "_thread.lock"]),
        (({1, threading.Lock()},), {}, ["an element of argument is a _thread.lock"]),
        ((collections.deque([1, threading.Lock()]),), {}, ["argument[1] is a _thread.lock"]),
        (({threading.Lock(): 1},), {}, ["a key of argument is a _thread.lock"]),
    ],
)
def test_what_cannot_be_pickled_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SerializationError) as caught:
        pickle_call(args, kwargs)
    for word in words:
        assert word in str(caught.value)


def test_an_unpicklable_capture_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"variable 'lock' of .*_thread\.lock"):
        pickle_call((lambda: lock,), {})


def test_nesting_beyond_the_stack_is_a_clear_error() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="argument 1, a list: it is nested too deeply"):
        pickle_call((deep,), {})
    while deep:
        deep = deep.pop()


def test_an_error_leaves_nothing_behind_for_the_next_call() -> None:
    for _ in range(5):
        with pytest.raises(SerializationError):
            pickle_call((Future("left-over"), b"x" * LARGE, threading.Lock()), {})
        pickled = pickle_call(([1],), {})
        assert (pickled.dependencies, pickled.blobs) == ((), ())
        assert pickle_call((Future("own"), [1]), {}).dependencies == ("own",)


class Column:
    """Gives away a part of a buffer, as arrow's columns do."""

    def __init__(self, view: memoryview, extra: object = None) -> None:
        self.view = view
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return Column, (pickle.PickleBuffer(self.view), self.extra)


@pytest.mark.parametrize("extra", [None, lambda: 1, memoryview(b"abc"), threading.Lock()])
@pytest.mark.parametrize("size", [10, LARGE])
def test_nothing_is_kept_alive_not_even_as_a_cycle(size: int, extra: Any) -> None:
    """A cycle that holds memoryviews of memoryviews crashes CPython 3.11 when it is collected."""
    gc.disable()
    try:
        column = Column(memoryview(bytearray(2 * size))[size:], extra)
        gone = weakref.ref(column)
        with contextlib.suppress(SerializationError):
            pickled = pickle_call((column,), {})
            call_token(b"f", (column,), {}, pickled)
        del column
        assert gone() is None
    finally:
        gc.enable()


def test_a_pickler_is_reused() -> None:
    pickle_call(([1],), {})
    (pickler, *_) = pickled_calls._pool
    pickle_call(([2],), {})
    assert pickled_calls._pool[0] is pickler


def test_an_argument_may_submit_while_it_is_pickled() -> None:
    class Busy:
        def __reduce__(self) -> tuple[Any, ...]:
            inner = pickle_call((Future("inner"), ["x"]), {})
            assert inner.dependencies == ("inner",)
            return (list, ())

    pickled = pickle_call((Future("outer"), Busy(), Future("last")), {})
    assert pickled.dependencies == ("outer", "last")


def test_threads_do_not_disturb_each_other() -> None:
    def many(thread: int) -> bool:
        for number in range(300):
            key = f"{thread}-{number}"
            pickled = pickle_call(([Future(key)], number), {"thread": thread})
            assert pickled.dependencies == (key,)
            (([value], loaded), kwargs) = load_call(pickled.call, {}, {key: key})
            assert (value, loaded, kwargs) == (key, number, {"thread": thread})
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, range(8)))


def test_a_bytearray_that_stands_in_two_places_is_one() -> None:
    data = bytearray(200_000)
    pickled = pickle_call((data, [data]), {})
    (one, (other,)), _ = load_call(pickled.call, dict(pickled.blobs), {})
    assert one is other
