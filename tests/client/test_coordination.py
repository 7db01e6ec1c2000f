"""Programs and tasks coordinate: both forms, against a cluster inside this program."""

import operator
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from trio_dask import (
    AsyncClient,
    AsyncEvent,
    AsyncLock,
    Client,
    Event,
    Lock,
    open_local_cluster,
)

PATIENCE_S = 20


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=2, processes=False) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=2, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        yield client


# ------------------------------------------------------------------------------------------ events


def wait_for(name: str) -> bool:
    return bool(Event(name).wait(PATIENCE_S))


async def wait_for_under_trio(event: AsyncEvent) -> bool:
    return await event.wait(PATIENCE_S)


@pytest.mark.usefixtures("client")
def test_an_event_is_not_set_then_set_then_clear() -> None:
    event = Event()
    assert not event.is_set()
    assert event.wait(timeout=0.01) is False
    event.set()
    assert event.wait()
    assert Event(event.name).is_set()
    event.clear()
    assert not event.is_set()


def test_any_number_of_tasks_wait_for_an_event_without_slots(client: Client) -> None:
    event = Event("go")
    waiting = client.map(wait_for, [event.name] * 5, pure=False)
    assert client.submit(operator.neg, 1).result(PATIENCE_S) == -1  # there are two slots
    waiting.append(client.submit(wait_for_under_trio, AsyncEvent("go")))
    event.set()
    assert client.gather(waiting) == [True] * 6
    event.clear()


async def test_an_event_under_trio(async_client: AsyncClient) -> None:
    event = AsyncEvent(client=async_client)
    assert await event.wait("10 ms") is False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(event.wait)
        await event.set()
    assert await event.is_set()
    await event.clear()


async def test_a_blocking_form_is_refused_under_trio_and_names_are_texts() -> None:
    await trio.lowlevel.checkpoint()
    with pytest.raises(RuntimeError, match="blocks"):
        Lock("x").acquire()
    with pytest.raises(RuntimeError, match="blocks"), Lock("x"):
        pass
    with pytest.raises(ValueError, match="the name of a lock is a text"):
        Lock(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Event, AsyncEvent, Lock, AsyncLock])
def test_a_pickled_primitive_is_one_of_the_same_name(kind: Any) -> None:
    named, unnamed = kind("x"), kind()
    assert repr(named) == f"<{kind.__name__} 'x'>"
    assert named.name != unnamed.name != kind().name
    back = pickle.loads(pickle.dumps(unnamed))
    assert type(back) is kind
    assert back.name == unnamed.name


# ------------------------------------------------------------------------------------------ locks


def add_slowly(lock: Lock, counts: list[int]) -> None:
    with lock:
        before = counts[0]
        threading.Event().wait(0.001)
        counts[0] = before + 1


COUNTS = [0]


def add_in_a_task(lock: Lock) -> None:
    add_slowly(lock, COUNTS)


async def add_in_an_async_task(lock: AsyncLock) -> None:
    async with lock:
        before = COUNTS[0]
        await trio.sleep(0.001)
        COUNTS[0] = before + 1


def hold_in_a_task(lock: Lock) -> bool:
    return lock.acquire()


def test_a_lock_lets_one_task_or_program_in_at_a_time(client: Client) -> None:
    lock = Lock()
    COUNTS[0] = 0
    futures = client.map(add_in_a_task, [lock] * 10, pure=False)
    futures += client.map(add_in_an_async_task, [AsyncLock(lock.name)] * 10, pure=False)
    for _ in range(10):
        add_in_a_task(lock)
    client.gather(futures)
    assert COUNTS == [30]
    assert not lock.locked()


@pytest.mark.usefixtures("client")
def test_threads_share_a_lock_object() -> None:
    lock, counts = Lock(), [0]
    threads = [threading.Thread(target=add_slowly, args=(lock, counts)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert counts == [8]


@pytest.mark.usefixtures("client")
def test_acquire_without_waiting_and_with_a_timeout() -> None:
    lock, other = Lock("x"), Lock("x")
    assert lock.acquire(timeout=0)
    assert lock.locked()
    assert other.locked()
    assert other.acquire(blocking=False) is False
    assert other.acquire(timeout="10 ms") is False
    assert lock.acquire(timeout=0.01) is False
    with pytest.raises(ValueError, match="takes no timeout"):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(RuntimeError, match="is not held by this object"):
        other.release()
    lock.release()
    assert other.acquire(timeout=PATIENCE_S)
    other.release()
    assert not lock.locked()


@pytest.mark.usefixtures("client")
def test_a_second_acquire_of_the_same_object_is_refused_and_does_not_hang() -> None:
    with Lock("mine") as lock, pytest.raises(RuntimeError, match="holds the lock 'mine' already"):
        lock.acquire()
    assert not lock.locked()


async def test_a_lock_under_trio(async_client: AsyncClient) -> None:
    lock = AsyncLock("x", async_client)
    async with lock, Lock("y", async_client):
        with pytest.raises(RuntimeError, match="already"):
            await lock.acquire()
        assert await lock.locked()
        assert await AsyncLock("x", async_client).acquire(timeout=0) is False
    assert not await lock.locked()


async def test_a_cancelled_waiter_leaves_no_trace(async_client: AsyncClient) -> None:
    lock = AsyncLock("x", async_client)
    async with lock:
        with trio.move_on_after(0.01):
            await AsyncLock("x", async_client).acquire()
    assert await lock.acquire(timeout=PATIENCE_S)
    await lock.release()


async def test_a_lock_that_comes_as_its_waiter_is_cancelled_is_free_again(async_client: AsyncClient) -> None:
    async with AsyncLock("x", async_client) as lock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(AsyncLock("x", async_client).acquire)
            await async_client.nthreads()  # the scheduler has heard of it
            nursery.cancel_scope.cancel()
            await lock.release()
        assert await lock.acquire(timeout=PATIENCE_S)


def test_a_lock_is_free_when_the_client_that_holds_it_has_ended(client: Client) -> None:
    with Client(client.engine.address, set_as_default=False) as other:
        assert Lock("x", other).acquire()
        lock = Lock("x", client)
        assert not lock.acquire(timeout=0)
    assert lock.acquire(timeout=PATIENCE_S)
    lock.release()


def test_a_lock_belongs_to_the_session_of_the_workers_client(client: Client) -> None:
    lock = Lock()
    assert client.submit(hold_in_a_task, lock).result(PATIENCE_S)
    assert lock.locked()
    client.restart_workers(list(client.nthreads()), timeout=PATIENCE_S)
    assert lock.acquire(timeout=PATIENCE_S)
    lock.release()
