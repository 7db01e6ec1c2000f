"""joblib and scikit-learn on a cluster: every `Parallel` gives what it gives in one process."""

import multiprocessing
import time
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn.datasets
import sklearn.model_selection
import sklearn.tree

from trio_dask import Client, TaskTimeout, get_worker
from trio_dask.client.joblib import TrioDaskBackend

pytestmark = pytest.mark.slow

CLUSTERS: dict[str, dict[str, Any]] = {
    "processes": {"n_workers": 2, "threads_per_worker": 1},
    "in the program": {"n_workers": 2, "threads_per_worker": 1, "processes": False},
}


@pytest.fixture(scope="module", params=CLUSTERS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(**CLUSTERS[request.param]) as client:
        yield client


@pytest.fixture(autouse=True)
def on_the_cluster(client: Client) -> Iterator[None]:
    with joblib.parallel_config("trio_dask"):
        yield


def in_parallel(calls: Any, **options: Any) -> Any:
    return joblib.Parallel(**options)(calls)


def increment(number: int) -> int:
    return number + 1


def where(_: int) -> str | int:
    time.sleep(0.02)
    return get_worker().name


def increment_each(count: int) -> list[int]:
    found: list[int] = in_parallel(joblib.delayed(increment)(number) for number in range(count))
    return found


def fail_at_five(number: int) -> int:
    if number == 5:
        raise ValueError(f"it was {number}")
    return number


def item(array: Any, number: int) -> float:
    return float(array[number])


def keys_of(client: Client, kind: str) -> list[str]:
    """Of the results and values in the cluster."""
    return sorted({key for keys in client.has_what().values() for key in keys if key.startswith(kind)})


def test_calls_run_in_the_workers_and_their_results_come_in_order(client: Client) -> None:
    places = in_parallel(joblib.delayed(where)(number) for number in range(20))
    assert set(places) == {worker["name"] for worker in client.scheduler_info()["workers"].values()}
    assert in_parallel(joblib.delayed(increment)(number) for number in range(1000)) == list(range(1, 1001))


def test_quick_calls_travel_in_ever_larger_batches() -> None:
    with joblib.Parallel() as parallel:
        parallel(joblib.delayed(increment)(number) for number in range(4000))
        assert parallel._backend._effective_batch_size > 10


@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1])
def test_n_jobs_says_how_many_run_at_a_time(n_jobs: int | None) -> None:
    """With 1 joblib itself calls the functions, in this process."""
    assert joblib.parallel.get_active_backend()[0].effective_n_jobs(n_jobs) == {None: 2, 1: 1, 2: 2, -1: 2}[n_jobs]
    assert in_parallel((joblib.delayed(increment)(number) for number in range(9)), n_jobs=n_jobs) == list(range(1, 10))


def test_no_jobs_mean_nothing() -> None:
    with pytest.raises(ValueError, match="no meaning"):
        joblib.effective_n_jobs(0)


def test_a_task_may_use_parallel(client: Client) -> None:
    """All of them at once: with their slots taken, the inner tasks could not run."""
    counts = range(12)
    nested = in_parallel((joblib.delayed(increment_each)(count) for count in counts), batch_size=1)
    assert nested == [list(range(1, count + 1)) for count in counts]


def test_a_task_may_name_the_backend_itself(client: Client) -> None:
    """In a process where nothing of this was imported."""

    def names_it() -> list[int]:
        import joblib

        with joblib.parallel_config("trio_dask"):
            found: list[int] = joblib.Parallel()(joblib.delayed(abs)(number) for number in range(-3, 0))
        return found

    assert client.submit(names_it).result() == [3, 2, 1]


def test_without_workers_it_waits_for_the_first_one() -> None:
    with Client(n_workers=0, processes=False) as client:
        backend = TrioDaskBackend(client=client, wait_for_workers_timeout=0.05)
        with pytest.raises(TimeoutError, match="0 of 1 workers"), joblib.parallel_config(backend):
            in_parallel(joblib.delayed(increment)(number) for number in range(3))


def test_a_parallel_may_take_what_another_yields() -> None:
    first = in_parallel((joblib.delayed(increment)(number) for number in range(50)), return_as="generator")
    assert in_parallel(joblib.delayed(increment)(number) for number in first) == list(range(2, 52))


def test_results_may_come_as_they_are_done() -> None:
    found = in_parallel((joblib.delayed(increment)(number) for number in range(20)), return_as="generator_unordered")
    assert sorted(found) == list(range(1, 21))


def test_what_a_call_raises_is_raised_with_its_traceback_and_ends_the_others(client: Client) -> None:
    with pytest.raises(ValueError, match="it was 5") as caught:
        in_parallel((joblib.delayed(fail_at_five)(number) for number in range(100_000)), batch_size=1)
    assert "in fail_at_five" in "".join(caught.value.__notes__)
    assert in_parallel(joblib.delayed(increment)(number) for number in range(3)) == [1, 2, 3]


def test_what_cannot_be_pickled_is_said_wherever_it_comes() -> None:
    """Later calls are sent by another thread than the first ones; joblib would wait for ever for them."""
    arguments = [*range(50), (number for number in [1])]
    with pytest.raises(TypeError, match="generator"):
        in_parallel((joblib.delayed(increment)(argument) for argument in arguments), batch_size=1)


def test_a_timeout_ends_the_wait_and_cancels_the_tasks(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(multiprocessing.TimeoutError):
        in_parallel((joblib.delayed(time.sleep)(0.5) for _ in range(100)), timeout=0.2, pre_dispatch="all")
    assert increment_each(3) == [1, 2, 3]
    assert time.monotonic() - began < 10


def test_a_parallel_that_fails_ends_no_other() -> None:
    slow = in_parallel((joblib.delayed(where)(number) for number in range(20)), return_as="generator")
    with pytest.raises(ValueError, match="it was 5"):
        in_parallel(joblib.delayed(fail_at_five)(number) for number in range(20))
    assert len(list(slow)) == 20


def test_a_large_argument_is_scattered_once_and_released_with_the_call(client: Client) -> None:
    array = np.arange(500_000.0)
    seen: list[int] = []

    def calls() -> Iterator[Any]:
        for number in range(40):
            seen.append(len(keys_of(client, "ndarray-")))
            yield joblib.delayed(item)(array, number)

    assert in_parallel(calls(), batch_size=1) == list(map(float, range(40)))
    assert max(seen) == 1
    assert released(client, "ndarray-")


def test_a_large_argument_that_is_used_once_does_not_stay(client: Client) -> None:
    """Neither here nor in the cluster."""
    arrays: list[weakref.ref[Any]] = []
    most = 0

    def calls() -> Iterator[Any]:
        nonlocal most
        for number in range(40):
            array = np.full(200_000, float(number))
            arrays.append(weakref.ref(array))
            most = max(most, len([1 for reference in arrays if reference() is not None]))
            yield joblib.delayed(item)(array, 0)

    assert in_parallel(calls(), batch_size=1) == list(map(float, range(40)))
    assert most < 20


@pytest.mark.parametrize("max_nbytes", [None, "100M"])
def test_max_nbytes_says_what_is_large(client: Client, max_nbytes: str | None) -> None:
    array = np.arange(500_000.0)

    def calls() -> Iterator[Any]:
        for number in range(10):
            assert keys_of(client, "ndarray-") == []
            yield joblib.delayed(item)(array, number)

    assert in_parallel(calls(), max_nbytes=max_nbytes) == list(map(float, range(10)))


def test_values_can_be_scattered_in_advance(client: Client) -> None:
    array = np.arange(10.0)
    with joblib.parallel_config("trio_dask", scatter=[array]):
        (key,) = keys_of(client, "ndarray-")
        assert len(client.who_has()[key]) == 2
        assert in_parallel(joblib.delayed(item)(array, number) for number in range(10)) == list(array)
    with pytest.raises(TypeError, match="a list or a tuple"):
        TrioDaskBackend(scatter=array)  # type: ignore[arg-type]


def test_tasks_have_the_options_of_the_configuration() -> None:
    with joblib.parallel_config("trio_dask", time_limit=0.1), pytest.raises(TaskTimeout):
        in_parallel(joblib.delayed(time.sleep)(0.5) for _ in range(2))


def test_a_task_may_use_parallel_while_it_holds_the_only_resource() -> None:
    cluster: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "resources": {"GPU": 1}}
    with Client(**cluster) as client, joblib.parallel_config("trio_dask", client=client, resources={"GPU": 1}):
        assert in_parallel((joblib.delayed(increment_each)(3) for _ in range(2)), batch_size=1) == [[1, 2, 3]] * 2


@pytest.mark.skipif(find_spec("distributed") is not None, reason="then joblib means distributed by it")
def test_without_distributed_the_name_dask_means_this_too(client: Client) -> None:
    with joblib.parallel_config("dask"):
        assert isinstance(joblib.parallel.get_active_backend()[0], TrioDaskBackend)
        assert increment_each(5) == [1, 2, 3, 4, 5]
    assert isinstance(joblib.Parallel(backend="trio_dask")._backend, TrioDaskBackend)


def test_scikit_learn_finds_the_same_parameters_and_scores_as_in_this_process() -> None:
    x, y = sklearn.datasets.make_classification(400, 10, random_state=0)
    tree = sklearn.tree.DecisionTreeClassifier(random_state=0)
    search = sklearn.model_selection.GridSearchCV(tree, {"max_depth": [1, 3, 5]}, cv=3)
    search.fit(x, y)
    scores = sklearn.model_selection.cross_val_score(tree, x, y, cv=3)
    with joblib.parallel_config("sequential"):
        expected = sklearn.base.clone(search).fit(x, y)
        expected_scores = sklearn.model_selection.cross_val_score(tree, x, y, cv=3)
    assert search.best_params_ == expected.best_params_
    assert search.cv_results_["mean_test_score"].tolist() == expected.cv_results_["mean_test_score"].tolist()
    assert scores.tolist() == expected_scores.tolist()


def released(client: Client, kind: str) -> bool:
    """Whether the cluster lets go of these values soon."""
    deadline = time.monotonic() + 10
    while keys_of(client, kind) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not keys_of(client, kind)
