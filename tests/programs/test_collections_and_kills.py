"""Random arrays and frames give dask's own results, also when workers are killed while they compute."""

from __future__ import annotations

import operator
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_dask import Client

da = pytest.importorskip("dask.array", reason="pip install 'trio_dask[dask]'")
dd = pytest.importorskip("dask.dataframe", reason="pip install 'trio_dask[dask]'")
np = pytest.importorskip("numpy", reason="pip install numpy")
pd = pytest.importorskip("pandas", reason="pip install pandas")

pytestmark = pytest.mark.timeout(300)

SOME = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
KILLS_AT_S = st.lists(st.floats(0, 0.3), max_size=2)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=2, threads_per_worker=2) as client:
        yield client


def kill_one(client: Client) -> None:
    workers = list(client.scheduler_info()["workers"].values())
    if workers:
        with suppress(ProcessLookupError):  # it was killed a moment ago
            os.kill(workers[0]["pid"], signal.SIGKILL)


def compute_among_kills(client: Client, collection: Any, kills_at_s: list[float]) -> Any:
    timers = [threading.Timer(at_s, kill_one, (client,)) for at_s in kills_at_s]
    for timer in timers:
        timer.start()
    try:
        return collection.compute(retries=3)
    finally:
        for timer in timers:
            timer.join()


UNARY: list[Callable[[Any], Any]] = [
    operator.neg,
    lambda x: x.T,
    lambda x: x[1:],
    lambda x: x.rechunk(7),
    lambda x: x.cumsum(axis=0),
    lambda x: x.map_blocks(np.square),
    lambda x: x - x.mean(axis=0),
]
BINARY: list[Callable[[Any, Any], Any]] = [
    operator.add,
    operator.mul,
    lambda x, y: da.concatenate([x, y]),
    lambda x, y: da.where(x > 0, x, y),
]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """An array of integers, so that the order of sums does not matter, made by up to eight operations."""
    size, chunk = draw(st.integers(8, 30)), draw(st.integers(3, 12))
    array = da.from_array(np.arange(size * size).reshape(size, size) % 17, chunks=chunk)
    for choice in draw(st.lists(st.integers(0, len(UNARY) + len(BINARY) - 1), max_size=8)):
        if choice < len(UNARY):
            array = UNARY[choice](array) if min(array.shape) > 1 else array
        else:
            array = BINARY[choice - len(UNARY)](array, array + 1)
    return draw(st.sampled_from([array, array.sum(), array.max(axis=0), array.std()]))


@SOME
@given(array=arrays(), kills_at_s=KILLS_AT_S)
def test_arrays_are_what_dask_alone_makes_of_them(client: Client, array: Any, kills_at_s: list[float]) -> None:
    expected = array.compute(scheduler="sync")
    np.testing.assert_allclose(compute_among_kills(client, array, kills_at_s), expected)


FRAME_STEPS: list[Callable[[Any], Any]] = [
    lambda frame: frame[frame.x % 3 > 0],
    lambda frame: frame.assign(z=frame.x * 2 + frame.key),
    lambda frame: frame.shuffle("key"),
    lambda frame: frame.merge(frame[["key"]].drop_duplicates(), on="key"),
    lambda frame: frame.repartition(npartitions=3),
]


@st.composite
def frames(draw: st.DrawFn) -> Any:
    rows, partitions = draw(st.integers(5, 200)), draw(st.integers(1, 8))
    source = pd.DataFrame({"key": [(7 * row) % 5 for row in range(rows)], "x": range(rows)})
    frame = dd.from_pandas(source, npartitions=partitions)
    for choice in draw(st.lists(st.sampled_from(FRAME_STEPS), max_size=4)):
        frame = choice(frame)
    return frame


@SOME
@given(frame=frames(), kills_at_s=KILLS_AT_S)
def test_frames_are_what_dask_alone_makes_of_them(client: Client, frame: Any, kills_at_s: list[float]) -> None:
    def in_order(found: Any) -> Any:
        return found.sort_values(["key", "x"]).reset_index(drop=True)

    expected = in_order(frame.compute(scheduler="sync"))
    pd.testing.assert_frame_equal(in_order(compute_among_kills(client, frame, kills_at_s)), expected)
    sums = frame.groupby("key").x.sum()
    found = compute_among_kills(client, sums, kills_at_s)
    pd.testing.assert_series_equal(found.sort_index(), sums.compute(scheduler="sync").sort_index())
