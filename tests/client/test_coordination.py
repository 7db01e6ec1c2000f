"""Programs and tasks coordinate: both forms, against a cluster inside this program."""

import operator
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import trio

from trio_dask import (
    AsyncClient,
    AsyncEvent,
    AsyncLock,
    AsyncMultiLock,
    AsyncQueue,
    AsyncSemaphore,
    AsyncVariable,
    Client,
    Event,
    Future,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    open_local_cluster,
    secede,
)
from trio_dask.client.coordination import requests
from trio_dask.client.core import local_leases
from trio_dask.client.core.local_leases import LeaseWaiter, Place
from trio_dask.client.engine import Engine
from trio_dask.errors import FutureCancelledError, UsageError
from trio_dask.worker.secede import SecededTasks

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


def wait_for(name: str, secedes: bool = True) -> bool:
    if secedes:
        secede()
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


def test_tasks_that_wait_for_an_event_hold_the_others_back(client: Client) -> None:
    event, later = Event("hold"), Event("later")
    holding = client.map(wait_for, [event.name] * 2, secedes=False, pure=False)
    held_back = client.submit(later.set)
    assert not later.wait("50 ms")
    event.set()
    assert client.gather([*holding, held_back]) == [True, True, None]


def test_any_number_of_tasks_wait_for_an_event_once_they_gave_their_slots_away(client: Client) -> None:
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


async def test_in_a_plain_task_the_forms_for_trio_block(async_client: AsyncClient) -> None:
    queue, lock, semaphore = AsyncQueue("of a task"), AsyncLock("of a task"), AsyncSemaphore(1, "of a task")

    def use() -> list[bool]:
        queue.put("first")  # type: ignore[unused-coroutine]
        with lock, semaphore:
            return [lock.locked(), semaphore.get_value() == 1]  # type: ignore[list-item, comparison-overlap]

    assert await async_client.submit(use) == [True, True]
    assert await queue.get(PATIENCE_S) == "first"
    assert not await lock.locked()


async def test_a_blocking_form_is_refused_under_trio() -> None:
    await trio.lowlevel.checkpoint()
    with pytest.raises(RuntimeError, match="blocks"):
        Lock("x").acquire()
    for kind in (Lock, AsyncLock):
        with pytest.raises(RuntimeError, match="blocks"), kind("x"):
            pass


def test_names_are_plain_values_and_each_is_another_name(client: Client) -> None:
    names: list[Any] = ["1", 1, 1.0, True, b"1", ("1",), ["1"], ("1", (1, b"x")), "\x001", "\x00b'1'", "f\udcff"]
    for number, name in enumerate(names):
        Variable(name).set(number)
        assert Variable(name).name == name
    assert [client.submit(lambda name: Variable(name).get(), name).result(PATIENCE_S) for name in names] == [*range(11)]


@pytest.mark.parametrize("name", [object(), [object()], {"x": 1}, "x" * 5000, (b"x" * 5000,)])
def test_no_other_names_are_taken(name: object) -> None:
    with pytest.raises(UsageError, match="the name of an event is a text, bytes, a number, or a list"):
        Event(name)


def test_a_call_without_any_client_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.client.current_client.current", lambda: None)
    queue = pickle.loads(pickle.dumps(Queue("nobody's")))
    assert queue.client is None
    with pytest.raises(RuntimeError, match=r"<Queue \"nobody's\">: no client found: make one first"):
        queue.put(1)


@pytest.mark.parametrize("kind", [Event, AsyncEvent, Lock, AsyncLock, Queue, AsyncQueue, Variable, AsyncVariable])
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


def test_an_interrupt_while_a_request_is_sent_leaves_no_lock_behind(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = Engine.acquire_lease

    def acquire_and_be_interrupted(engine: Engine, place: Place, waiter: LeaseWaiter) -> None:
        acquire(engine, place, waiter)
        client.nthreads()  # the lock is there
        raise KeyboardInterrupt

    lock = Lock()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "acquire_lease", acquire_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert lock.acquire(timeout=0)
    lock.release()


@pytest.mark.usefixtures("client")
def test_a_second_acquire_of_the_same_object_is_refused_and_does_not_hang() -> None:
    with Lock("mine") as lock, pytest.raises(RuntimeError, match="<Lock 'mine'> is held here already"):
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


def hold_often(lock: Lock | Semaphore, count: int) -> int:
    for _ in range(count):
        with lock:
            pass
    return count


@pytest.mark.parametrize("kind", [Lock, Semaphore])
def test_threads_of_one_client_hand_a_lease_over_without_the_scheduler(
    client: Client, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_leases, "KEEP_S", PATIENCE_S)
    threads = [threading.Thread(target=hold_often, args=(kind(name="turns", client=client), 200)) for _ in range(4)]
    before = client.engine.core.received
    with kind(name="turns", client=client):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    # As many as callers wait at a time, and for each of the moments in which none waits, at most.
    assert client.engine.core.received - before < 100
    assert kind(name="turns", client=client).acquire(timeout=PATIENCE_S)
    assert len(client.engine.leases) == 0


def test_tasks_of_two_workers_all_get_their_turns(client: Client) -> None:
    with Client(client.engine.address, set_as_default=False) as other:
        threads = [threading.Thread(target=hold_often, args=(Lock("all", owner), 200)) for owner in (client, other) * 2]
        for thread in threads:
            thread.start()
        assert client.gather(client.map(hold_often, [Lock("all")] * 2, [200] * 2, pure=False)) == [200, 200]
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        # A release is a message that nobody waits for: it may still be under way.
        assert Lock("all", other).acquire(timeout=PATIENCE_S)


@pytest.mark.parametrize(("keep_s", "first"), [(0.0, "other"), (PATIENCE_S, "same")])
def test_a_lease_goes_first_to_its_client_for_a_while_and_then_by_the_order_of_the_requests(
    client: Client, keep_s: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_leases, "KEEP_S", keep_s)
    got: list[str] = []

    def take(name: str, owner: Client) -> None:
        with Lock("order", owner):
            got.append(name)

    with Client(client.engine.address, set_as_default=False) as other:
        threads: list[threading.Thread] = []
        with Lock("order", client):
            for name, owner in (("other", other), ("same", client)):
                threads.append(threading.Thread(target=take, args=(name, owner)))
                threads[-1].start()
                while not len(owner.engine.leases):
                    threading.Event().wait(0.001)
                owner.nthreads()  # the scheduler has its request
        for thread in threads:
            thread.join(PATIENCE_S)
    assert got[0] == first
    assert len(got) == 2


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
    client.restart(timeout=PATIENCE_S)
    assert lock.acquire(timeout=PATIENCE_S)
    lock.release()


# ------------------------------------------------------------------------------------------ queues


def produce(queue: Queue, count: int) -> None:
    for number in range(count):
        queue.put(get_client().submit(operator.neg, number))


async def produce_under_trio(queue: AsyncQueue, count: int) -> None:
    for number in range(count):
        await queue.put({"number": number})


def consume(queue: Queue, count: int) -> Any:
    return [queue.get(PATIENCE_S) for _ in range(count)]


def echo(there: Queue, back: Queue) -> None:
    back.put(there.get())


async def echo_under_trio(there: AsyncQueue, back: AsyncQueue) -> None:
    await back.put(await there.get())


@pytest.mark.parametrize(("task", "kind"), [(echo, Queue), (echo_under_trio, AsyncQueue)])
def test_a_task_that_waits_for_a_moment_only_keeps_its_slot(
    client: Client, task: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "KEEP_SLOT_S", PATIENCE_S)
    secede = Mock(return_value=False)
    monkeypatch.setattr(SecededTasks, "secede", secede)
    echoing = client.submit(task, kind("there"), kind("back"), pure=False)
    Queue("there").put(1)
    assert Queue("back").get(PATIENCE_S) == 1
    echoing.result(PATIENCE_S)
    secede.assert_not_called()


@pytest.mark.usefixtures("client")
def test_values_come_out_in_the_order_in_which_they_went_in() -> None:
    queue = Queue()
    for value in (1, "two", {"three": [3]}, b"x" * 5_000_000):
        queue.put(value)
    assert queue.qsize() == 4
    assert [queue.get(), Queue(queue.name).get()] == [1, "two"]
    assert queue.get(batch=1) == [{"three": [3]}]
    assert queue.get(batch=True) == [b"x" * 5_000_000]
    assert queue.get(batch=True) == queue.get(batch=0) == []
    with pytest.raises(TimeoutError, match="gave nothing within"):
        queue.get(timeout=0)
    with pytest.raises(TimeoutError, match=r"gave nothing within 0\.01 s"):
        queue.get(timeout="10 ms")
    with pytest.raises(TimeoutError):
        queue.get(timeout=0.01, batch=2)


@pytest.mark.parametrize("kind", [Queue, Variable])
def test_a_future_of_which_only_the_queue_remains_is_not_lost(
    client: Client, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Engine.post

    def post_late(engine: Engine, *args: Any) -> int:
        client.nthreads()  # whatever was dropped before is released now
        return post(engine, *args)

    future = client.submit(operator.neg, 51)
    future.result(PATIENCE_S)
    monkeypatch.setattr(Engine, "post", post_late)
    primitive = kind()
    put = primitive.put if kind is Queue else primitive.set
    futures = [future]
    del future
    put(futures.pop())
    assert primitive.get(PATIENCE_S).result(PATIENCE_S) == -51
    if kind is Variable:
        primitive.delete()


def test_a_full_queue_makes_producers_wait(client: Client) -> None:
    queue = Queue(maxsize=2)
    producing = client.submit(produce, queue, 5)
    while queue.qsize() < 2:
        pass
    with pytest.raises(TimeoutError, match="had no room within"):
        queue.put(1, timeout=0.01)
    with pytest.raises(TimeoutError, match="had no room"):
        queue.put(1, timeout=0)
    assert [queue.get(timeout=PATIENCE_S).result() for _ in range(5)] == [0, -1, -2, -3, -4]
    producing.result(PATIENCE_S)
    queue.close()


def test_a_future_in_a_queue_is_kept_and_resolved_at_the_other_end(client: Client) -> None:
    queue = Queue()
    queue.put({"nested": [client.submit(operator.neg, 41)]})
    client.submit(operator.neg, 1).result(PATIENCE_S)
    assert client.nbytes(summary=False)  # nobody but the queue needs it
    (future,) = queue.get()["nested"]
    assert isinstance(future, Future)
    assert future.result(PATIENCE_S) == -41
    del future
    assert client.submit(consume, queue, 0).result(PATIENCE_S) == []
    wait_until_nothing_is_kept(client)


def wait_until_nothing_is_kept(client: Client) -> None:
    for _ in range(1000):
        if not client.scheduler_info()["tasks"]:
            return
        threading.Event().wait(0.01)
    raise AssertionError(client.who_has())


def test_tasks_pass_values_to_tasks(client: Client) -> None:
    queue = Queue()
    numbers = client.submit(consume, queue, 3)
    client.submit(produce_under_trio, AsyncQueue(queue.name), 3).result(PATIENCE_S)
    assert numbers.result(PATIENCE_S) == [{"number": 0}, {"number": 1}, {"number": 2}]


@pytest.mark.usefixtures("client")
def test_a_closed_queue_ends_those_that_wait_and_is_as_good_as_new() -> None:
    queue = Queue()
    errors: list[str] = []

    def get() -> None:
        try:
            queue.get()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=get)
    thread.start()
    while not errors:
        queue.close()
    thread.join(PATIENCE_S)
    assert errors == ["this queue was closed"]
    queue.put(1)
    assert queue.get() == 1


@pytest.mark.usefixtures("client")
def test_a_value_that_is_too_large_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="scatter it, and pass on the future"):
        Queue().put(bytes(17 * 2**20))


async def test_a_queue_under_trio(async_client: AsyncClient) -> None:
    queue = AsyncQueue(client=async_client)
    with trio.move_on_after(0.01):
        await queue.get()
    await queue.put(async_client.submit(operator.neg, 3))
    assert await queue.qsize() == 1
    assert await (await queue.get()) == -3


async def test_a_value_that_comes_as_its_getter_is_cancelled_is_not_lost(async_client: AsyncClient) -> None:
    queue = AsyncQueue(client=async_client)
    for is_future in (False, True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.get)
            await async_client.nthreads()  # the scheduler has heard of it
            value = async_client.submit(operator.neg, 3) if is_future else -3
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await AsyncQueue(queue.name, async_client).put(value)
        del value
        back = await queue.get(timeout=PATIENCE_S)
        assert (await back if is_future else back) == -3


# ------------------------------------------------------------------------------------------ variables


@pytest.mark.usefixtures("client")
def test_a_variable_has_the_value_that_was_set_last() -> None:
    variable = Variable()
    with pytest.raises(TimeoutError, match="had no value within"):
        variable.get(timeout=0.01)
    with pytest.raises(TimeoutError):
        variable.get(timeout=0)
    variable.set([1])
    variable.set([2])
    assert variable.get() == Variable(variable.name).get() == [2]
    variable.delete()
    with pytest.raises(TimeoutError):
        variable.get(timeout=0)


def read(variable: Variable) -> Any:
    return variable.get(PATIENCE_S)


def test_a_future_in_a_variable_is_kept_until_it_is_deleted(client: Client) -> None:
    variable = Variable()
    waiting = client.submit(read, variable)
    variable.set(client.submit(operator.neg, 43))
    assert waiting.result(PATIENCE_S).result(PATIENCE_S) == -43
    assert variable.get().result(PATIENCE_S) == variable.get().result(PATIENCE_S) == -43
    variable.delete()
    del waiting
    wait_until_nothing_is_kept(client)


async def test_a_variable_under_trio(async_client: AsyncClient) -> None:
    variable = AsyncVariable(client=async_client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(variable.get)
        await variable.set(3)
    assert await variable.get() == 3
    await variable.delete()


# ------------------------------------------------------------------------------------------ semaphores


@pytest.mark.usefixtures("client")
def test_a_semaphore_has_so_many_leases() -> None:
    semaphore = Semaphore(2, "s")
    assert semaphore.acquire()
    assert semaphore.acquire()
    assert semaphore.get_value() == 2
    assert semaphore.acquire(timeout=0.01) is False
    with pytest.raises(ValueError, match="this semaphore has 2 leases, not 3"):
        Semaphore(3, "s").acquire()
    other: Semaphore = pickle.loads(pickle.dumps(semaphore))
    assert other.acquire(timeout=0) is False
    with pytest.raises(RuntimeError, match="not held by this object"):
        other.release()
    semaphore.release()
    with other:
        assert semaphore.get_value() == 2
    semaphore.close()
    with pytest.raises(RuntimeError, match="was closed"):
        semaphore.acquire()
    with Semaphore(3, "s") as again:
        assert again.get_value() == 1
    again.close()


async def test_a_semaphore_under_trio(async_client: AsyncClient) -> None:
    async with AsyncSemaphore(1, client=async_client) as semaphore:
        assert await semaphore.acquire(timeout=0) is False
    assert await semaphore.get_value() == 0
    await semaphore.close()


# ------------------------------------------------------------------------------------------ locks of several names


@pytest.mark.usefixtures("client")
def test_several_locks_are_acquired_at_once_or_not_at_all() -> None:
    left, both = MultiLock(["left", "other"]), MultiLock(["left", "right"])
    with left:
        assert not both.acquire(blocking=False)
        assert not both.acquire(timeout=0.01)
        assert not both.locked()
        with MultiLock(["right"]):
            pass
        assert both.acquire(num_locks=1)
        both.release()
    assert both.acquire()
    assert both.acquire(timeout=0) is False
    both.release()
    assert repr(both) == "<MultiLock ['left', 'right']>"
    again: MultiLock = pickle.loads(pickle.dumps(both))
    with again:
        assert again.locked()
        with pytest.raises(RuntimeError, match="is held here already"):
            again.acquire()
    with pytest.raises(ValueError, match=r'needs at least one name, such as MultiLock\(\["left", "right"\]\)'):
        MultiLock([])
    with pytest.raises(ValueError, match=r"write MultiLock\(\['xy'\]\), or Lock\('xy'\)"):
        MultiLock("xy")


@pytest.mark.usefixtures("client")
def test_names_of_several_locks_are_those_that_a_message_can_carry() -> None:
    lock = MultiLock(["f\udcff", "f"])
    with lock:
        assert lock.locked()
        assert not MultiLock(["f\udcff"]).acquire(blocking=False)
    with pytest.raises(UsageError, match="at most 4096"):
        MultiLock(["x" * 5000])
    with pytest.raises(UsageError, match="too many"):
        MultiLock(map(str, range(250_000)))


async def test_several_locks_under_trio(async_client: AsyncClient) -> None:
    async with AsyncMultiLock(["a", "b"], async_client) as lock:
        assert await lock.locked()
        assert not await AsyncMultiLock(["b"], async_client).acquire(timeout=0)


def test_a_cancelled_future_is_not_put_anywhere(client: Client) -> None:
    future = client.submit(operator.neg, 1)
    future.cancel()
    for put in (Queue("cancelled").put, Variable("cancelled").set):
        with pytest.raises(FutureCancelledError, match=future.key):
            put([future])
    assert Queue("cancelled").qsize() == 0


async def test_a_form_that_blocks_names_its_form_for_trio() -> None:  # noqa: ASYNC124 - under Trio
    with pytest.raises(RuntimeError, match=r"Lock\.acquire\(\) blocks, .*; use `AsyncLock`$"):
        Lock("a").acquire()
    with pytest.raises(RuntimeError, match=r"with Lock\(\.\.\.\) blocks, .*; use `async with`$"), Lock("a"):
        pass
    with pytest.raises(RuntimeError, match=r"; use `async with AsyncClient\(\.\.\.\)`$"):
        Client()
