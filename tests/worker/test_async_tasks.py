"""`async def` tasks in a worker: what they leave behind, and what they are told when they take it for asyncio."""

import gc
import weakref

import pytest

from trio_dask import Client


class Large:
    """A local variable of a task, in place of 200 MB."""


kept = []


async def fail_with_a_large_variable():  # noqa: ASYNC124 - the kind of task is what matters
    large = Large()
    kept.append(weakref.ref(large))
    raise ValueError("boom")


@pytest.fixture(scope="module")
def client():
    with Client(n_workers=1, threads_per_worker=1, processes=False, set_as_default=False) as client:
        yield client


def test_a_failed_task_keeps_none_of_its_variables(client):
    """Without the garbage collector's help."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="boom"):
            client.submit(fail_with_a_large_variable, pure=False).result()
        # The slot has moved on when it takes the next task.
        assert client.submit(sum, [1, 2]).result() == 3
        assert kept[-1]() is None
    finally:
        gc.enable()
