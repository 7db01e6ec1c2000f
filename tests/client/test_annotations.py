"""How tasks of graphs run: by their annotations, by those around the call, and by the options of the call."""

import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.untyped_dask import da, db, delayed
from tests.untyped_dask import whole as dask
from trio_dask import AsyncClient, Client, LocalCluster, TaskTimeout, get_worker, open_local_cluster, wait


def where(_: Any = None) -> Any:
    return get_worker().name


def where_block(block: Any) -> Any:
    return np.full(len(block), get_worker().name)


def fails_first(name: str, times: int) -> int:
    state = get_worker().state
    state[name] = state.get(name, 0) + 1
    if state[name] <= times:
        raise ValueError(f"attempt {state[name]}")
    return int(state[name])


def note(name: str, number: int) -> int:
    get_worker().state.setdefault(name, []).append(number)
    return number


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, 1, processes=False, resources={"GPU": 1}) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        yield client


def test_annotated_tasks_run_where_each_of_them_says(client: Client) -> None:
    with dask.annotate(workers=[1]):
        ones = [delayed(where)(number) for number in range(4)]
    with dask.annotate(workers=[2], allow_other_workers=False):
        two = delayed(lambda found: (set(found), where()))(ones)
    assert two.compute() == ({1}, 2)
    assert client.compute(two).result() == ({1}, 2)
    kept = client.persist([*ones, two])
    assert [delayed_one.compute() for delayed_one in kept] == [1, 1, 1, 1, ({1}, 2)]


def test_annotations_of_blocks_count_where_dask_does_not_fuse(client: Client) -> None:
    with dask.annotate(workers=[1]):
        array = da.ones(12, chunks=2).map_blocks(where_block, dtype=int)
        bag = db.range(6, npartitions=6).map(where)
    assert set(array.compute(optimize_graph=False)) == {1}
    assert set(bag.compute(optimize_graph=False)) == {1}
    with dask.config.set({"optimization.fuse.active": False}):
        assert set((array * 1).compute()) == {1}


def test_an_annotation_can_be_a_function_of_the_key(client: Client) -> None:
    with dask.annotate(workers=lambda key: [key[1] % 3]):
        bag = db.range(6, npartitions=6).map(where)
    assert bag.compute(optimize_graph=False) == [0, 1, 2, 0, 1, 2]


def test_annotations_around_the_call_count_for_all_tasks_and_survive_fusion(client: Client) -> None:
    bag = db.range(6, npartitions=6).map(where)
    with dask.annotate(workers=[2]):
        assert set(bag.compute()) == {2}
        future = client.compute(bag)
        kept = client.persist(bag)
    assert set(future.result()) == {2}
    wait(kept)
    names = {address: worker["name"] for address, worker in client.scheduler_info()["workers"].items()}
    assert {names[address] for holders in client.who_has(kept).values() for address in holders} == {2}


def test_options_of_the_call_come_before_annotations_around_it_and_after_those_of_the_task(client: Client) -> None:
    with dask.annotate(workers=[1]):
        own = delayed(where)("own")
    plain = delayed(where)("plain")
    with dask.annotate(workers=[0]):
        assert client.compute([own, plain], workers=[2], sync=True) == [1, 2]


def test_options_that_are_not_given_leave_annotations_around_the_call_alone(client: Client) -> None:
    with dask.annotate(priority=5, retries=2, workers=["nowhere"], allow_other_workers=True):
        future = client.compute(delayed(fails_first)("around", 0))
        assert future.result(timeout=10) == 1


GO_ON = threading.Event()


def wait_to_go_on() -> None:
    assert GO_ON.wait(10)


def thread(_: Any = None) -> str:
    return f"{threading.current_thread().name.partition('_')[0].partition('-')[0]} of {get_worker().name}"


def thread_of_block(block: Any) -> Any:
    return np.full(len(block), thread())


@pytest.fixture
def gpu(client: Client) -> Iterator[None]:
    """Each worker has an executor of this name."""

    def add(dask_worker: Any) -> None:
        dask_worker.executors["gpu"] = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def remove(dask_worker: Any) -> None:
        dask_worker.executors.pop("gpu").shutdown()

    client.run(add)
    yield
    client.run(remove)


def test_tasks_run_in_the_executor_that_is_annotated(client: Client, gpu: None) -> None:
    with dask.annotate(executor="gpu", workers=[1]):
        annotated = delayed(thread)("annotated")
        assert client.submit(thread, "submitted").result() == "gpu of 1"
        assert client.gather(client.map(thread, [1, 2])) == ["gpu of 1"] * 2
        assert client.get({"graph": (thread, 0)}, "graph") == "gpu of 1"
    assert annotated.compute() == client.compute(annotated).result() == "gpu of 1"
    assert client.persist(annotated).compute() == "gpu of 1"
    plain = delayed(thread)("plain")
    assert client.compute(plain, executor="gpu", workers=[2]).result() == "gpu of 2"
    assert client.persist(delayed(thread)("kept"), executor="gpu", workers=[2]).compute() == "gpu of 2"
    with dask.annotate(executor="default", workers=[0]):
        assert client.submit(thread, "default").result() == "slot of 0"
    with dask.annotate(executor=lambda key: "gpu", workers=[0]):
        assert delayed(thread)("by a function of the key").compute() == "gpu of 0"


def test_blocks_of_an_array_run_in_the_executor_of_their_layer(client: Client, gpu: None) -> None:
    x = da.zeros(4, chunks=2)
    with dask.annotate(executor="gpu", workers=[1]):
        y = x.map_blocks(thread_of_block, dtype="U9")
    with dask.config.set({"optimization.fuse.active": False}):
        assert y.compute().tolist() == ["gpu of 1"] * 4


def test_other_annotations_hold_for_a_task_with_an_executor(client: Client, gpu: None) -> None:
    with dask.annotate(executor="gpu", resources={"GPU": 1}, retries=2, workers=[0]):
        assert client.submit(fails_first, "in an executor", 2).result() == 3
    GO_ON.clear()
    with dask.annotate(executor="gpu", workers=[0]):
        with pytest.raises(TaskTimeout):
            client.submit(wait_to_go_on, time_limit=0.01).result(timeout=10)
        GO_ON.set()
        assert client.submit(abs, -1).result(timeout=10) == 1


def test_an_executor_that_no_worker_has_fails_the_task(client: Client, gpu: None) -> None:
    message = r"Invalid executor 'bad'; expected one of: \['default', 'gpu'\]"
    with dask.annotate(executor="bad"):
        annotated = delayed(where)()
        future = client.submit(where, "bad")
        with pytest.raises(ValueError, match=message):
            delayed(where)("around").compute()
    assert isinstance(future.exception(timeout=10), ValueError)
    assert future.status == "error"
    with pytest.raises(ValueError, match=message):
        client.compute(annotated).result(timeout=10)
    for option in (1, ""):
        with dask.annotate(executor=option), pytest.raises(ValueError, match="executor is the name of one that"):
            client.submit(where, "odd")
    with dask.annotate(executor="gpu"), pytest.raises(ValueError, match="an actor has a thread of its own"):
        client.submit(list, actor=True)


def test_a_task_is_run_again_as_often_as_it_is_annotated(client: Client) -> None:
    with dask.annotate(retries=2, workers=[0]):
        twice = delayed(fails_first)("retried", 2)
    with dask.annotate(retries=1, workers=[0]):
        once = delayed(fails_first)("not often enough", 2)
    with dask.annotate(workers=[0]):
        by_call = delayed(fails_first)("by call", 1)
    assert client.compute(twice).result() == 3
    with pytest.raises(ValueError, match="attempt 2"):
        client.compute(once).result()
    assert client.compute(by_call, retries=1).result() == 2


def test_resources_keep_a_task_from_workers_without_them(client: Client) -> None:
    with dask.annotate(resources={"GPU": 1}):
        here = delayed(where)("gpu")
    with dask.annotate(resources={"TPU": 1}):
        nowhere = delayed(where)("tpu")
    assert client.compute(here).result() in (0, 1, 2)
    with pytest.raises(TimeoutError):
        client.compute(nowhere).result(timeout=0.2)
    with pytest.raises(TimeoutError):
        client.compute(delayed(where)("by call"), resources={"TPU": 1}).result(timeout=0.2)


def test_workers_that_are_only_preferred_do_not_hold_a_task_up(client: Client) -> None:
    with dask.annotate(workers=["nowhere"], allow_other_workers=True):
        loose = delayed(where)("loose")
    assert client.compute(loose).result(timeout=10) in (0, 1, 2)
    assert client.compute(delayed(where)("1"), workers="nowhere", allow_other_workers=True).result(timeout=10) in (
        0,
        1,
        2,
    )


def test_tasks_with_a_larger_priority_run_first(client: Client) -> None:
    def order(name: str) -> list[int]:
        worker = client.run(lambda dask_worker: dask_worker.state.get(name), workers=[0]) or {}
        return list(next(iter(worker.values())))

    tasks = []
    for number in range(6):
        with dask.annotate(priority=number, workers=[0]):
            tasks.append(delayed(note)("annotated", number))
    client.compute(tasks, sync=True)
    assert order("annotated") == [5, 4, 3, 2, 1, 0]


async def test_annotations_count_under_trio(async_client: AsyncClient) -> None:
    with dask.annotate(workers=[1]):
        one = delayed(where)("one")
    with dask.annotate(workers=[0]):
        assert await async_client.compute([one, delayed(where)("zero")], sync=True) == [1, 0]


def test_annotations_around_plain_calls_hold_where_the_call_says_nothing(client: Client) -> None:
    with dask.annotate(workers=[2]):
        one = client.submit(where, "one")
        assert [one.result(), *client.gather(client.map(where, ["many", "more"]))] == [2, 2, 2]
        assert client.get({"graph": (where, 0)}, "graph") == 2
        assert client.submit(where, "own", workers=[1]).result() == 1
    with dask.annotate(retries=2, workers=[0], other="for other libraries"):
        assert client.submit(fails_first, "around a call", 2).result() == 3


async def test_annotations_around_calls_of_the_async_client_hold(async_client: AsyncClient) -> None:
    with dask.annotate(workers=[1]):
        assert await async_client.submit(where, "one") == 1
