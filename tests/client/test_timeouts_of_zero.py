"""A timeout of 0 asks once: what is there is given, in both forms."""

from typing import Any

import pytest

from trio_dask import AsyncClient, AsyncEvent, Client, Event, wait


def test_what_is_there_is_given_to_a_blocking_client() -> None:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        future = client.submit(pow, 2, 10)
        assert future.result() == 1024
        assert wait([future], timeout=0).done == {future}
        assert future.exception(timeout=0) is None
        client.wait_for_workers(1, timeout=0)
        event = Event()
        assert not event.wait(timeout=0)
        event.set()
        assert event.wait(timeout=0)


async def test_what_is_there_is_given_under_trio() -> None:
    async with AsyncClient(n_workers=1, threads_per_worker=1, processes=False) as client:
        future = client.submit(pow, 2, 10)
        assert await future == 1024
        assert (await client.wait([future], timeout=0)).done == {future}
        assert await future.exception(timeout=0) is None
        await client.wait_for_workers(1, timeout=0)
        event = AsyncEvent()
        assert not await event.wait(timeout=0)
        await event.set()
        assert await event.wait(timeout=0)


def test_what_is_not_there_is_too_late() -> None:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        future: Any = client.submit(pow, 2, 10, workers=["nobody"])
        with pytest.raises(TimeoutError, match="1 future was not done within 0 s"):
            wait([future], timeout=0)
        with pytest.raises(TimeoutError, match="only 1 of 2 workers arrived within 0 s"):
            client.wait_for_workers(2, timeout=0)
