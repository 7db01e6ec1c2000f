"""`Client.get_executor`: code for `concurrent.futures` runs in the cluster, and finds what it expects."""

import concurrent.futures
import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.cluster import MiniCluster, open_client
from tests.waiting import until
from trio_dask import Client, LocalCluster, SchedulerLost, UsageError

GATE = threading.Event()
"""The cluster is in this process."""

TRIES: list[int] = []


def inverse(x: int) -> float:
    return 1 / x


def gated(x: int) -> int:
    GATE.wait(20)
    return x


def gated_unless_first(x: int) -> int:
    return gated(x) if x else x


def minus(x: int) -> int:
    return -x


def third_time(x: int) -> float:
    TRIES.append(x)
    return x if len(TRIES) == 3 else inverse(0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, 2, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    GATE.clear()
    with Client(cluster) as client:
        yield client
        GATE.set()


def test_calls_give_results_and_errors_with_the_traceback_of_the_worker(client: Client) -> None:
    with client.get_executor() as executor:
        good, bad = executor.submit(inverse, 2), executor.submit(inverse, x=0)
        assert isinstance(good, concurrent.futures.Future)
        assert good.result(20) == 0.5
        error = bad.exception(20)
    assert isinstance(error, ZeroDivisionError)
    assert traceback.extract_tb(error.__traceback__)[-1].name == "inverse"


def test_wait_and_as_completed_of_the_standard_library_hear_of_each_end(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        held, quick, failed = executor.submit(gated, 1), executor.submit(abs, -2), executor.submit(inverse, 0)
        assert set(concurrent.futures.wait([quick, failed], 20).done) == {quick, failed}
        first = concurrent.futures.wait([held, quick], 20, concurrent.futures.FIRST_COMPLETED)
        assert (first.done, first.not_done) == ({quick}, {held})
        futures = [held, quick, failed]
        ends = concurrent.futures.as_completed(futures, 20)
        assert {next(ends), next(ends)} == {quick, failed}
        assert held.cancel()
        assert next(ends) is held


def test_a_running_call_can_be_cancelled_and_its_task_stops_being_one(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        future = executor.submit(gated, 1)
        until(lambda: any(client.processing().values()))
        assert future.cancel()
        assert future.cancel(), "a second time means the same"
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(20)
        until(lambda: not any(client.processing().values()))
        done = executor.submit(abs, -1)
        assert done.result(20) == 1
        assert not done.cancel()


def test_callbacks_get_the_future_itself_with_its_result(client: Client) -> None:
    ended: list[Any] = []
    with client.get_executor() as executor:
        future = executor.submit(pow, 2, 5)
        future.add_done_callback(lambda it: ended.append((it, it.result())))
    assert ended == [(future, 32)]


@pytest.mark.parametrize("chunksize", [1, 2, 100])
def test_map_gives_results_in_order_whatever_the_chunks(client: Client, chunksize: int) -> None:
    with client.get_executor() as executor:
        assert list(executor.map(pow, range(5), [2] * 7, chunksize=chunksize)) == [0, 1, 4, 9, 16]
        results = executor.map(inverse, [2, 0, 1], chunksize=chunksize)
        with pytest.raises(ZeroDivisionError):
            list(results)
        assert list(executor.map(abs, [], chunksize=chunksize)) == []


def test_a_chunk_is_one_task(client: Client) -> None:
    with client.get_executor() as executor:
        results = executor.map(abs, range(10), chunksize=4)
        assert len(client.engine.core.states) == 3
        assert list(results) == list(range(10))


def test_map_says_when_its_time_is_up_and_cancels_what_is_left(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        results = executor.map(gated, range(3), timeout=0.02)
        with pytest.raises(concurrent.futures.TimeoutError) as kept:
            next(results)
        until(lambda: not any(client.processing().values()))
        assert kept.tb is not None  # it keeps the futures: they were cancelled, not dropped


@pytest.mark.parametrize("begun", [True, False])
def test_calls_of_a_dropped_iterator_are_cancelled(client: Client, begun: bool) -> None:
    with client.get_executor(pure=False) as executor:
        results = executor.map(gated_unless_first, range(3))
        if begun:
            assert next(results) == 0
        del results
        gc.collect()
        until(lambda: not any(client.processing().values()))


def test_shutdown_waits_for_all_calls_those_of_map_too(client: Client) -> None:
    executor = client.get_executor(pure=False)
    future, results = executor.submit(gated, 1), executor.map(gated, [2])
    threading.Timer(0.05, GATE.set).start()
    executor.shutdown()
    assert future.done()
    assert not any(client.processing().values())
    assert list(results) == [2]
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.map(abs, [1])


def test_shutdown_cancels_if_it_is_to_or_if_it_does_not_wait(client: Client) -> None:
    for arguments in ({"wait": True, "cancel_futures": True}, {"wait": False}):
        executor = client.get_executor(pure=False)
        future, results = executor.submit(gated, 1), executor.map(gated, [2])
        executor.shutdown(**arguments)
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            next(results)
    executor = client.get_executor(pure=False)
    future = executor.submit(gated, 3)
    executor.shutdown(wait=False, cancel_futures=False)
    GATE.set()
    assert future.result(20) == 3


def test_results_stay_in_the_cluster_as_long_as_their_futures_and_no_longer(client: Client) -> None:
    with client.get_executor() as executor:
        future = executor.submit(pow, 2, 6)
        assert future.result(20) == 64
        assert any(client.has_what().values())
        assert list(executor.map(abs, range(3))) == [0, 1, 2]
        del future
    until(lambda: not any(client.has_what().values()))
    assert not client.engine.core.states


def test_a_call_whose_future_was_dropped_runs_all_the_same() -> None:
    cluster = MiniCluster(hold=True)
    with open_client(cluster) as client, client.get_executor() as executor:
        executor.submit(abs, -1)
        gc.collect()
        cluster.from_thread(lambda: cluster.finish(*cluster.tasks))
    assert sum(cluster.computed.values()) == 1


def test_the_end_of_the_client_cancels_its_calls(cluster: LocalCluster) -> None:
    GATE.clear()
    with Client(cluster) as client:
        future = client.get_executor(pure=False).submit(gated, 1)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(20)
    GATE.set()


def test_a_call_that_is_lost_with_its_scheduler_says_so() -> None:
    with LocalCluster(1, 1, processes=False) as own, Client(own) as client:
        future = client.get_executor(pure=False, resources={"GPU": 1}).submit(minus, 1)
        own.close()
        with pytest.raises(SchedulerLost, match="is lost with the connection"):
            future.result(20)


class Exits:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (3,)


def test_whatever_a_result_raises_when_it_is_unpickled_is_raised_and_others_go_on(client: Client) -> None:
    executor = client.get_executor(pure=False)
    with pytest.raises(SystemExit):
        executor.submit(Exits).result(20)
    assert executor.submit(minus, 1).result(20) == -1


def test_an_option_that_the_function_has_a_parameter_for_is_meant_for_the_function(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        assert executor.submit(sorted, [1, 3, 2], key=minus).result(20) == [3, 2, 1]
        named = executor.submit(abs, -3, key="my-key")
        assert named.result(20) == 3
        assert "my-key" in client.who_has()


def test_options_hold_for_all_calls_and_wrong_ones_are_refused_at_once(client: Client) -> None:
    with pytest.raises(TypeError, match=r"\['bar', 'foo'\]"):
        client.get_executor(foo=1, bar=2)
    with pytest.raises(UsageError, match="retries"):
        client.get_executor(retries=-1)
    TRIES.clear()
    with client.get_executor(retries=2, pure=False) as executor:
        assert executor.submit(third_time, 7).result(20) == 7


def test_a_map_that_is_late_tells_the_time_that_it_was_given(client: Client) -> None:
    with client.get_executor() as executor:
        assert repr(executor) == f"<ClientExecutor of {client.name}>"
        results = executor.map(gated, [10, 11], timeout=0.05)
        with pytest.raises(TimeoutError, match=r"gave no result within 0\.05 s of map\(\)"):
            list(results)
        GATE.set()
        with pytest.raises(TimeoutError, match="of the call's own"):
            list(executor.map(raise_timeout, ["of the call's own"], timeout=10))
    assert repr(executor).endswith(", shut down>")


def raise_timeout(text: str) -> None:
    raise TimeoutError(text)
