"""Both clients on a real scheduler and real workers, inside this program."""

import operator
import re
from collections.abc import Iterator
from typing import Any, Never

import pytest
import trio

from trio_dask import (
    AsyncClient,
    Client,
    Future,
    FutureCancelledError,
    KeyConflict,
    Queue,
    Variable,
    as_completed,
    get_client,
    open_local_cluster,
    wait,
)
from trio_dask.comm import shared_blobs
from trio_dask.errors import UsageError
from trio_dask.protocol.raw_memory import map_shared
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH


def increment(x: int) -> int:
    return x + 1


def sum_of_children(count: int) -> int:
    """A task that submits tasks and waits for them, through the client of its worker."""
    client = get_client()
    return sum(client.gather(client.map(increment, range(count))))


async def sum_of_children_under_trio(count: int) -> tuple[str, int, int]:
    async with get_client() as client:
        futures = client.map(increment, range(count))
        results = [await future async for future in client.as_completed(futures)]
        return type(client).__name__, sum(results), await client.submit(operator.neg, 1)


def return_a_future(x: int) -> Future:
    future: Future = get_client().submit(increment, x)
    return future


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=2, threads_per_worker=2, processes=False) as client:
        yield client


def test_work_is_done(client: Client) -> None:
    futures = client.map(increment, range(2000))
    assert client.gather(futures) == list(range(1, 2001))
    assert client.submit(sum, futures).result() == 2001000
    assert wait(futures).not_done == set()
    assert len(list(as_completed(futures))) == 2000
    graph = {f"n-{i}": (operator.add, f"n-{i - 1}", 1) for i in range(1, 200)} | {"n-0": 0}
    assert client.get(graph, ["n-199", "n-100"]) == [199, 100]


def test_a_future_of_another_cluster_is_told_whose_it_is(client: Client) -> None:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as other:
        foreign = other.submit(increment, 1, key="foreign")
        whose = f"'foreign', a future of {other.name}, which belongs to the scheduler at {other.engine.address}: submit"
        for call in (client.submit(increment, foreign), client.submit(sum, [foreign, 1])):
            with pytest.raises(FutureCancelledError, match=re.escape(whose)):
                call.result()
        with pytest.raises(FutureCancelledError, match=re.escape(whose)):
            client.get({"a": (increment, foreign)}, "a")

        def publish(future: Future) -> None:
            client.publish_dataset([future], name="foreign")

        put, assign = Queue(client=client).put, Variable(client=client).set
        for operation in (
            *(client.explain, client.replicate, client.rebalance, client.cancel, client.retry, client.detach),
            *(publish, put, assign),
        ):
            with pytest.raises(UsageError, match=rf"'foreign' is a future of {other.name}, .*: ask there"):
                operation(foreign)
        assert foreign.result() == 2


def test_arrays_come_and_go(client: Client) -> None:
    np = pytest.importorskip("numpy")
    arrays = [np.arange(200_000) + i for i in range(4)]
    futures = client.scatter(arrays, hash=False)
    assert {len(holders) for holders in client.who_has(futures).values()} == {1}
    for array, back in zip(arrays, client.gather(futures), strict=True):
        assert (array == back).all()
        back[0] = 7  # it is our own
    everywhere = client.scatter(arrays[0], broadcast=True)
    assert len(client.who_has(everywhere)[everywhere.key]) == 2
    assert client.submit(np.sum, everywhere).result() == arrays[0].sum()


def test_a_task_knows_the_id_of_its_worker(client: Client) -> None:
    ids = client.run(lambda dask_worker: dask_worker.id)
    assert ids == {address: worker["id"] for address, worker in client.scheduler_info()["workers"].items()}


def test_a_task_can_use_the_client_of_its_worker(client: Client) -> None:
    assert client.submit(sum_of_children, 10).result(timeout=30) == 55


def test_an_async_task_gets_a_client_for_trio(client: Client) -> None:
    assert client.submit(sum_of_children_under_trio, 10).result(timeout=30) == ("AsyncClient", 55, -1)


def test_a_result_with_the_longest_key_goes_from_worker_to_worker_and_to_the_client(client: Client) -> None:
    keys = [("\N{CLAPPING HANDS SIGN}" * MAX_KEY_LENGTH)[:-1] + letter for letter in "ab"]
    first, second = client.nthreads()
    data = [
        client.submit(bytes, 300_000, key=key, workers=where) for key, where in zip(keys, (first, second), strict=True)
    ]
    assert client.submit(lambda *parts: sum(map(len, parts)), *data, workers=first).result(timeout=30) == 600_000
    assert client.submit(lambda *parts: sum(map(len, parts)), *data, workers=second).result(timeout=30) == 600_000
    assert client.gather(data) == [bytes(300_000)] * 2
    with pytest.raises(UsageError, match=r"^the key has 4097 characters; at most 4096 are allowed$"):
        client.submit(bytes, 1, key="x" * (MAX_KEY_LENGTH + 1))


def test_a_key_that_another_client_has_given_another_task_is_refused(client: Client) -> None:
    with Client(client.cluster, set_as_default=False) as other:
        mine = client.submit(increment, 1, key="shared")
        assert mine.result() == 2
        with pytest.raises(KeyConflict):
            other.submit(increment, 2, key="shared").result(timeout=30)
        assert other.submit(increment, 1, key="shared").result(timeout=30) == 2
        assert mine.result() == 2


def test_what_one_client_leaves_behind_is_forgotten(client: Client) -> None:
    with Client(client.cluster, set_as_default=False) as other:
        futures = other.map(increment, range(-50, 0))
        wait(futures)
        keys = {future.key for future in futures}
        assert keys <= set(client.who_has())
    assert not keys & set(client.who_has())


def test_questions_about_the_cluster(client: Client) -> None:
    addresses = set(client.nthreads())
    assert len(addresses) == 2
    assert set(client.has_what()) == set(client.processing()) == addresses
    assert set(client.run(increment, 1) or ()) == addresses
    assert {worker["nthreads"] for worker in client.scheduler_info()["workers"].values()} == {2}
    (one, _) = addresses
    future = client.submit(increment, -7, workers=[one])
    assert future.result() == -6
    assert client.who_has(future) == {future.key: (one,)}
    assert [what for _, _, what in client.story(future)][-1] == "finished"
    client.wait_for_workers(2, timeout=30)
    with pytest.raises(TimeoutError, match="2 of 3"):
        client.wait_for_workers(3, timeout=0.01)


async def test_a_trio_program() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        assert isinstance(client, AsyncClient)
        futures = client.map(increment, range(1000))
        assert await client.submit(sum, futures) == 500500
        assert await client.gather(futures) == list(range(1, 1001))
        outer = await client.submit(return_a_future, 1)
        assert await outer == 2
        with trio.move_on_after(0):
            await client.submit(increment, 5)
        assert await client.submit(increment, 5) == 6


def first_and_last(values: Any) -> tuple[float, float]:
    values[0] += 1  # a task's argument is its own
    return float(values[0]), float(values[-1])


def test_a_large_argument_is_mapped_by_everybody_and_each_task_has_its_own(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    np = pytest.importorskip("numpy")
    mapped = []

    def note_and_map(part: Any) -> Any:
        mapped.append(part)
        return map_shared(part)

    monkeypatch.setattr(shared_blobs, "map_shared", note_and_map)
    values = np.arange(2_000_000.0)
    futures = [client.submit(first_and_last, values, pure=False) for _ in range(4)]
    values[:] = 0  # what a task gets is what was there at the submit
    assert client.gather(futures) == [(1.0, 1_999_999.0)] * 4
    assert mapped


def test_where_memory_cannot_be_mapped_the_content_is_sent_after_all(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    np = pytest.importorskip("numpy")
    monkeypatch.setattr(shared_blobs, "_failed", False)

    def refuse(part: int) -> Never:
        raise OSError("no more descriptors")

    monkeypatch.setattr(shared_blobs, "map_shared", refuse)
    assert client.submit(first_and_last, np.arange(3_000_000.0)).result(60) == (1.0, 2_999_999.0)
    assert not shared_blobs.probe()


def test_a_timeout_is_told_in_seconds_however_it_was_given(client: Client) -> None:
    never = client.submit(increment, 1, workers=["nobody"], pure=False)
    for call in (lambda: never.result(timeout="10ms"), lambda: wait(never, timeout="10ms")):
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            call()


def test_a_future_that_was_released_says_so(client: Client) -> None:
    future = client.submit(increment, 1, pure=False)
    future.result()
    future.release()
    with pytest.raises(FutureCancelledError, match=f"{future.key!r} was released here"):
        future.result()


class Unreadable:
    """It can be pickled, and not unpickled."""

    def __getstate__(self) -> int:
        return 1

    def __setstate__(self, state: int) -> Never:
        raise LookupError("on purpose")

    def __call__(self) -> None:
        pass


def look_up() -> Never:
    raise LookupError("on purpose")


def test_an_error_while_a_call_is_unpickled_says_so_and_one_of_the_call_does_not(client: Client) -> None:
    note = "raised while the function or an argument of the task was unpickled"
    for future in (client.submit(str, Unreadable()), client.submit(Unreadable())):
        with pytest.raises(LookupError) as raised:
            future.result()
        assert note in raised.value.__notes__
    with pytest.raises(LookupError) as raised:
        client.submit(look_up).result()
    assert note not in raised.value.__notes__
