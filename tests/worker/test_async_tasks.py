"""`async def` tasks in a worker: what they leave behind, and what they are told when they take it for asyncio."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Never

import pytest
import trio

from trio_dask import Client


class Large:
    """A local variable of a task, in place of 200 MB."""


kept: list[weakref.ref[Large]] = []


async def fail_with_a_large_variable() -> Never:  # noqa: ASYNC124 - the kind of task is what matters
    large = Large()
    kept.append(weakref.ref(large))
    raise ValueError("boom")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False, set_as_default=False) as client:
        yield client


def test_a_failed_task_keeps_none_of_its_variables(client: Client) -> None:
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


async def foreign_sleep() -> None:
    await asyncio.sleep(1)


async def foreign_step() -> None:
    await asyncio.sleep(0)


async def foreign_gather() -> None:
    step = foreign_step()
    try:
        await asyncio.gather(step)
    finally:
        step.close()


async def foreign_wait_for() -> None:
    step = foreign_step()
    try:
        await asyncio.wait_for(step, 1)
    finally:
        step.close()


async def foreign_task() -> None:
    step = foreign_step()
    try:
        asyncio.create_task(step)  # noqa: RUF006 - it is refused
    finally:
        step.close()


async def foreign_future() -> None:
    """As many libraries do it: they make a loop, and await what its futures yield."""
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


async def foreign_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(foreign_sleep)


async def foreign_and_wrapped() -> None:
    try:
        await foreign_sleep()
    except RuntimeError as error:
        raise LookupError("no answer") from error


FOREIGN = (
    foreign_sleep,
    foreign_step,
    foreign_gather,
    foreign_wait_for,
    foreign_task,
    foreign_future,
    foreign_in_a_nursery,
    foreign_and_wrapped,
)


def notes_of(error: BaseException | None) -> list[str]:
    assert error is not None
    return [note for note in error.__notes__ if "under Trio here, not under asyncio" in note]


@pytest.mark.parametrize("function", FOREIGN)
def test_a_task_that_awaits_asyncio_is_told_that_it_runs_under_trio(
    client: Client, function: Callable[..., Any]
) -> None:
    error = client.submit(function, pure=False).exception()
    (note,) = notes_of(error)
    assert "trio.sleep" in note
    assert "asyncio.run" in note


def test_a_function_of_run_is_told_as_well(client: Client) -> None:
    answers = client.run(foreign_sleep, on_error="return")
    assert answers is not None
    (error,) = answers.values()
    assert len(notes_of(error)) == 1


async def fail_otherwise(error: BaseException) -> Never:  # noqa: ASYNC124 - the kind of task is what matters
    raise error


@pytest.mark.parametrize("error", [RuntimeError("no running"), TypeError("trio"), ValueError("no running event loop")])
def test_other_errors_are_as_they_were(client: Client, error: BaseException) -> None:
    assert notes_of(client.submit(fail_otherwise, error, pure=False).exception()) == []


def run_asyncio() -> str:
    return asyncio.run(asyncio.sleep(0, "done"))


def test_the_remedy_works(client: Client) -> None:
    assert client.submit(run_asyncio).result() == "done"
