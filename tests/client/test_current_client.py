"""Tasks that submit tasks and wait for them, on a cluster with one slot: it can wait for itself."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Never

import pytest
import trio

from trio_dask import Client, as_completed, get_client, rejoin, secede, wait, worker_client
from trio_dask.worker.task_context import WorkerHandle

PATIENCE_S = 20


def increment(x: int) -> int:
    return x + 1


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    before = client.map(fibonacci, (n - 1, n - 2), pure=False)
    return sum(client.gather(before))


async def fibonacci_under_trio(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    one, two = (client.submit(fibonacci_under_trio, n - step, pure=False) for step in (1, 2))
    first, second = await one, await two
    return int(first + second)


def explicitly(n: int) -> int:
    client = get_client()
    secede()
    secede()  # once is enough
    futures = client.map(increment, range(n))
    found = [future.result() for future in futures]
    rejoin()
    rejoin()
    return sum(found)


def without_return(n: int) -> Any:
    secede()
    return get_client().submit(increment, n).result()


def in_a_block(n: int) -> list[int]:
    with worker_client() as client:
        found: list[int] = client.gather(client.map(increment, range(n)))
        return found


def by_waiting(n: int) -> list[int]:
    client = get_client()
    futures = client.map(increment, range(n))
    wait(futures)
    return sorted(future.result() for future in as_completed(futures))


def fails_outside(n: int) -> Never:
    with worker_client() as client:
        client.submit(increment, n).result()
        raise ValueError(n)


def fail(x: object) -> Never:
    raise KeyError(x)


async def goes_on_after_a_failure(n: int) -> Any:
    client = get_client()
    try:
        await client.submit(fail, n)
    except KeyError:
        return await client.submit(increment, n)


async def block_under_trio(_: object) -> str:
    with pytest.raises(RuntimeError, match="blocks"):
        rejoin()
    with worker_client() as client:
        assert await client.submit(increment, 1) == 2
    return "refused"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (fibonacci, 10, 55),
        (fibonacci_under_trio, 10, 55),
        (explicitly, 10, 55),
        (without_return, 4, 5),
        (in_a_block, 3, [1, 2, 3]),
        (by_waiting, 3, [1, 2, 3]),
        (goes_on_after_a_failure, 1, 2),
        (block_under_trio, 0, "refused"),
    ],
)
def test_a_task_can_wait_for_tasks(
    client: Client, function: Callable[..., Any], argument: int, expected: object
) -> None:
    assert client.submit(function, argument, pure=False).result(timeout=PATIENCE_S) == expected
    assert slots(client) == 1


def slots(client: Client) -> int:
    """What the scheduler thinks can run at once, when nothing runs any more."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        (worker,) = client.scheduler_info()["workers"].values()
        if worker["slots"] == 1 or time.monotonic() > deadline:
            return int(worker["slots"])
        time.sleep(0.01)


def test_a_failure_outside_of_the_slots_leaves_the_slots_as_they_were(client: Client) -> None:
    for n in range(3):
        with pytest.raises(ValueError, match=str(n)):
            client.submit(fails_outside, n).result(timeout=PATIENCE_S)
    assert slots(client) == 1
    assert client.submit(increment, 1).result(timeout=PATIENCE_S) == 2


inside: Counter[str] = Counter()
most_inside = [0]
lock = threading.Lock()


def come_back(n: int) -> int:
    secede()
    rejoin()
    with lock:
        inside["now"] += 1
        most_inside[0] = max(most_inside[0], inside["now"])
    time.sleep(0.005)
    with lock:
        inside["now"] -= 1
    return n


def test_who_rejoins_waits_for_a_slot(client: Client) -> None:
    assert sorted(client.gather(client.map(come_back, range(20)))) == list(range(20))
    assert most_inside == [1]


gate = threading.Event()


def wait_outside(_: object) -> None:
    secede()
    assert gate.wait(PATIENCE_S)


def test_a_cancelled_task_outside_of_the_slots_takes_no_slot_along(client: Client) -> None:
    gate.clear()
    future = client.submit(wait_outside, 1)
    assert client.submit(increment, 10).result(timeout=PATIENCE_S) == 11
    future.cancel()
    time.sleep(0.4)  # longer than a stopped task may keep its slot
    assert client.submit(increment, 20).result(timeout=PATIENCE_S) == 21
    assert slots(client) == 1
    gate.set()
    assert slots(client) == 1


def test_outside_of_tasks_there_is_no_slot_to_give() -> None:
    for call in (secede, rejoin):
        with pytest.raises(ValueError, match="no task is running here"):
            call()


def test_in_a_program_worker_client_is_the_default_client(client: Client) -> None:
    with client.as_current():
        for separate_thread in (True, False):
            with worker_client(separate_thread=separate_thread, timeout=5) as found:
                assert found is client


class SharedClient:
    """Stands for a client."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


async def test_a_task_in_the_event_loop_does_not_wait_for_a_thread_that_makes_the_client() -> None:
    """The thread may be waiting for that very loop."""
    worker = WorkerHandle(name="w", nthreads=2)
    making, loop_is_free = threading.Event(), threading.Event()
    surplus = SharedClient()
    found = []

    def make_slowly(_: object) -> SharedClient:
        making.set()
        assert loop_is_free.wait(PATIENCE_S)
        return surplus

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(trio.to_thread.run_sync, lambda: found.append(worker.get_client(make_slowly)))
        await trio.to_thread.run_sync(making.wait, PATIENCE_S)
        made = SharedClient()
        assert worker.get_client(lambda _: made) is made
        assert not loop_is_free.is_set()
        loop_is_free.set()
    assert found == [made, made]
    assert worker.get_client(make_slowly) is made
    assert surplus.closed.wait(PATIENCE_S)
    assert not made.closed.is_set()


def test_of_many_threads_one_makes_the_client() -> None:
    worker = WorkerHandle(name="w", nthreads=2)
    made = []
    second = threading.Thread(target=lambda: worker.get_client(make))

    def make(_: object) -> SharedClient:
        made.append(SharedClient())
        if len(made) == 1:
            second.start()
            second.join(0.05)  # it waits for us, unless it makes one of its own
        return made[0]

    assert worker.get_client(make) is made[0]
    second.join(PATIENCE_S)
    assert len(made) == 1


def test_the_block_of_a_client_makes_it_the_default_one() -> None:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        with Client(client.cluster.scheduler_address) as inner:
            assert Client.current(allow_global=False) is get_client() is inner
            other = Client(client.cluster.scheduler_address)
            assert get_client() is inner
            with Client(client.cluster.scheduler_address, set_as_default=False):
                assert get_client() is inner
        assert Client.current(allow_global=False) is get_client() is client
        other.close()
