"""Nonsense in place of an argument is refused where the user stands, in one line that says what and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.client.cluster import MiniCluster, open_async_client
from trio_dask import Client, as_completed, fire_and_forget, wait
from trio_dask.errors import UsageError

NO_AMOUNT = "must be 0 or more, such as 1, not"
OPTIONS = [
    ({"resources": {"GPU": "x"}}, rf"resources\['GPU'\] {NO_AMOUNT} 'x'"),
    ({"resources": {"GPU": None}}, rf"resources\['GPU'\] {NO_AMOUNT} None"),
    ({"resources": {"GPU": float("nan")}}, rf"resources\['GPU'\] {NO_AMOUNT} nan"),
    ({"retries": [1]}, r"retries must be a whole number from 0 to \d+, not \[1\]"),
    ({"retries": 1.5}, r"retries must be a whole number from 0 to \d+, not 1.5"),
    ({"retries": float("nan")}, r"retries must be a whole number from 0 to \d+, not nan"),
    ({"workers": 5.5}, r"workers is a name, an address or a host, or a list such as \[\"alice\"\], not 5.5"),
    ({"time_limit": []}, r"a length of time is a number of seconds or a text such as \"5s\", not \[\]"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_make_no_sense(client: Client, options: dict[str, Any], message: str) -> None:
    for ask in (lambda: client.submit(abs, 1, **options), lambda: client.map(abs, [1], **options)):
        with pytest.raises(UsageError, match=f"^{message}$"):
            ask()


def test_what_map_cannot_map(client: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^map\(\) calls the function on each element .*, and 3 is none; .* submit\(\)"
    ):
        client.map(pow, 3)
    with pytest.raises(TypeError, match=r"<Future: .* is none"):
        client.map(abs, client.submit(abs, 1))
    with pytest.raises(UsageError, match="key is the beginning of all keys, a text, or a list of keys, not 3"):
        client.map(abs, [1], key=3)
    with pytest.raises(UsageError, match=r"batch_size must be a whole number from 0 to \d+, not \[1\]"):
        client.map(abs, [1], batch_size=[1])
    assert client.map(abs, []) == []


@pytest.mark.parametrize("nonsense", [5, "key", None, [5], {"a": "key"}, ["key", ["key"]]])
def test_what_is_about_futures_is_not_silent_where_there_are_none(client: Client, nonsense: Any) -> None:
    takers: dict[str, Callable[[Any], object]] = {
        "wait": wait,
        "as_completed": as_completed,
        "cancel": client.cancel,
        "retry": client.retry,
        "detach": client.detach,
        "fire_and_forget": fire_and_forget,
    }
    for name, ask in takers.items():
        if (name, nonsense) != ("as_completed", None):
            with pytest.raises(
                TypeError, match=rf"^{name}\(\) takes futures, alone or in lists, tuples, sets and dicts"
            ):
                ask(nonsense)


@pytest.mark.parametrize("nothing", [[], (), {}, set(), [[], {"a": ()}], range(0), iter(())])
def test_an_empty_collection_is_one_of_futures(client: Client, nothing: Any) -> None:
    assert wait(nothing) == (set(), set())
    assert list(as_completed(nothing)) == []
    client.cancel(nothing)


def test_among_futures_other_values_may_stand(client: Client) -> None:
    future = client.submit(abs, -1)
    assert wait([future, 5, None]).done == {future}


@pytest.mark.parametrize("nonsense", [5, "key", None, {"a": 5}])
def test_every_item_of_as_completed_is_or_has_a_future(client: Client, nonsense: Any) -> None:
    future = client.submit(abs, -1)
    with pytest.raises(TypeError, match=r"^as_completed\(\) takes futures.*not "):
        as_completed([future, nonsense])
    assert list(as_completed([future, [], [future]])) == [future, future]


def test_a_key_that_is_nowhere(client: Any) -> None:
    known = client.submit(abs, -7, key="known")
    assert client.get({"a": 1}, ["a", "known"]) == [1, known.result()]
    with pytest.raises(KeyError, match=r"'missing' is neither a key of the graph .'a', 'b'. nor of a task at the"):
        client.get({"a": 1, "b": (abs, -1)}, ["b", "missing"])
    with pytest.raises(KeyError, match=r"'0', '1', '2', '3', '4', \.\.\."):
        client.get({str(number): number for number in range(100)}, "missing")
    with pytest.raises(UsageError, match=r"a graph is a dict from keys to tasks, not \[\]"):
        client.get([], "a")
    with pytest.raises(UsageError, match=r"the keys to get are keys of the graph, or lists of them, not \{\}"):
        client.get({"a": 1}, {})


async def test_a_key_that_is_nowhere_for_trio() -> None:
    async with open_async_client(MiniCluster()) as client:
        with pytest.raises(KeyError, match="'missing' is neither"):
            await client.get({"a": 1}, "missing")


def test_times_that_are_none(client: Client) -> None:
    future = client.submit(abs, -1)
    wrong: Any = []
    with pytest.raises(UsageError, match="a length of time is"):
        wait(future, timeout=wrong)
    with pytest.raises(UsageError, match="a length of time is"):
        Client("127.0.0.1:1", timeout=wrong)


def test_questions_about_nonsense(client: Any) -> None:
    with pytest.raises(UsageError, match="n_workers must be a whole number from 1"):
        client.wait_for_workers([1])
    with pytest.raises(TypeError, match="expected futures or keys, or a list of them, not 5"):
        client.who_has(5)
    with pytest.raises(TypeError, match=r"run\(\) takes a function and its arguments, not 5"):
        client.run(5)


def test_the_name_of_a_client_is_a_text() -> None:
    with pytest.raises(UsageError, match="the name of a client is a text, not 5"):
        Client(name=5, n_workers=0, processes=False)  # type: ignore[arg-type] # what is refused
