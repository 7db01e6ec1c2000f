"""Datasets and metadata that the scheduler keeps for all clients: both forms, against a cluster inside this program."""

import operator
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
import trio

from trio_dask import AsyncClient, Client, Event, SerializationError, get_client, get_task_metadata, open_local_cluster

PATIENCE_S = 20


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=2, processes=False) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "client" in request.fixturenames:
        client: Client = request.getfixturevalue("client")
        client.unpublish_dataset(list(client.list_datasets()))


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=2, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        yield client


# ------------------------------------------------------------------------------------------ datasets


def test_the_results_of_a_dataset_outlive_the_client_that_published_it(client: Client) -> None:
    with Client(client.cluster, set_as_default=False) as other:
        other.publish_dataset({"squares": other.map(operator.mul, [2, 3], [2, 3], pure=False)})
    squares = client.get_dataset("squares")
    assert all(future.client is client for future in squares)
    assert client.gather(squares) == [4, 9]


def test_an_unpublished_dataset_frees_its_results(client: Client) -> None:
    client.publish_dataset(one=client.submit(operator.neg, 1, key="kept"), two=[client.submit(operator.neg, 2)])
    assert client.gather([client.get_dataset("one"), *client.get_dataset("two")]) == [-1, -2]
    assert client.who_has(["kept"])["kept"]
    client.unpublish_dataset(["one", "two", "no such one"])
    assert client.list_datasets() == ()
    assert not client.who_has(["kept"])["kept"]


def test_results_of_a_dataset_that_was_just_fetched_outlive_it(client: Client) -> None:
    client.publish_dataset(client.submit(operator.neg, 1), name="x")
    future = client.get_dataset("x")
    client.unpublish_dataset("x")
    assert future.result(PATIENCE_S) == -1


def test_several_datasets_are_published_together_or_not_at_all(client: Client) -> None:
    client.publish_dataset(a=1, b=2)
    with pytest.raises(KeyError, match="'b' exists already"):
        client.publish_dataset(b=3, c=4)
    assert client.get_dataset(["a", "b"]) == [1, 2]
    assert client.list_datasets() == ("a", "b")
    client.publish_dataset(b=3, c=4, override=True)
    assert client.get_dataset(["b", "c"]) == [3, 4]


def test_an_override_keeps_what_old_and_new_have_in_common(client: Client) -> None:
    futures = client.map(operator.neg, [1, 2, 3], pure=False)
    keys = [future.key for future in futures]
    client.publish_dataset(futures[:2], name="x")
    client.publish_dataset(futures[1:], name="x", override=True)
    client.cancel(futures)
    assert not client.who_has(keys)[keys[0]]
    assert client.gather(client.get_dataset("x")) == [-2, -3]


@pytest.mark.parametrize("name", ["text", b"bytes", 1, 2.5, ("a", 1), (("a",), 2.5), ()])
def test_a_dataset_has_a_name_of_text_numbers_and_tuples(client: Client, name: Any) -> None:
    client.publish_dataset("value", name=name)
    assert client.list_datasets() == (name,)
    assert client.get_dataset(name) == "value"
    client.unpublish_dataset(name)
    assert client.get_dataset(name, default=None) is None


@pytest.mark.parametrize(
    "name", ["half a pair: \udcff", "x" * 5000, 2**64, (((((((((1,),),),),),),),),), tuple(range(2000))], ids=ascii
)
def test_a_name_that_no_message_can_carry_is_refused(client: Client, name: Any) -> None:
    future = client.submit(abs, -1)
    for call in (partial(client.publish_dataset, 1, name=name), partial(client.get_dataset, name)):
        with pytest.raises(ValueError, match="name"):
            call()
    assert future.result() == 1


def test_wrong_arguments_are_refused_and_publish_nothing(client: Client) -> None:
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {"name": "x"}),
        ((1,), {}),
        (({"a": 1}, {"b": 2}), {}),
        ((1,), {"name": object()}),
    ]
    for arguments, options in wrong:
        with pytest.raises(ValueError, match="dataset"):
            client.publish_dataset(*arguments, **options)
    with pytest.raises(ValueError, match="too large for a dataset"):
        client.publish_dataset(x=bytes(17 << 20))
    with pytest.raises(ValueError, match="one by one"):
        client.publish_dataset(x=bytes(15 << 20), y=bytes(15 << 20), z=bytes(15 << 20))
    with pytest.raises(SerializationError):
        client.publish_dataset(x=(number for number in range(3)))
    with pytest.raises(KeyError, match="was not found"):
        client.get_dataset("x")
    assert client.list_datasets() == ()


def test_the_datasets_are_a_mapping(client: Client) -> None:
    datasets = client.datasets
    datasets["a"] = 1
    datasets["b", 2] = [1, 2]
    assert datasets["a"] == 1
    assert len(datasets) == 2
    with pytest.raises(KeyError, match="exists already"):
        datasets["a"] = 2
    assert list(datasets) == [("b", 2), "a"]
    assert "a" in datasets
    assert "c" not in datasets
    assert datasets.get("c") is None
    assert datasets.pop(("b", 2)) == [1, 2]
    with pytest.raises(KeyError):
        datasets["b", 2]
    del datasets["a"]
    assert not datasets


async def test_datasets_under_trio(async_client: AsyncClient) -> None:
    await async_client.publish_dataset(async_client.submit(operator.neg, 1), name="x")
    await async_client.publish_dataset(y=2)
    assert [name async for name in async_client.datasets] == ["x", "y"]
    assert await (await async_client.datasets["x"]) == -1
    assert await async_client.datasets.get("z", 3) == 3
    assert await async_client.get_dataset(["y"]) == [2]
    await async_client.unpublish_dataset("x")
    assert await async_client.list_datasets() == ("y",)
    refusals: list[Any] = [iter, len, lambda datasets: "x" in datasets, lambda datasets: datasets.__delitem__("x")]
    for refused in refusals:
        with pytest.raises(TypeError, match="cannot be awaited"):
            refused(async_client.datasets)


async def test_a_cancelled_get_leaves_nothing_behind(async_client: AsyncClient) -> None:
    await async_client.publish_dataset(async_client.submit(operator.neg, 1), name="x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await async_client.get_dataset("x")
    await async_client.unpublish_dataset("x")
    assert (await async_client.scheduler_info())["tasks"] == 0


def publish_from_a_task() -> None:
    client = get_client()
    client.publish_dataset(client.submit(operator.neg, 5), name="from a task")


def test_a_task_publishes_for_others(client: Client) -> None:
    client.submit(publish_from_a_task).result(PATIENCE_S)
    assert client.get_dataset("from a task").result(PATIENCE_S) == -5


def test_a_persisted_collection_is_published_without_its_values(client: Client) -> None:
    pytest.importorskip("dask")
    from tests.untyped_dask import delayed

    client.publish_dataset(total=client.persist(delayed(sum)([1, 2, 3])))
    assert client.compute(client.get_dataset("total")).result(PATIENCE_S) == 6


# ------------------------------------------------------------------------------------------ metadata


def test_metadata_is_a_tree_of_names(client: Client) -> None:
    client.set_metadata("tree", {"a": {"b": 1}, "c": [1, 2]})
    assert client.get_metadata(["tree", "a", "b"]) == 1
    client.set_metadata(["tree", "a", "d"], (1, 2))
    assert client.get_metadata("tree") == {"a": {"b": 1, "d": (1, 2)}, "c": [1, 2]}
    client.set_metadata(["tree", "c", "x"], 5)  # what stands in the way is replaced
    assert client.get_metadata(["tree", "c"]) == {"x": 5}
    client.set_metadata("tree", {})
    assert client.get_metadata("tree") == {}


def test_metadata_that_is_not_there_is_a_key_error_or_the_default(client: Client) -> None:
    client.set_metadata("number", 1)
    client.set_metadata("odd", {1: "one"})
    for path in ("none", ["none", "x"], ["odd", "x"]):
        with pytest.raises(KeyError):
            client.get_metadata(path)
        assert client.get_metadata(path, None) is None
    with pytest.raises(TypeError):
        client.get_metadata(["number", "x"], None)


def test_metadata_of_a_task_is_forgotten_with_the_task(client: Client) -> None:
    future = client.submit(operator.neg, 1, key="noted")
    client.set_metadata(future.key, {"seen": True})
    assert client.get_metadata(["noted", "seen"]) is True
    client.cancel(future)
    assert client.get_metadata("noted", None) is None
    again = client.submit(operator.neg, 1, key="noted")
    assert client.get_metadata("noted", None) is None
    client.set_metadata("noted", 2)
    assert client.get_metadata("noted") == 2
    del again


def test_wrong_metadata_is_refused(client: Client) -> None:
    for path in (1, [], ["x"] * 21, ["x", 1]):
        with pytest.raises(ValueError, match="metadata"):
            client.set_metadata(path, 1)
    with pytest.raises(ValueError, match="cannot be sent"):
        client.set_metadata("x", {"half a pair: \udcff": 1})
    with pytest.raises(ValueError, match="one by one"):
        client.set_metadata("x", {"a": bytes(9 << 20), "b": {"c": bytes(9 << 20)}})
    assert client.get_metadata("x", default=None) is None
    deep: Any = 1
    for _ in range(30):
        deep = {"x": deep}
    client.set_metadata("deep", deep)
    assert client.get_metadata("deep") == deep


async def test_metadata_under_trio(async_client: AsyncClient) -> None:
    await async_client.set_metadata(["x", "y"], 1)
    assert await async_client.get_metadata("x") == {"y": 1}
    assert await async_client.get_metadata("z", default=2) == 2


def test_the_metadata_of_the_tasks_of_a_block(client: Client) -> None:
    event = Event()
    before = client.submit(operator.neg, 1, pure=False)
    late = client.submit(event.wait, pure=False)
    with get_task_metadata() as tasks:
        good = client.submit(operator.neg, 2, pure=False, priority=10)
        bad = client.submit(operator.truediv, 1, 0, pure=False)
        client.set_metadata(good.key, {"note": 1})
        assert good.result() == -2
        assert isinstance(bad.exception(), ZeroDivisionError)
        unfinished = client.submit(operator.neg, late, pure=False)
    event.set()
    assert tasks.state == {good.key: "memory", bad.key: "erred"}
    assert tasks.metadata == {good.key: {"note": 1}, bad.key: {}}
    assert unfinished.result(PATIENCE_S) == -1
    assert before.result() == -1
