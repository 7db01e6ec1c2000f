"""Async functions in dask's graphs run under Trio, many at a time in one slot."""

from collections.abc import Iterator
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import pytest
import trio
from dask.delayed import delayed

from trio_dask import Client

pytestmark = pytest.mark.slow

CLUSTERS: dict[str, dict[str, Any]] = {
    "processes": {"n_workers": 1, "threads_per_worker": 1},
    "in the program": {"n_workers": 1, "threads_per_worker": 1, "processes": False},
}


@pytest.fixture(scope="module", params=CLUSTERS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(**CLUSTERS[request.param]) as client:
        yield client


async def increment(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return number + 1


async def ones(count: int) -> Any:
    await trio.lowlevel.checkpoint()
    return np.ones(count)


@pytest.mark.usefixtures("client")
def test_a_delayed_async_function_gives_what_it_returns() -> None:
    numbers = [delayed(increment)(number) for number in range(10)]
    assert delayed(sum)(numbers).compute() == 55
    assert dask.base.compute(*numbers) == tuple(range(1, 11))
    assert delayed(increment)(delayed(increment)(1)).compute() == 3


@pytest.mark.usefixtures("client")
def test_its_result_may_be_a_block_of_a_collection() -> None:
    blocks = [da.from_delayed(delayed(ones)(count), (count,), float) for count in range(1, 5)]
    assert da.concatenate(blocks).sum().compute() == 10


def test_what_it_raises_is_raised(client: Client) -> None:
    async def fail(number: int) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        delayed(fail)(7).compute()
    assert isinstance(client.compute(delayed(fail)(8)).exception(), ValueError)


def test_cancelling_ends_it_at_once(client: Client) -> None:
    """It would sleep for ever, and keep the one slot."""
    future = client.compute(delayed(trio.sleep_forever)())
    future.cancel()
    assert delayed(increment)(1).compute() == 2
