"""Values: proof, size and frames; nothing large is copied."""

import io
import pickle
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.errors import SerializationError
from trio_dask.protocol import pickled_values
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import dump_value, load_value, pickle_value, stream_value

MIB = 1 << 20

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(10**500),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers()),
)


@given(values, st.integers(0, 200))
def test_a_value_is_inline_exactly_if_it_is_small(value: Any, limit: int) -> None:
    pickled = pickle_value(value, limit)
    assert (pickled.inline is not None) == (pickled.nbytes <= limit)
    if pickled.inline is not None:
        assert len(pickled.inline) == pickled.nbytes
        assert load_value([pickled.inline]) == value


@given(values)
def test_frames_are_what_was_measured_and_load_again(value: Any) -> None:
    frames = dump_value(value)
    assert load_value(frames) == value
    assert sum(map(len, frames)) == pickle_value(value, 0).nbytes


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "int"),
        ("a", "str"),
        ("a" * MIB, "str"),
        ([1], "list"),
        (None, "NoneType"),
        (np.zeros(3), "numpy.ndarray"),
        (SerializationError("x"), "trio_dask.errors.SerializationError"),
    ],
)
def test_types_have_qualified_names(value: Any, name: str) -> None:
    assert pickle_value(value, 100).type_name == name


def test_large_arrays_are_buffers_without_a_copy_and_writeable_from_bytearrays() -> None:
    numbers = np.arange(MIB, dtype=np.float64)
    frames = dump_value({"a": [numbers]})
    assert len(frames) == 2
    assert np.shares_memory(np.frombuffer(frames[1]), numbers)
    assert pickle_value(numbers, 100 * MIB).inline is None
    loaded = load_value([frames[0], bytearray(frames[1])])["a"][0]
    loaded += 1
    np.testing.assert_array_equal(loaded, numbers + 1)


def test_a_value_has_a_bounded_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_values, "MAX_OUT_OF_BAND", 3)
    monkeypatch.setattr(pickled_values, "MAX_PIECES", 4)
    arrays = [np.full(1000, number) for number in range(9)]
    texts = [bytes([number]) * MIB for number in range(9)]
    frames = dump_value((arrays, texts))
    assert len(frames) <= 1 + 3 + 4 + 2
    assert sum(memoryview(frame).nbytes for frame in frames[1:]) == pickle_value((arrays, texts), 0).nbytes
    loaded_arrays, loaded_texts = load_value(frames)
    assert loaded_texts == texts
    assert all(map(np.array_equal, arrays, loaded_arrays))


def test_small_arrays_ride_inline_and_are_writeable() -> None:
    pickled = pickle_value(np.zeros(8), 1000)
    assert pickled.inline is not None
    loaded = load_value([pickled.inline])
    loaded += 1
    assert loaded.sum() == 8


def test_measuring_takes_no_memory_and_dumping_copies_nothing_large() -> None:
    value = {"raw": b"x" * (32 * MIB), "numbers": np.ones(4 * MIB), "both": [bytearray(8 * MIB)]}
    tracemalloc.start()
    try:
        measured = pickle_value(value, 1000).nbytes
        frames = dump_value(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert measured > 72 * MIB
    assert peak < 24 * MIB  # a bytearray has no other way than through a copy of itself
    loaded = load_value(frames)
    assert loaded["raw"] == value["raw"]
    np.testing.assert_array_equal(loaded["numbers"], value["numbers"])
    assert loaded["both"] == value["both"]


class File:
    """Where a pickle is streamed to; keeps only its size, unless it is small."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.nbytes = 0
        self.restarts = 0

    def write(self, data: Buffer) -> None:
        self.nbytes += len(data)
        if self.nbytes < 100_000:
            self.parts.append(bytes(data))

    def restart(self) -> None:
        self.parts, self.nbytes = [], 0
        self.restarts += 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * (48 * MIB),
        lambda: "\u00e9" * (24 * MIB),
        lambda: "\u4e00" * (16 * MIB),
        lambda: [b"x" * 10_000] * 10 + [bytes([n % 256]) * 10_000 for n in range(4800)],
        lambda: {n: bytes([n]) * MIB for n in range(48)},
        lambda: bytearray(48 * MIB),
        lambda: b"x" * (48 * MIB),
        lambda: np.array([f"{n:01000}" for n in range(48_000)], dtype=object),
    ],
    ids=["ascii", "latin", "chinese", "list", "dict", "bytearray", "bytes", "objects"],
)
def test_neither_measuring_nor_writing_to_a_file_takes_a_second_copy(make: Callable[..., Any]) -> None:
    value = make()
    file = File()
    tracemalloc.start()
    try:
        measured = pickle_value(value, 1000)
        stream_value(value, file)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert measured.nbytes == file.nbytes >= 45 * MIB
    assert peak < 12 * MIB, "a pickler remembers what it has seen, and no more"
    assert left < MIB
    assert measured.copied_bytes == (0 if isinstance(value, bytes | bytearray) else measured.nbytes)


@pytest.mark.parametrize("text", ["x", "\u00e9", "\u4e00", "\U0001f600", "\ud800", "\ud83d\ude00", "a\x00\u4e00"])
def test_long_strings_come_back_whatever_is_in_them(text: str) -> None:
    value = text * (3 * MIB // len(text)) + text
    frames = dump_value(value)
    assert sum(map(len, frames)) - len(frames[0]) == pickle_value(value, 0).nbytes
    assert load_value(frames) == value
    assert pickle.loads(b"".join(frames[1:])) == value


def test_what_is_streamed_loads_again_also_if_the_first_picklers_gave_up_in_the_middle() -> None:
    value = [list(range(10_000)), lambda x: x + 1, np.ones(10_000)]
    file = File()
    buffers = stream_value(value, file)
    assert file.restarts == 3
    numbers, function, ones = load_value([b"".join(file.parts), *buffers])
    assert (numbers, function(1), ones.sum()) == (value[0], 2, 10_000)


@given(st.lists(st.integers(0, 3 * MIB), max_size=5))
def test_pieces_of_any_size_come_together(sizes: list[int]) -> None:
    value = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert load_value([bytearray(frame) for frame in dump_value(value)]) == value


def generator() -> Iterator[int]:
    yield 1


class WithLock:
    def __init__(self) -> None:
        self.models = {"first": [threading.Lock()]}


class Exiting:
    def __getstate__(self) -> Never:
        raise SystemExit(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (threading.Lock, ["a _thread.lock", "cannot pickle '_thread.lock' object"]),
        (generator, ["a generator"]),
        (WithLock, ["WithLock", "result.models['first'][0] is a _thread.lock"]),
        (lambda: [1, {"a": generator()}], ["a list", "result[1]['a'] is a generator"]),
        (Exiting, ["Exiting", "SystemExit"]),
        (lambda: (threading.Event(),), ["result[0]", "_thread.lock"]),
        (io.BytesIO(b"").getbuffer, None),
    ],
)
def test_what_cannot_be_pickled_is_named(make: Callable[..., Any], words: list[str] | None) -> None:
    value = make()
    if words is None:
        assert load_value(dump_value(value)) == b""
        return
    for attempt, name in ((lambda: pickle_value(value, 1000), "result"), (lambda: dump_value(value), "value")):
        with pytest.raises(SerializationError) as caught:
            attempt()
        assert str(caught.value).startswith(f"cannot pickle the {name}, a ")
        for word in words:
            assert word.replace("result", name) in str(caught.value)


@pytest.mark.parametrize("mode", ["r", "w", "rb", "r+"])
def test_an_open_file_is_no_result(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    with open(path, mode) as file, pytest.raises(SerializationError, match=r"result\['log'\] is a _io\."):
        pickle_value({"log": file}, 1000)


def test_a_socket_is_no_result() -> None:
    with socket.socket() as sock, pytest.raises(SerializationError, match=r"a socket\.socket"):
        pickle_value(sock, 1000)


def test_a_lambda_is_a_result() -> None:
    n = 3
    assert load_value(dump_value({"f": lambda x: x + n}))["f"](1) == 4


def test_what_main_has_is_not_referred_to_by_its_name_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary pickle finds it in this `__main__`; the one at the other end is another."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    source = "import functools\ndef f(): return 1\n@functools.cache\ndef g(): return 2\nclass C: pass\n"
    exec(source, namespace)
    for name in ("f", "g", "C"):
        monkeypatch.setattr(sys.modules["__main__"], name, namespace[name], raising=False)
    frames = dump_value([namespace["f"], {"g": namespace["g"]}, namespace["C"]()])
    for name in ("f", "g", "C"):
        monkeypatch.delattr(sys.modules["__main__"], name)
    f, table, instance = load_value(frames)
    assert (f(), table["g"](), type(instance)) == (1, 2, namespace["C"])


def test_two_functions_that_share_an_object_still_share_it() -> None:
    seen = []
    add, read = load_value(dump_value((lambda x: seen.append(x), lambda: seen)))
    add(1)
    assert read() == [1]
    assert seen == []


def test_instances_of_classes_made_here_come_back_as_such() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    many = pickle_value([Point(number) for number in range(100)], 10_000)
    assert many.inline is not None
    loaded = load_value([many.inline])
    assert [type(point) for point in loaded] == [Point] * 100
    assert pickle_value(Point(1), 0).type_name.endswith("Point")
