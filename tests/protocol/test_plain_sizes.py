"""What is measured without being pickled can be pickled, and has about the size that is said."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.protocol.pickled_values import measure_value, pickle_value
from trio_dask.protocol.plain_sizes import MOST_ITEMS, plain_size

pd = pytest.importorskip("pandas", reason="pip install pandas")

ARRAYS = st.builds(
    lambda count, kind: np.zeros(count, kind),
    st.integers(0, 5000),
    st.sampled_from(["f8", "i2", "bool", "M8[s]", "U7"]),
)
FRAMES = st.builds(
    lambda rows: pd.DataFrame(
        {"x": np.arange(rows), "y": np.ones(rows), "name": pd.array(["abc"] * rows, "string[pyarrow]")}
    ),
    st.integers(0, 2000),
)
NUMBERS = st.integers() | st.floats() | st.none() | st.booleans() | st.builds(np.float32, st.floats(-1, 1))
BYTES = st.sampled_from([bytes, bytearray]).flatmap(lambda kind: st.builds(kind, st.integers(0, 100_000)))
VALUES = st.recursive(
    ARRAYS | FRAMES | NUMBERS | st.text("abc", max_size=50) | BYTES,
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.integers(), items, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_measured_can_be_pickled_and_has_about_that_size(value: Any) -> None:
    size = plain_size(value)
    assert size is not None
    assert size.copied_bytes <= size.nbytes
    buffers: list[pickle.PickleBuffer] = []
    pickled = len(pickle.dumps(value, 5, buffer_callback=buffers.append))
    real = pickled + sum(buffer.raw().nbytes for buffer in buffers)
    # Heads of arrays and frames differ: together they come to a few kilobytes here.
    assert abs(size.nbytes - real) <= 0.2 * real + 20_000


class Odd(np.ndarray[Any, Any]):
    pass


def frame_with_notes() -> Any:
    frame = pd.DataFrame({"x": [1]})
    frame.attrs["note"] = lambda: 1
    return frame


def contains_itself() -> Any:
    items: list[Any] = []
    items.append(items)
    return items


def doubled(times: int) -> Any:
    """A few objects, which a walk along every reference meets 2**times times."""
    items: Any = [1]
    for _ in range(times):
        items = [items, items]
    return items


def nested(depth: int) -> Any:
    items: Any = 1
    for _ in range(depth):
        items = [items]
    return items


class OddDict(dict[Any, Any]):
    __module__ = None  # type: ignore[assignment]


class DataFrame:
    __module__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [contains_itself(), doubled(40), nested(100_000), OddDict(a=1), DataFrame()],
    ids=["itself", "doubled", "deep", "dict", "frame"],
)
def test_odd_values_are_left_to_the_pickler_soon(value: Any) -> None:
    assert plain_size(value) is None


@pytest.mark.parametrize(
    "value",
    [
        np.array([lambda: 1], dtype=object),
        np.zeros(3).view(Odd),
        np.zeros(1, dtype=[("x", object)]),
        pd.DataFrame({"x": [object()]}),
        pd.DataFrame({"x": [1]}, index=pd.Index([object()])),
        pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([(1, 2)])),
        frame_with_notes(),
        [1, lambda: 1],
        {"x": {1, 2}},
        list(range(3 * MOST_ITEMS)),
        "\ud800",
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_have_other_objects_inside_is_left_to_the_pickler(value: Any) -> None:
    assert plain_size(value) is None


def test_a_result_that_no_client_waits_for_is_measured_only() -> None:
    array = np.zeros(1000)
    assert measure_value(array).inline is None
    assert measure_value(array).type_name == pickle_value(array, 100_000).type_name == "numpy.ndarray"
    assert abs(measure_value(array).nbytes - pickle_value(array, 100_000).nbytes) < 200
    assert measure_value(array[::2]).copied_bytes == 4000


@pytest.mark.parametrize("value", [b"x" * 12_000, bytearray(12_000), [b"x" * 12_000], "x" * 12_000])
def test_what_pickling_copies_of_bytes_and_text_is_counted(value: Any) -> None:
    assert abs(measure_value(value).copied_bytes - pickle_value(value, 0).copied_bytes) < 50
