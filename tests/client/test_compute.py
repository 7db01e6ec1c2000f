"""`compute` and `persist`: what they take and give, which client computes, and how a computation is stopped."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import trio

from tests.untyped_dask import Delayed, Task, TaskRef, da, db, dd, delayed, pd
from tests.waiting import until
from trio_dask import Client, Future, FutureCancelledError, LocalCluster, get_worker, open_local_cluster


def inc(x: Any) -> Any:
    return x + 1


def slow(x: int) -> int:
    time.sleep(0.01)
    return x


def host(_: object = None) -> str:
    return get_worker().scheduler_address


def nested(depth: int) -> int:
    if not depth:
        return 1
    return int(delayed(sum)([delayed(nested, pure=False)(depth - 1), delayed(nested, pure=False)(depth - 1)]).compute())


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, 1, processes=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, 1, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@dataclass
class Pair:
    one: Any
    other: Any


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda x: x, 2),
        (lambda x: [x, 5, x], [2, 5, 2]),
        (lambda x: (x,), [2]),
        (lambda x: {x}, [2]),
        (lambda x: frozenset((x,)), [2]),
        (lambda x: {"a": x, "b": [x]}, {"a": 2, "b": [2]}),
        (lambda x: [[x, 1], {"a": (x,)}], [[2, 1], {"a": (2,)}]),
        (lambda x: iter([x, 3]), [2, 3]),
        (lambda x: Pair(x, [x]), Pair(2, [2])),
        (lambda _: 7, 7),
        (lambda _: [], []),
    ],
)
def test_a_future_for_each_collection_or_its_value(client: Client, given: Callable[[Any], Any], expected: Any) -> None:
    assert client.gather(client.compute(given(delayed(inc)(1)))) == expected
    assert client.compute(given(delayed(inc)(1)), sync=True) == expected


def test_an_iterator_and_a_dict_are_one_future_each(client: Client) -> None:
    x = delayed(inc)(1)
    assert isinstance(client.compute(iter([x, 3])), Future)
    assert isinstance(client.compute({"a": x}), Future)


def test_what_is_no_collection_stays_as_it_is(client: Client) -> None:
    x = delayed(inc)(1)
    future, number, container = client.compute([x, 7, [x]], traverse=False)
    assert isinstance(future, Future)
    assert number == 7
    assert container == [x]


def test_a_computation_of_several_collections_computes_what_they_share_once(client: Client) -> None:
    counted = delayed(lambda: get_worker().state.__setitem__("shared", get_worker().state.get("shared", 0) + 1))()
    client.compute([delayed(str)(counted), delayed(repr)(counted)], sync=True)
    found = client.run(lambda dask_worker: dask_worker.state.get("shared", 0)) or {}
    assert sum(found.values()) == 1


def test_persist_takes_collections_only_and_gives_as_many(client: Client) -> None:
    array, frame = da.ones(4, chunks=2), dd.from_pandas(pd.DataFrame({"x": [1, 2]}), npartitions=2)
    assert client.persist(array).sum().compute() == 4
    (again,) = client.persist([array])
    assert again.sum().compute() == 4
    assert client.persist((frame,))[0].x.sum().compute() == 3
    with pytest.raises(TypeError, match="takes dask collections"):
        client.persist([array, 5])


def test_futures_stand_anywhere_in_graphs(client: Client) -> None:
    two = client.submit(inc, 1)
    block = client.submit(lambda: da.core.np.ones(3))
    frame = client.submit(pd.DataFrame, {"x": [1, 2]})
    assert delayed(sum)([two, {"a": two}["a"], delayed(two)]).compute() == 6
    assert delayed(lambda found: found["a"][0].__class__.__name__)({"a": [two]}).compute() == "int"
    assert da.from_delayed(block, (3,), dtype=float).sum().compute() == 3
    assert da.ones(4, chunks=2).map_blocks(lambda chunk, add: chunk + add, two, dtype=float).sum().compute() == 12
    assert dd.from_delayed([frame], meta={"x": int}).x.sum().compute() == 3
    assert db.from_delayed([client.submit(list, (1, 2))]).sum().compute() == 3
    assert (
        dd.from_delayed([frame], meta={"x": int})
        .map_partitions(lambda part, add: part + add, two, meta={"x": int})
        .x.sum()
        .compute()
        == 7
    )


def test_a_graph_can_need_tasks_that_it_does_not_contain(client: Client) -> None:
    two = client.submit(inc, 1, key="outside")
    assert client.get({"y": (inc, two)}, "y") == 3
    assert client.compute(Delayed("z", {"z": Task("z", inc, two)})).result() == 3
    with pytest.raises(FutureCancelledError, match="does not know"):
        client.compute(Delayed("z2", {"z2": Task("z2", inc, TaskRef("unknown"))})).result()


def test_each_thread_and_each_block_computes_with_the_client_that_is_current_there(
    cluster: LocalCluster, other_cluster: LocalCluster
) -> None:
    found: dict[str, str] = {}

    def compute_in_thread(client: Client) -> None:
        with client.as_current():
            ready.wait(10)
            found["thread"] = delayed(host)("thread").compute()

    with Client(cluster) as one, Client(other_cluster) as other:
        ready = threading.Barrier(2)
        thread = threading.Thread(target=compute_in_thread, args=(one,))
        thread.start()
        ready.wait(10)
        found["newest"] = delayed(host)("newest").compute()
        thread.join()
        with one.as_current():
            found["block"] = delayed(host)("block").compute()
            with other.as_current():
                found["inner block"] = delayed(host)("inner block").compute()
        found["after"] = delayed(host)("after").compute()
    here, there = cluster.scheduler_address, other_cluster.scheduler_address
    assert found == {"thread": here, "newest": there, "block": here, "inner block": there, "after": there}


def test_a_compute_inside_tasks_runs_on_the_cluster_and_frees_their_slots(client: Client) -> None:
    assert client.submit(nested, 4).result(timeout=50) == 16


# ------------------------------------------------------------------------------------------ stopped


BIG = 20_000


def big() -> Any:
    """A graph that takes seconds to be made and sent, and longer to be computed."""
    return db.range(BIG, npartitions=3000).map(slow).sum()


def tasks_left(client: Client) -> int:
    return int(client.scheduler_info()["tasks"])


def has_stopped(client: Client) -> bool:
    return tasks_left(client) == 0 and not any(
        thread.name == "trio-dask-graphs" and thread.is_alive() for thread in threading.enumerate()
    )


def expect_stop(client: Client) -> None:
    """It takes a moment; on a machine with other work it may take some seconds."""
    until(lambda: has_stopped(client), "the graph stops")


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """What Ctrl-C does, after this long."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_values_in_graphs_may_change_as_soon_as_the_call_has_returned(client: Client) -> None:
    for number in range(3):
        values = np.ones(300_000)
        total = delayed(sum)([delayed(np.sum, pure=False)(values) for _ in range(40)])
        computed, persisted = client.compute(total), client.persist(total)
        plain = client.get({f"{number}-{call}": (np.sum, values) for call in range(300)}, f"{number}-299", sync=False)
        values[:] = 0
        assert computed.result() == persisted.compute() == 40 * 300_000
        assert plain.result() == 300_000


def test_cancelling_stops_a_graph_that_runs(client: Client) -> None:
    future = client.compute(big())
    until(lambda: tasks_left(client))
    begun = time.monotonic()
    client.cancel(future)
    assert future.status == "cancelled"
    assert time.monotonic() - begun < 1
    expect_stop(client)


def test_dropping_the_last_future_stops_a_graph_that_runs(client: Client) -> None:
    future = client.compute(big())
    until(lambda: tasks_left(client))
    del future
    expect_stop(client)


@pytest.mark.parametrize("after_s", [0.05, 2.0], ids=["while it is made", "while it is sent or runs"])
def test_ctrl_c_stops_a_blocking_compute(client: Client, after_s: float) -> None:
    bag = big()
    begun = time.monotonic()
    with interrupted_after(after_s):
        bag.compute()
    assert time.monotonic() - begun < after_s + 5
    expect_stop(client)
    assert delayed(inc)(1).compute() == 2


async def test_a_cancelled_scope_stops_the_computation_when_nothing_holds_its_future() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        bag = db.range(4000, npartitions=2000).map(slow).sum()
        with trio.move_on_after(0.3) as scope:
            await client.compute(bag)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            while (await client.scheduler_info())["tasks"]:  # noqa: ASYNC110 - nothing tells when a task is forgotten
                await trio.sleep(0.01)
