"""Actors: an object lives on one worker, and programs and tasks call it there through a proxy."""

import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from tests.waiting import until
from trio_dask import (
    Actor,
    ActorFuture,
    ActorLost,
    AsyncClient,
    Client,
    ClusterError,
    LocalCluster,
    SerializationError,
    UsageError,
    as_completed,
    get_client,
    get_worker,
    open_local_cluster,
)

GATE = threading.Event()
"""The cluster is in this process."""


class Counter:
    n: int

    def __init__(self, n: int = 0) -> None:
        self.n = n
        self.inside = 0

    def add(self, k: int = 1) -> int:
        assert not self.inside
        self.inside += 1
        before = self.n
        time.sleep(0)
        self.n = before + k
        self.inside -= 1
        return self.n

    def fail(self) -> None:
        raise KeyError(self.n)

    def wait(self) -> int:
        GATE.wait(20)
        return self.n

    def me(self) -> tuple[str, int]:
        return get_worker().address, threading.get_ident()

    def twice(self, proxy: Any) -> int:
        return int(proxy.add().result(20)) + int(proxy.add().result(20))

    def ask_cluster(self, x: int) -> int:
        return int(get_client().submit(abs, x).result(20))

    def echo(self, value: Any) -> Any:
        return value

    @property
    def broken(self) -> int:
        raise LookupError("broken")


class Waiter:
    def __init__(self) -> None:
        self.event = trio.Event()
        self.began: list[int] = []

    async def wait(self, number: int) -> int:
        self.began.append(number)
        await self.event.wait()
        return number

    async def set(self) -> None:
        await trio.lowlevel.checkpoint()
        self.event.set()

    def so_far(self) -> list[int]:
        assert not trio.lowlevel.in_trio_run()
        return self.began


def use(counter: Any, times: int) -> int:
    assert type(counter) is Actor
    return max([int(counter.add().result(20)) for _ in range(times)])


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, 1, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    GATE.clear()
    with Client(cluster) as client:
        yield client
        GATE.set()


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        yield client


def actor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("actor-")]


def test_methods_answer_in_order_and_attributes_are_read(client: Client) -> None:
    counter = client.submit(Counter, 5, actor=True).result(20)
    assert isinstance(counter, Actor)
    answers = [counter.add(k) for k in range(4)]
    assert all(isinstance(answer, ActorFuture) for answer in answers)
    assert [answer.result(20) for answer in answers] == [5, 6, 8, 11]
    assert counter.n == 11
    assert all(answer.done() for answer in answers)
    assert "Counter" in repr(counter)
    assert counter.add.__name__ == "add"


def test_what_the_class_does_not_have_is_no_attribute(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(20)
    assert not hasattr(counter, "abc")
    with pytest.raises(AttributeError, match="declares it"):
        _ = counter.inside
    with pytest.raises(AttributeError):
        counter.n = 3


def test_what_a_method_or_a_constructor_raises_is_raised_here(client: Client) -> None:
    counter = client.submit(Counter, 7, actor=True).result(20)
    with pytest.raises(KeyError, match="7") as caught:
        counter.fail().result(20)
    assert caught.traceback[-1].name == "fail"
    assert isinstance(counter.fail().exception(20), KeyError)
    with pytest.raises(LookupError, match="broken"):
        _ = counter.broken
    with pytest.raises(TypeError):
        counter.add(1, 2, 3).result(20)
    with pytest.raises(TypeError):
        client.submit(Counter, no_such_argument=1, actor=True).result(20)
    assert counter.add().result(20) == 8, "it lives on"


def test_two_calls_make_two_actors_where_they_are_to_be(client: Client) -> None:
    workers = list(client.nthreads())
    actors = [client.submit(Counter, actor=True, workers=[worker]).result(20) for worker in workers]
    actors += client.gather(client.map(Counter, [1, 1], actor=True))
    assert len({actor.key for actor in actors}) == 4
    places = [actor.me().result(20) for actor in actors]
    assert [address for address, _ in places[:2]] == workers
    assert len({thread for _, thread in places}) == 4, "each has a thread of its own"


def test_tasks_get_proxies_on_the_worker_of_the_actor_and_elsewhere(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    tasks = [client.submit(use, future, 3, workers=[worker], pure=False) for worker in client.nthreads() for _ in "ab"]
    tasks.append(client.submit(use, future.result(20), 3))
    client.gather(tasks)
    assert future.result(20).n == 15


def test_calls_of_many_tasks_and_threads_never_meet(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(20)
    client.gather([client.submit(use, counter, 20, pure=False) for _ in range(6)])
    threads = [threading.Thread(target=use, args=(counter, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.n == 200


def test_an_actor_may_call_another_one_itself_and_the_cluster(client: Client) -> None:
    workers = list(client.nthreads())
    one, other = (client.submit(Counter, actor=True, workers=[workers[0]]).result(20) for _ in range(2))
    far = client.submit(Counter, actor=True, workers=[workers[1]]).result(20)
    assert one.twice(other).result(20) == 3
    assert one.twice(far).result(20) == 3
    assert one.ask_cluster(-3).result(20) == 3


def test_a_method_that_calls_its_own_actor_does_not_wait_for_itself(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(20)
    assert counter.twice(counter).result(20) == 3


def test_large_arguments_and_answers_arrive_whole(client: Client) -> None:
    numpy = pytest.importorskip("numpy")
    counter = client.submit(Counter, actor=True).result(20)
    array = numpy.arange(1_000_000)
    for value in (array, [array[:10], array]):
        answers = client.gather([counter.echo(value) for _ in range(3)])
        assert all(numpy.array_equal(answer[-1], value[-1]) for answer in answers)
    answers[0][1][0] = 7
    assert answers[1][1][0] == 0


def test_an_answer_is_a_copy_of_what_the_actor_had_at_that_time(client: Client) -> None:
    waiter = client.submit(Waiter, actor=True).result(20)
    before = waiter.so_far().result(20)
    waiter.wait(1)
    assert waiter.so_far().result(20) == [1]
    assert before == []


def test_async_methods_begin_in_order_and_let_others_in_where_they_await(client: Client) -> None:
    waiter = client.submit(Waiter, actor=True).result(20)
    waiting = [waiter.wait(number) for number in range(5)]
    assert waiter.so_far().result(20) == [0, 1, 2, 3, 4]
    assert not any(answer.done() for answer in waiting)
    waiter.set().result(20)
    assert client.gather(waiting) == [0, 1, 2, 3, 4]


def test_answers_are_futures_to_wait_for_and_to_gather_and_nothing_more(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(20)
    assert sorted(answer.result(20) for answer in as_completed([counter.add() for _ in range(3)])) == [1, 2, 3]
    pairs = as_completed([counter.add(), client.submit(abs, -1)], with_results=True)
    assert sorted(value for _, value in pairs) == [1, 4]
    held = counter.wait()
    with pytest.raises(TimeoutError, match="wait"):
        held.result(0.01)
    ended: list[Any] = []
    held.add_done_callback(ended.append)
    GATE.set()
    until(lambda: ended == [held])
    for refused in (held.cancel, held.retry):
        with pytest.raises(UsageError):
            refused()
    for refused in (lambda: client.submit(abs, held), lambda: counter.add(held)):
        with pytest.raises(SerializationError, match=r"result\(\)|pickle"):
            refused()


def test_a_released_actor_ends_after_its_calls(client: Client) -> None:
    until(lambda: not actor_threads())
    counter = client.submit(Counter, actor=True).result(20)
    waiter = client.submit(Waiter, actor=True).result(20)
    waiter.wait(1)
    assert waiter.so_far().result(20) == [1]  # its loop has its thread now
    answer = counter.add()
    del counter
    assert answer.result(20) == 1
    assert len(actor_threads()) == 3
    del answer
    gc.collect()
    until(lambda: len(actor_threads()) == 2)
    client.cancel(client.future(waiter.key))
    until(lambda: not actor_threads())
    with pytest.raises(ActorLost):
        waiter.so_far().result(20)


async def test_under_trio_calls_and_attributes_are_awaited(async_client: AsyncClient) -> None:
    counter = await async_client.submit(Counter, 2, actor=True)
    assert await counter.add() == 3
    assert await counter.n == 3
    assert await async_client.gather([counter.add() for _ in range(3)]) == [4, 5, 6]
    answers = [counter.add() for _ in range(3)]
    assert sorted([await answer async for answer in async_client.as_completed(answers)]) == [7, 8, 9]
    with pytest.raises(KeyError):
        await counter.fail()
    with pytest.raises(RuntimeError, match="blocks"):
        counter.add().result()


async def test_with_its_worker_an_actor_is_lost_and_every_call_says_so_at_once() -> None:
    GATE.clear()
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        future = client.submit(Counter, actor=True)
        counter = await future
        waiting = [counter.wait(), counter.add()]
        dependent = client.submit(use, future, 1, allow_other_workers=False)
        cluster.scale(0)
        for answer in waiting:
            with pytest.raises(ActorLost):
                await answer
        with pytest.raises(ActorLost, match="lived on one worker"):
            await client.submit(use, future, 1, pure=False)
        with pytest.raises(ActorLost):
            await counter.add()
        assert future.status == "error"
        GATE.set()
        del dependent


def test_a_worker_with_an_actor_is_not_retired(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(20)
    address, _ = counter.me().result(20)
    with pytest.raises(ClusterError, match=r"actor 'Counter-.*' lives on worker"):
        client.retire_workers([address])
    assert counter.add().result(20) == 1


def test_an_actor_is_neither_copied_nor_moved(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result(20)
    client.replicate(future)
    client.rebalance(future)
    assert len(client.who_has(future)[future.key]) == 1
    assert counter.add().result(20) == 1
