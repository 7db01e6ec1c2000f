"""Large content: hashed once, kept as long as its object, and named by what it holds alone."""

import os
import threading
import typing
import weakref
from typing import Any

import numpy as np
import pytest

from tests.protocol.kit import in_main
from trio_dask.protocol import blob_contents, raw_memory
from trio_dask.protocol.pickling import call_token, pickle_call, pickle_function


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


def test_large_content_is_hashed_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 * blob_contents.LEAF_BYTES)
    expected = blob_contents.content_digest(data)

    def refuse(_: object) -> typing.Never:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert blob_contents.content_digest(data) == expected
