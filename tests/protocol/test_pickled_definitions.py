"""Definitions that travel by value: loaded once for all tasks, and kept within limits."""

import threading
import types
import typing
from typing import Any

import pytest

from tests.protocol.kit import in_main
from trio_dask.protocol import pickled_definitions
from trio_dask.protocol.pickling import load_function, pickle_function


def protocol() -> type:
    class Reads(typing.Protocol):
        def read(self) -> int: ...

    return Reads


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
