"""Errors let go of everything when their `except` block is left: without the garbage collector's help."""

import gc
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Never

import pytest

from tests.client.cluster import MiniCluster, open_async_client, open_client
from trio_dask import AsyncClient, AsyncFuture, Client, Future, NoScheduler, as_completed, wait
from trio_dask.protocol.pickling import describe_exception, rebuild_exception


class Large:
    """A local variable of the user's function, in place of 200 MB."""


class Empty(Exception):
    """An exception that is falsy."""

    def __len__(self) -> int:
        return 0


class Boom(Exception):
    """Unlike the exceptions of Python itself it can be referred to weakly."""


def boom() -> Never:
    raise Boom("boom")


def empty() -> Never:
    raise Empty("nothing in here")


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def next_completed(client: Client, future: Future) -> None:
    next(iter(as_completed([future], with_results=True)))


def known(error: BaseException | None) -> BaseException:
    """The frame that raises it must not hold it, too."""
    assert error is not None
    return error


def raise_exception(client: Client, future: Future) -> Never:
    raise known(future.exception())


def next_completed_or_error(client: Client, future: Future) -> Never:
    raise next(as_completed([future], with_results=True, raise_errors=False))[1][1]


BLOCKING: dict[str, Callable[[Client, Future], object]] = {
    "result": lambda client, future: future.result(),
    "result in time": lambda client, future: future.result(timeout=10),
    "gather": lambda client, future: client.gather({"a": [future]}),
    "as_completed": next_completed,
    "as_completed without raising": next_completed_or_error,
    "exception": raise_exception,
    "run": lambda client, future: client.run(boom),
    "get": lambda client, future: client.get({"x": (boom,)}, "x"),
}


def are_gone(*watched: weakref.ref[Any]) -> bool:
    """Whether nothing keeps these; the client's thread may have them in hand for a moment, but no cycle may."""
    gc.disable()
    try:
        limit = time.monotonic() + 10
        while any(ref() is not None for ref in watched) and time.monotonic() < limit:
            time.sleep(0.001)
        return all(ref() is None for ref in watched)
    finally:
        gc.enable()


@pytest.mark.parametrize("ask", BLOCKING.values(), ids=BLOCKING)
def test_a_blocking_call_keeps_nothing(ask: Callable[..., Any]) -> None:
    def call(client: Any) -> None:
        large = Large()
        future = client.submit(boom)
        watched.extend((weakref.ref(large), weakref.ref(future), weakref.ref(future.state)))
        try:
            ask(client, future)
        except Boom as error:
            watched.append(weakref.ref(error))

    watched: list[weakref.ref[Any]] = []
    with open_client(MiniCluster()) as client:
        call(client)
        assert len(watched) == 4
        large, future, _, error = watched
        assert are_gone(large, future, error)


async def next_completed_async(client: AsyncClient, future: AsyncFuture) -> None:
    async for _ in client.as_completed([future], with_results=True):
        pass


async def raise_exception_async(client: AsyncClient, future: AsyncFuture) -> Never:
    raise known(await future.exception())


async def await_it(client: AsyncClient, future: AsyncFuture) -> None:
    await future


TRIO: dict[str, Callable[[AsyncClient, AsyncFuture], Awaitable[object]]] = {
    "await": await_it,
    "result": lambda client, future: future.result(),
    "result in time": lambda client, future: future.result(timeout=10),
    "gather": lambda client, future: client.gather([future]),
    "as_completed": next_completed_async,
    "exception": raise_exception_async,
    "run": lambda client, future: client.run(boom),
    "get": lambda client, future: client.get({"x": (boom,)}, "x"),
}


@pytest.mark.parametrize("ask", TRIO.values(), ids=TRIO)
async def test_a_call_under_trio_keeps_nothing(ask: Callable[..., Any]) -> None:
    async def call(client: Any) -> None:
        large = Large()
        future = client.submit(boom)
        watched.extend((weakref.ref(large), weakref.ref(future)))
        try:
            await ask(client, future)
        except Boom as error:
            watched.append(weakref.ref(error))

    watched: list[weakref.ref[Any]] = []
    async with open_async_client(MiniCluster()) as client:
        await call(client)
        assert [ref() for ref in watched] == [None] * 3


def test_an_error_that_closes_a_block_keeps_nothing() -> None:
    def call() -> None:
        large = Large()
        watched.append(weakref.ref(large))
        try:
            with open_client(MiniCluster()) as client:
                client.submit(boom).result()
        except Boom:
            pass

    watched: list[weakref.ref[Any]] = []
    call()
    assert watched[0]() is None


async def test_an_error_that_closes_a_block_under_trio_keeps_nothing() -> None:
    async def call() -> None:
        large = Large()
        watched.append(weakref.ref(large))
        try:
            async with open_async_client(MiniCluster()) as client:
                await client.submit(boom)
        except Boom as error:
            watched.append(weakref.ref(error))

    watched: list[weakref.ref[Any]] = []
    await call()
    assert [ref() for ref in watched] == [None, None]


def test_waiting_for_a_cancelled_future_keeps_nothing() -> None:
    def call(client: Any) -> None:
        large = Large()
        watched.append(weakref.ref(large))
        future = client.submit(boom)
        future.cancel()
        try:
            wait(future)
        except Exception as error:
            watched.append(weakref.ref(error))

    watched: list[weakref.ref[Any]] = []
    with open_client(MiniCluster(hold=True)) as client:
        call(client)
    assert [ref() for ref in watched] == [None, None]


def test_a_call_that_failed_runs_again_when_it_is_submitted_again() -> None:
    """However soon: the future of the first attempt is gone when its `except` block is left."""
    cluster = MiniCluster()
    with open_client(cluster) as client:
        for _ in range(50):
            with pytest.raises(Boom, match="boom"):
                client.submit(boom).result()
        assert set(cluster.computed.values()) == {50}


def test_a_rebuilt_traceback_has_no_callers() -> None:
    with pytest.raises(Boom) as caught:
        boom()
    error, text = describe_exception(caught.value)
    rebuilt = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    traceback = rebuilt.__traceback__
    names = []
    while traceback is not None:
        assert traceback.tb_frame.f_back is None
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "boom"


@pytest.mark.parametrize("ask", ["result", "gather", "as_completed", "as_completed without raising", "exception"])
def test_a_falsy_exception_arrives_as_it_is(ask: str) -> None:
    with open_client(MiniCluster()) as client, pytest.raises(Empty, match="nothing in here"):
        BLOCKING[ask](client, client.submit(empty))


@pytest.mark.parametrize("ask", ["await", "gather", "as_completed", "exception"])
async def test_a_falsy_exception_arrives_under_trio(ask: str) -> None:
    async with open_async_client(MiniCluster()) as client:
        with pytest.raises(Empty, match="nothing in here"):
            await TRIO[ask](client, client.submit(empty))


async def test_a_falsy_exception_leaves_a_block() -> None:
    with pytest.raises(Empty):
        async with open_async_client(MiniCluster()):
            raise Empty


def test_a_client_that_finds_no_scheduler_keeps_nothing() -> None:
    def call() -> None:
        large = Large()
        watched.append(weakref.ref(large))
        try:
            Client("tcp://127.0.0.1:1", timeout=0)
        except NoScheduler as error:
            watched.append(weakref.ref(error))

    watched: list[weakref.ref[Any]] = []
    call()
    assert [ref() for ref in watched] == [None, None]
