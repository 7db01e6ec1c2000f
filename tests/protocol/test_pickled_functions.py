"""Functions: by reference where that works elsewhere, by value otherwise, and never stale."""

import functools
import math
import os.path
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import pytest

from tests.protocol.kit import Future, in_main
from trio_dask.errors import SerializationError
from trio_dask.protocol import pickled_definitions
from trio_dask.protocol.pickled_functions import PickledFunction
from trio_dask.protocol.pickling import load_function, pickle_function


def importable(x: int) -> int:
    return x + 1


def loaded(pickled: PickledFunction) -> Any:
    return load_function(pickled.digest, pickled.data, dict(pickled.blobs))[0]


def again(function: Callable[..., Any]) -> Any:
    return loaded(pickle_function(function))


@pytest.mark.parametrize("function", [importable, os.path.join, math.sqrt, len, dict, functools.reduce, dict.fromkeys])
def test_what_can_be_imported_travels_by_reference(function: Callable[..., Any]) -> None:
    blob = pickle_function(function)
    assert len(blob.data) < 100
    assert loaded(blob) == function
    assert pickle_function(function) is blob
    assert blob.token == blob.digest


def test_lambdas_closures_and_nested_functions_travel_by_value() -> None:
    def outer(n: int) -> Callable[[int], int]:
        def inner(x: int) -> int:
            return x + n + (lambda: n)()

        return inner

    assert again(outer(3))(1) == 7
    assert again(lambda x, *, y=2: x * y)(4) == 8
    assert again(functools.partial(outer(1), 5))() == 7


def test_a_partial_of_a_function_by_value_travels_with_it() -> None:
    def local(x: int, y: int) -> int:
        return x - y

    assert again(functools.partial(local, y=2))(5) == 3
    assert again(functools.partial(map, local))([5], [2]).__next__() == 3


def test_functions_that_refer_to_themselves_and_each_other() -> None:
    names = in_main(
        "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def even(n): return n == 0 or odd(n - 1)\n"
        "def odd(n): return n != 0 and even(n - 1)\n"
    )
    assert again(names["fib"])(10) == 55
    assert again(names["even"])(8) is True

    def own(n: int) -> Any:
        return own if n else 0

    assert again(own)(1)(0) == 0


def test_methods_and_callable_objects() -> None:
    thing = in_main(
        "class Thing:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def add(self, x): return self.n + x\n"
        "    __call__ = add\n"
        "    @classmethod\n"
        "    def make(cls, n): return cls(n).n\n"
        "    @staticmethod\n"
        "    def twice(x): return 2 * x\n"
    )["Thing"]
    assert again(thing(1).add)(2) == 3
    assert again(thing(1))(2) == 3
    assert again(thing.make)(4) == 4
    assert again(thing.twice)(4) == 8
    assert again([1, 2].count)(2) == 1


def test_a_cached_function_of_main_travels_by_value_and_keeps_its_cache_settings() -> None:
    cached = in_main("import functools\n@functools.lru_cache(maxsize=7)\ndef cached(x): return x * 2\n")["cached"]
    loaded = again(cached)
    assert loaded(4) == 8
    assert loaded.cache_parameters()["maxsize"] == 7
    assert again(lambda x: cached(x))(4) == 8


def test_a_class_made_here_comes_back_as_itself_untouched() -> None:
    class Thing:
        method: Callable[..., int]
        later: str

    Thing.method = method = lambda self: 1
    blob = pickle_function(Thing)
    Thing.later = "kept"
    assert loaded(blob) is Thing
    assert Thing.method is method
    assert Thing.later == "kept"


def test_modules_registered_to_travel_by_value_do(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def f(): return 'by value'", module.__dict__)
    monkeypatch.setitem(__import__("sys").modules, "only_here", module)
    by_reference = pickle_function(module.f)
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = pickle_function(module.f)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert len(by_value.data) > len(by_reference.data)
    assert pickle_function(module.f) == by_reference
    monkeypatch.delitem(__import__("sys").modules, "only_here")
    assert loaded(by_value)() == "by value"


def test_a_function_by_value_is_pickled_once() -> None:
    f = in_main("import math\ny = 1\ndef g(): return y\ndef f(x, z=(1, 'a')): return math.sqrt(x) + g() + z[0]")["f"]
    assert pickle_function(f) is pickle_function(f)


@pytest.mark.parametrize(
    "change",
    [
        "y = 2",
        "def g(): return 2",
        "def g(): return 1\ny = 2",
        "f.__defaults__ = (1,)",
        "f.__code__ = (lambda z=0: 2).__code__",
        "C.value = 1",
        "C.get = lambda self: 2",
        "def twice(x): return 2\nC.twice = staticmethod(twice)",
        "f.extra = 1",
        "numbers.append(1)",
        "table['a'] = 1",
        "config.n = 1",
    ],
)
def test_a_change_of_what_a_function_captured_is_noticed(change: str) -> None:
    namespace = in_main(
        "import types\n"
        "y = 1\nnumbers = []\ntable = {}\nconfig = types.SimpleNamespace(n=0)\n"
        "def g(): return y\n"
        "class C:\n    value = 0\n    def get(self): return 1\n    @staticmethod\n    def twice(x): return 2 * x\n"
        "def f(z=0): return g() + z + C.value + C().get() + C.twice(1) + len(numbers) + len(table) + config.n\n"
    )
    f = namespace["f"]
    assert again(f)() == f()
    before = pickle_function(f).data
    exec(change, namespace)
    assert pickle_function(f).data != before


def test_a_closure_that_is_bound_anew_is_noticed() -> None:
    n = 1

    def f() -> Any:
        return n

    assert again(f)() == 1
    n = 2
    assert again(f)() == 2


def test_the_cache_is_bounded_and_holds_no_wrong_function() -> None:
    functions = [eval(f"lambda: {number}") for number in range(3000)]
    blobs = [pickle_function(function) for function in functions]
    assert all(loaded(pickled)() == number for number, pickled in enumerate(blobs))
    from_cache = [
        pickle_function(function) is blob for function, blob in zip(functions[::-1], blobs[::-1], strict=True)
    ]
    assert 0 < sum(from_cache) <= pickled_definitions.CACHE_ENTRIES


def test_a_future_in_a_closure_is_refused_with_advice() -> None:
    future = Future("inc-12")
    with pytest.raises(SerializationError, match="'inc-12': pass it as an argument"):
        pickle_function(lambda: future)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda lock: lambda: lock, "variable 'lock' of .* is a _thread.lock"),
        (lambda lock: functools.partial(print, lock), r"function.args\[0\] is a _thread.lock"),
        (lambda lock: lambda x=lock: x, "default 0 of .* is a _thread.lock"),
    ],
)
def test_what_cannot_travel_is_named(make: Callable[..., Any], words: str) -> None:
    with pytest.raises(SerializationError, match=words):
        pickle_function(make(threading.Lock()))


def test_a_global_that_cannot_travel_is_named() -> None:
    namespace = in_main("def f(): return a")
    namespace["a"] = {"deep": [threading.Lock()]}
    words = r"the function f.*: global 'a' of f\['deep'\]\[0\] is a _thread.lock"
    with pytest.raises(SerializationError, match=words):
        pickle_function(namespace["f"])


def test_names_are_short() -> None:
    class Callable:
        def __call__(self) -> Any:
            pass

    names = [
        pickle_function(f).name for f in (importable, lambda: 1, functools.partial(len, ()), Callable(), str.upper)
    ]
    assert names == ["importable", "lambda", "len", "Callable", "upper"]


def test_threads_get_the_right_functions() -> None:
    made = [eval(f"lambda: {number}") for number in range(200)]

    def check(thread: int) -> bool:
        order = made[thread:] + made[:thread]
        return all(again(function)() == function() for function in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))
