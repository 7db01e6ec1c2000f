"""What can be asked of a cluster, in every way to ask it, and what is refused; on a real scheduler and real workers."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import trio

from trio_dask import Client, FutureCancelledError, LocalCluster, as_completed, get_worker, wait
from trio_dask.client.task_options import worker_names
from trio_dask.ids import given_name
from trio_dask.protocol.messages import RestartWorkers


def increment(x: int) -> int:
    return x + 1


def double(x: int) -> int:
    return 2 * x


async def double_async(x: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * x


def fail_on(name: object, dask_worker: Any) -> object:
    if dask_worker.name == name:
        raise LookupError(name)
    return dask_worker.name


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=2, threads_per_worker=1, processes=False) as client:
        yield client


@pytest.fixture
def own_client() -> Iterator[Client]:
    """One whose workers may go."""
    with Client(n_workers=2, threads_per_worker=1, processes=False, set_as_default=False) as client:
        yield client


def addresses(client: Client) -> dict[Any, str]:
    """Of the workers, by name: numbers, as those of distributed's workers."""
    return {worker["name"]: address for address, worker in client.scheduler_info()["workers"].items()}


# --------------------------------------------------------------------------------------------------- about results


def test_results_are_asked_for_by_future_or_by_key_alone_or_nested(client: Client) -> None:
    future = client.submit(increment, 1)
    wait(future)
    expected = client.who_has(future)
    assert list(expected) == [future.key]
    assert set(expected[future.key]) <= set(addresses(client).values())
    for asked in (future.key, [future], (future,), {"a": [future]}, [future.key], None):
        assert client.who_has(asked) == expected
    assert client.who_has([]) == {}
    assert client.nbytes([]) == {}
    assert client.who_has(["nobody"]) == {"nobody": ()}


def test_sizes_are_summed_by_function_or_told_by_key(client: Client) -> None:
    futures = [client.submit(double, 1), client.submit(double, 2), client.submit(increment, 1)]
    wait(futures)
    sizes = client.nbytes(futures, summary=False)
    assert list(sizes) == [future.key for future in futures]
    assert all(size > 0 for size in sizes.values())
    first, second, third = sizes.values()
    summed: dict[str, int] = client.nbytes(futures)
    assert summed == {"double": first + second, "increment": third}


def test_what_each_worker_holds_is_told_for_all_or_for_some_however_they_are_named(client: Client) -> None:
    futures = client.map(increment, range(10))
    wait(futures)
    everything = client.has_what()
    assert set(everything) == set(addresses(client).values())
    assert {key for keys in everything.values() for key in keys} >= {future.key for future in futures}
    for name, address in addresses(client).items():
        for named in (name, str(name), address, [name], {address}):
            assert client.has_what(named) == {address: everything[address]}
            assert client.nthreads(named) == {address: 1}
            assert client.processing(named) == {address: ()}
    assert client.has_what(["nobody"]) == {}
    assert client.nthreads("nobody") == {}


# ---------------------------------------------------------------------------------------------- calls in all workers


def test_a_call_in_each_worker_answers_by_address(client: Client) -> None:
    where = addresses(client)
    assert client.run(increment, 1) == dict.fromkeys(where.values(), 2)
    assert client.run(double_async, 4) == dict.fromkeys(where.values(), 8)
    assert client.run(fail_on, "nobody") == {address: name for name, address in where.items()}
    for named in ("1", 1, where[1], ["1"]):
        assert client.run(increment, 1, workers=named) == {where[1]: 2}
    assert client.run(increment, 1, wait=False) is None


def test_what_calls_in_workers_raise_is_raised_returned_or_ignored(client: Client) -> None:
    where = addresses(client)
    with pytest.raises(LookupError, match="1"):
        client.run(fail_on, 1)
    outcomes = client.run(fail_on, 1, on_error="return")
    assert outcomes is not None
    assert outcomes[where[0]] == 0
    assert isinstance(outcomes[where[1]], LookupError)
    assert client.run(fail_on, 1, on_error="ignore") == {where[0]: 0}


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda client: client.run(increment, 1, on_error="perhaps"),
        lambda client: client.run(increment, 1, workers=["nobody"]),
        lambda client: client.run(increment, 1, nanny=True),
        lambda client: client.run_on_scheduler(increment, 1),
        lambda client: client.gather([], errors="perhaps"),
        lambda client: client.scatter([1], workers="nobody"),
        lambda client: client.wait_for_workers(-1),
        lambda client: client.wait_for_workers(1.5),
        lambda client: client.wait_for_workers(True),
        lambda client: client.wait_for_workers("many"),
        lambda client: client.cluster.wait_for_workers("many"),
        lambda client: client.map(increment, [1], batch_size=-1),
        lambda client: client.get({"x": 1}, "x", actors=True),
        lambda client: client.restart_workers([]),
        lambda client: client.restart_workers(["nobody"]),
        lambda client: client.retire_workers(),
        lambda client: client.retire_workers(["0"], n=1),
        lambda client: client.retire_workers(n=-1),
        lambda client: client.retire_workers(["nobody"]),
        lambda client: client.retire_workers(["0"], close_workers=False),
        lambda client: wait([client.submit(increment, 1)], return_when=cast(Any, "SOON")),
        lambda client: client.map(increment),
        lambda client: client.map(increment, [1, 2], key=["only one"]),
        lambda client: client.submit(increment, 1, retries=-1),
        lambda client: client.submit(increment, 1, priority=float("inf")),
        lambda client: client.submit(increment, 1, time_limit="soon"),
        lambda client: client.submit(increment, 1, resources={"GPU": -1}),
        lambda client: client.submit(increment, 1, allow_other_workers=True),
        lambda client: wait([client.submit(increment, 1)], timeout="soon"),
    ],
)
def test_nonsense_is_refused_in_words_and_changes_nothing(client: Client, nonsense: Callable[..., Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        nonsense(client)
    assert len(client.nthreads()) == 2
    assert client.submit(increment, 1).result(timeout=10) == 2


# ----------------------------------------------------------------------------------------- workers that come and go


def test_retired_workers_leave_their_results_behind(own_client: Client) -> None:
    futures = own_client.map(increment, range(50))
    wait(futures)
    where = addresses(own_client)
    assert own_client.retire_workers(n=0) == {}
    retired = own_client.retire_workers(["0"])
    assert {address: worker["name"] for address, worker in retired.items()} == {where[0]: 0}
    assert list(own_client.nthreads()) == [where[1]]
    assert set(own_client.who_has(futures).values()) == {(where[1],)}
    assert own_client.gather(futures) == list(range(1, 51))


def test_a_worker_that_begins_afresh_holds_nothing_and_nothing_is_lost(own_client: Client) -> None:
    futures = own_client.map(increment, range(50))
    wait(futures)
    assert not own_client.sync(own_client.engine.request, RestartWorkers, ("0", "1"))["missing"]
    assert len(own_client.nthreads()) == 2
    assert own_client.gather(futures) == list(range(1, 51))


def test_a_restart_cancels_what_there_is_for_every_client(own_client: Client) -> None:
    with Client(own_client.cluster, set_as_default=False) as other:
        futures = [own_client.submit(increment, 1), other.submit(increment, 2)]
        wait(futures[0])
        wait(futures[1])
        own_client.restart(timeout=30)
        other.nthreads()  # behind the news
        for future in futures:
            assert future.cancelled()
            with pytest.raises(FutureCancelledError, match="restarted"):
                future.result()
        assert own_client.has_what().keys() == own_client.nthreads().keys()
        assert not any(own_client.has_what().values())
        assert other.submit(increment, 2).result(timeout=10) == 3


def test_without_workers_everything_waits_and_says_so() -> None:
    with LocalCluster(n_workers=0, processes=False) as cluster, Client(cluster, set_as_default=False) as client:
        future = client.submit(increment, 1)
        assert client.run(increment, 1) == client.nthreads() == {}
        with pytest.raises(TimeoutError):
            client.scatter([1], timeout=0.01)
        with pytest.raises(TimeoutError, match="only 0 of 1 workers"):
            client.wait_for_workers(1, timeout=0.01)
        with pytest.raises(TimeoutError, match="it is pending"):
            future.result(timeout=0.01)
        cluster.scale(1)
        client.wait_for_workers(1, timeout="30s")
        assert future.result(timeout=10) == 2


# -------------------------------------------------------------------------------------------------------------- map


@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
def test_the_size_of_batches_makes_no_difference(client: Client, batch_size: int | None) -> None:
    futures = client.map(increment, iter(range(10)), batch_size=batch_size, pure=False)
    assert client.gather(futures) == list(range(1, 11))
    assert len({future.key for future in futures}) == 10


def test_a_task_knows_its_worker(client: Client) -> None:
    found = client.submit(lambda: (get_worker().name, get_worker().address, get_worker().nthreads)).result()
    assert found in [(name, address, 1) for name, address in addresses(client).items()]
    with pytest.raises(ValueError, match="inside a task"):
        get_worker()


def test_names_in_digits_are_numbers_for_users_and_other_names_stay_texts(client: Client) -> None:
    found = client.run(lambda dask_worker: dask_worker.name)
    assert found is not None
    assert sorted(addresses(client)) == sorted(found.values()) == [0, 1]
    assert {given_name(name) for name in ("007", "a1", "-1", "1.0", "", "\u0663", "9" * 19)} == {
        "007",
        "a1",
        "-1",
        "1.0",
        "",
        "\u0663",
        "9" * 19,
    }
    for number in (0, 123, 10**17):
        assert (given_name(str(number)), worker_names(given_name(str(number)))) == (number, (str(number),))
    for workers in (1, "1", [1]):
        name = client.submit(lambda: get_worker().name, workers=workers, pure=False)
        assert name.result() == 1
    client.wait_for_workers(2)


# ------------------------------------------------------------------------------------------ distributed's keywords


def test_keywords_of_distributed_are_taken(client: Client) -> None:
    future = client.submit(increment, 1, actors=False, fifo_timeout="1s")
    assert client.map(increment, [1], actors=False)[0].result() == 2
    assert client.gather([future], direct=True, asynchronous=False) == [2]
    graph = {"a": 1, "b": (increment, "a")}
    options: dict[str, Any] = {"direct": None, "asynchronous": None, "actors": None, "fifo_timeout": "60s"}
    options |= {"retries": 1, "priority": 0}
    assert client.get(graph, ["a", ["b"]], **options) == [1, [2]]
    constant, (later,) = client.get(graph, ["a", ["b"]], sync=False)
    assert (constant, later.result()) == (1, 2)
    assert as_completed([future]).next() is future
    client.wait_for_workers(n_workers=2, timeout="10s")
    client.cluster.wait_for_workers(n_workers=2, timeout="10s")
    info = client.scheduler_info()
    assert (info["n_workers"], info["total_threads"]) == (2, 2)
    assert info["total_memory"] == sum(worker["memory_limit"] for worker in info["workers"].values())
