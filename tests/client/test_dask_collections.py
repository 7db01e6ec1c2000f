"""What dask's collections ask of a client and its workers beyond plain graphs."""

import operator
from collections.abc import Iterator
from typing import Any

import pytest

from trio_dask import AsyncClient, Client, LocalCluster

dask = pytest.importorskip("dask")
delayed: Any = pytest.importorskip("dask.delayed").delayed


@pytest.fixture
def client() -> Iterator[Client]:
    with LocalCluster(2, 1, processes=False) as cluster, Client(cluster) as client:
        yield client


def squares(count: int) -> Iterator[int]:
    for number in range(count):
        yield number**2


class Holder:
    """An object in which dask does not look for futures."""

    def __init__(self, content: Any) -> None:
        self.content = content


def content_and_sum(holder: Holder, numbers: list[int]) -> tuple[Any, int]:
    return holder.content, sum(numbers)


def test_a_generator_in_a_graph_gives_all_of_its_elements_to_each_dependent(client: Client) -> None:
    numbers = delayed(squares)(4)
    assert dask.compute(delayed(sum)(numbers), delayed(list)(numbers), numbers) == (14, [0, 1, 4, 9], [0, 1, 4, 9])


def test_what_a_generator_raises_is_the_error_of_its_task(client: Client) -> None:
    with pytest.raises(TypeError, match="'str' object cannot be interpreted"):
        delayed(list)(delayed(squares)("four")).compute()


def test_a_task_may_need_one_task_under_the_names_of_several_aliases(client: Client) -> None:
    from dask._task_spec import Alias, Task, TaskRef

    graph = {
        "a": Task("a", abs, -3),
        "b": Alias("b", "a"),
        "c": Alias("c", "b"),
        "d": Task("d", operator.sub, TaskRef("b"), TaskRef("c")),
        "e": Task("e", operator.add, TaskRef("c"), TaskRef("d")),
    }
    assert client.get(graph, ["d", "e"]) == [0, 3]


def test_a_task_may_have_nested_tasks_and_a_future_inside_of_a_value(client: Client) -> None:
    future = client.submit(abs, -5)
    assert delayed(content_and_sum)(Holder(future), [delayed(abs)(-1), 2]).compute() == (5, 3)


@pytest.mark.timeout(30)
def test_a_property_of_a_frame_may_compute(client: Client) -> None:
    """Until Python 3.12 such a property is locked meanwhile, for all frames and all threads."""
    pandas: Any = pytest.importorskip("pandas")
    dataframe: Any = pytest.importorskip("dask.dataframe")
    frame = dataframe.from_pandas(pandas.DataFrame({"x": range(1000)}), npartitions=2)
    assert frame.repartition(partition_size="1kiB").npartitions > 2


def test_what_materializing_a_graph_raises_is_the_error_of_its_futures(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask.dataframe")  # with it, the caller materializes
    from trio_dask.client.collections import collection_calls

    def fail(_: object) -> dict[Any, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(collection_calls, "nodes_of", fail)
    future = client.compute(delayed(1))
    with pytest.raises(ZeroDivisionError):
        future.result()


def test_what_dask_computes_by_is_known_as_ours_while_a_client_is_open() -> None:
    from dask.base import get_scheduler
    from dask.threaded import get

    from trio_dask.client.collections.cluster_scheduler import computes_in_cluster

    with LocalCluster(1, 1, processes=False) as cluster, Client(cluster) as client:
        scheduler = get_scheduler()
        assert computes_in_cluster(scheduler)
        assert computes_in_cluster(client.get)
        assert not computes_in_cluster(get)
    assert not computes_in_cluster(scheduler)


async def test_a_persisted_collection_can_be_awaited() -> None:
    async with AsyncClient(n_workers=1, processes=False) as client:
        kept = await client.persist(delayed(sum)([1, 2]))
        [future] = client.futures_of(kept)
        assert future.done()
        assert await client.compute(kept) == 3
        failed = await client.persist(delayed(operator.truediv)(1, 0))
        assert [future.status for future in client.futures_of(failed)] == ["error"]
        assert dask.is_dask_collection(await delayed(sum)([1, 2]))  # there is nothing to wait for
