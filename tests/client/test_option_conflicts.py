"""An option of `submit` for which the function has a parameter of its own is refused, never swallowed."""

import inspect
import operator
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, Never

import pytest

from tests.client.cluster import MiniCluster, open_async_client
from trio_dask import AsyncClient, Client
from trio_dask.errors import UsageError

OPTIONS = {
    "key": "k",
    "pure": True,
    "workers": None,
    "resources": None,
    "retries": None,
    "priority": 0,
    "fifo_timeout": None,
    "allow_other_workers": False,
    "actor": False,
    "actors": False,
    "time_limit": None,
}


def solve(x: int, time_limit: object = None) -> tuple[int, object]:
    return x, time_limit


def taking(name: str) -> Callable[..., Any]:
    """A function with a parameter of this name."""
    namespace: dict[str, Any] = {}
    exec(f"def function(x, *, {name}=None): return x", namespace)
    function: Callable[..., Any] = namespace["function"]
    return function


@pytest.mark.parametrize(("name", "default"), OPTIONS.items())
def test_every_option_of_submit_is_refused_even_with_the_value_of_its_default(
    client: Client, name: str, default: Any
) -> None:
    with pytest.raises(UsageError, match=rf"{name}=\S+ could be meant for function\(\) or for submit\(\)"):
        client.submit(taking(name), 1, **{name: default})
    assert client.submit(taking("other"), 1, **{name: default}).result() == 1


@pytest.mark.parametrize(("name", "default"), [*OPTIONS.items(), ("batch_size", None)])
def test_every_option_of_map_is_refused_even_with_the_value_of_its_default(
    client: Client, name: str, default: Any
) -> None:
    with pytest.raises(UsageError, match=rf"{name}=\S+ could be meant for function\(\) or for map\(\)"):
        client.map(taking(name), [1], **{name: default})
    assert client.gather(client.map(taking("other"), [1], **{name: default})) == [1]


def test_no_option_is_forgotten() -> None:
    for method, more in ((Client.submit, set()), (Client.map, {"batch_size"})):
        parameters = inspect.signature(method).parameters.values()
        assert {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} == OPTIONS.keys() | more


def test_signatures_show_the_true_defaults() -> None:
    parameters = inspect.signature(Client.submit).parameters
    assert {name: parameters[name].default for name in OPTIONS} == {**OPTIONS, "key": None}
    assert str(Client.submit.__doc__).startswith("Run `func")


def test_the_sentence_offers_what_works(client: Client) -> None:
    with pytest.raises(UsageError) as caught:
        client.submit(solve, 1, time_limit=60)
    assert str(caught.value) == (
        "time_limit=60 could be meant for solve() or for submit(): both take 'time_limit'. For solve(): "
        "submit(functools.partial(solve, time_limit=60), ...). For submit(): bind the argument of solve() like that, "
        "and also give time_limit=60"
    )
    assert client.submit(partial(solve, time_limit=60), 1).result() == (1, 60)
    assert client.submit(partial(solve, time_limit=60), 1, time_limit=90).result() == (1, 60)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class Solver:
    def __init__(self, time_limit: object = None) -> None:
        self.time_limit = time_limit

    def __call__(self, x: int, time_limit: object = None) -> int:
        return x

    def method(self, x: int, time_limit: object = None) -> int:
        return x


@pytest.mark.parametrize(
    "function",
    [
        solve,
        decorated(solve),
        lru_cache(solve),
        partial(solve, 1),
        Solver,
        Solver(),
        Solver().method,
        lambda time_limit: 1,
    ],
)
def test_all_kinds_of_functions_are_looked_into(client: Client, function: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="could be meant for"):
        client.submit(function, time_limit=60)


def anything(x: int, **kwargs: Any) -> tuple[int, dict[str, Any]]:
    return x, kwargs


def positional(time_limit: object, /, x: int = 0) -> tuple[object, int]:
    return time_limit, x


def keyed(key: str, value: int) -> tuple[str, int]:
    return key, value


class Strange:
    """Tells no signature."""

    @property
    def __signature__(self) -> Never:
        raise LookupError("none")

    def __call__(self, x: int) -> int:
        return x


def test_what_can_only_be_meant_for_submit_is_taken_for_it(client: Client) -> None:
    assert client.submit(anything, 1, time_limit=60).result() == (1, {})
    assert client.submit(positional, 1, time_limit=60).result() == (1, 0)
    assert client.submit(keyed, "a", 2, key="my-key").key == "my-key"  # its own `key` is given already
    assert client.gather(client.map(keyed, "ab", [1, 2], key=["x", "y"])) == [("a", 1), ("b", 2)]
    assert client.submit(max, 1, 2, key="largest").key == "largest"
    assert client.submit(Strange(), 1, key="strange").result() == 1


def test_a_function_is_no_name_for_a_task(client: Client) -> None:
    calls: tuple[Callable[..., object], ...] = (client.submit, client.map)
    for call in calls:
        for function in (max, min, sorted):
            with pytest.raises(
                UsageError, match=rf"key= must be a name for the task.*partial\({function.__name__}, key=\.\.\.\)"
            ):
                call(function, ["a", "bcd"], key=len)
    with pytest.raises(UsageError, match="could be meant for sorted"):
        client.submit(sorted, ["a"], key="name")
    assert client.submit(partial(max, key=len), ["a", "bcd"], key="longest").result() == "bcd"


def test_functions_may_have_parameters_called_func_and_self(client: Client) -> None:
    def apply(self: int, func: Callable[..., Any], function: object) -> object:
        return func(self, function)

    assert client.submit(apply, self=1, func=operator.add, function=2).result() == 3
    assert client.gather(client.map(apply, [1, 2], func=operator.add, function=2)) == [3, 4]


def work(workers: int = 3) -> int:
    return workers


def test_run_is_as_careful(client: Client) -> None:
    with pytest.raises(UsageError, match=r"workers=3 could be meant for work\(\) or for run\(\)"):
        client.run(work, workers=3)
    found = client.run(partial(work, workers=4))
    assert found is not None
    assert list(found.values()) == [4]


async def test_the_client_for_trio_is_as_careful() -> None:
    async with open_async_client(MiniCluster()) as client:
        with pytest.raises(UsageError, match="could be meant for"):
            client.submit(solve, 1, time_limit=None)
        with pytest.raises(UsageError, match="could be meant for"):
            client.map(solve, [1], time_limit=None)
        with pytest.raises(UsageError, match="could be meant for"):
            await client.run(work, workers=3)
        assert await client.submit(partial(solve, time_limit=60), 1) == (1, 60)
    assert "submit" not in vars(Client) | vars(AsyncClient)  # both have that of `BaseClient`
