"""Tasks that are submitted in a span carry its name, and all that shows tasks shows it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.cluster import MiniCluster, open_client
from tests.untyped_dask import delayed
from trio_dask import (
    AsyncClient,
    Client,
    UsageError,
    get_task_metadata,
    get_task_stream,
    open_local_cluster,
    performance_report,
    span,
)
from trio_dask.client.collections.task_annotations import TaskAnnotations
from trio_dask.client.spans import span_here
from trio_dask.protocol import messages as m


def increment(number: int) -> int:
    return number + 1


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


def by_key(runs: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    return {run["key"]: run["span"] for run in runs}


def test_a_span_is_on_all_tasks_of_its_block_and_on_no_others(client: Client, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    with get_task_metadata() as tasks, performance_report(report, client=client), get_task_stream(client) as stream:
        with span("load") as outer:
            one = client.submit(increment, 1)
            with span("january", "raw") as inner:
                many = client.map(increment, range(10, 13), priority=2)
                graph: Any = client.get({"x": (increment, 20), "y": (increment, "x")}, "y", sync=False)
        plain = client.submit(increment, 30)
        client.gather([one, *many, plain, graph])
    assert (outer, inner) == (("load",), ("load", "january", "raw"))
    expected = {one.key: outer, plain.key: (), "x": inner, "y": inner, **{future.key: inner for future in many}}
    assert by_key(stream.data) == expected
    assert tasks.spans == {key: tags for key, tags in expected.items() if tags and key != "x"}
    text = report.read_text(encoding="utf-8")
    assert '<td>load</td><td class="n">6</td>' in text
    assert '<td>load / january / raw</td><td class="n">5</td>' in text
    assert client.explain(one).startswith("(in load) is done, ")
    assert client.explain(plain).startswith("is done, ")
    assert span_here() is None


def test_collections_have_the_span_in_which_they_are_made_or_computed(client: Client) -> None:
    with span("made"):
        made = delayed(increment)(1, dask_key_name="made")
    computed = delayed(increment)(made, dask_key_name="computed")
    with get_task_stream(client) as stream:
        with span("computed"):
            assert client.compute(computed, optimize_graph=False).result() == 3
        assert client.compute(delayed(increment)(5, dask_key_name="neither")).result() == 6
    assert by_key(stream.data) == {"made": ("made",), "computed": ("computed",), "neither": ()}


def test_a_span_of_distributed_means_the_same() -> None:
    around = {"span": {"name": ("a", "b"), "ids": ("1", "2")}}
    assert TaskAnnotations({}, {}, around)("key") == {"span": ("a", "b")}
    assert TaskAnnotations({}, {}, {"span": "odd"})("key") == {}


def test_without_a_span_nothing_more_is_sent_and_within_one_submissions_are_still_merged() -> None:
    cluster = MiniCluster()
    with open_client(cluster) as client:
        client.submit(increment, 1).result()
        with span("a"):
            client.gather([client.submit(increment, number) for number in range(2, 5)])
            client.submit(increment, 9, retries=1).result()
    extras = [message.extra for message in cluster.received if isinstance(message, m.Submit)]
    assert extras[0] == {}
    assert extras[1:-1]
    assert all(extra == {"span": ("a",)} for extra in extras[1:-1])
    assert extras[-1] == {"retries": 1, "span": ("a",)}


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ((), "at least one name"),
        ((1,), "is a text, not 1"),
        (("",), "is a text"),
        (("\ud800",), "cannot be sent"),
        (("x",) * 101, "too deeply: 101 names"),
    ],
)
def test_a_name_that_makes_no_sense_is_refused_before_the_block(tags: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said), span(*tags):
        raise AssertionError("the block was entered")


async def test_tasks_of_trio_have_their_own_spans() -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
        get_task_stream(client) as stream,
    ):
        with span("here"):
            future = client.submit(increment, 1)
        await future
        await client.submit(increment, 2)
    assert sorted(by_key(stream.data).values()) == [(), ("here",)]
