"""Calls of graphs: what the function gets, whichever pickler they need."""

import functools
import operator
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Never

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.kit import in_main
from trio_dask.client.futures import Future
from trio_dask.errors import SerializationError
from trio_dask.protocol.pickled_calls import COMPUTED, PickledCall
from trio_dask.protocol.pickled_nodes import NODE, RESULT, VALUE, GivenArguments, NodePickler
from trio_dask.protocol.pickling import load_call

LARGE = 1 << 16


class Node:
    """Called with the results by key, as those of dask are."""

    def __init__(self, function: Callable[..., Any], *keys: Any) -> None:
        self.function = function
        self.keys = keys

    def __call__(self, results: Mapping[Any, Any]) -> Any:
        return self.function(*[results[key] for key in self.keys])


def future(key: str) -> Future:
    """One that belongs to no client."""
    made = Future.__new__(Future)
    made.key = key
    return made


def pickled(given: GivenArguments) -> PickledCall:
    return NodePickler({}).pickle_call(given)


def computed(given: GivenArguments, results: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function gets, at the worker."""
    call = pickled(given)
    assert call.call[0] == COMPUTED
    args, kwargs = load_call(call.call, dict(call.blobs), results)
    assert not kwargs
    return GivenArguments(*args).compute(results)


def test_values_results_and_nodes_stand_where_they_belong() -> None:
    given = GivenArguments(
        (1, 1, Node(operator.sub, ("b", 0), "a")),
        {"x": 0, "y": "text", "z": Node(operator.neg, "a")},
        bytes([VALUE, RESULT, NODE, RESULT, VALUE, NODE]),
        ("a", ("b", 0)),
    )
    assert computed(given, {"a": 10, "('b', 0)": 100}) == ((1, 100, 90), {"x": 10, "y": "text", "z": -10})


@given(st.lists(st.tuples(st.sampled_from([VALUE, RESULT, NODE]), st.integers(0, 3)), max_size=6), st.integers(0, 6))
def test_any_mixture_of_arguments_is_computed(choices: list[tuple[int, int]], positional: int) -> None:
    keys = tuple("abcd")
    results = {key: number * 10 for number, key in enumerate(keys)}
    made: list[Any] = [Node(abs, keys[number]) if kind == NODE else number for kind, number in choices]
    expected = [number if kind == VALUE else number * 10 for kind, number in choices]
    positional = min(positional, len(made))
    names = [f"n{number}" for number in range(len(made) - positional)]
    given = GivenArguments(
        tuple(made[:positional]),
        dict(zip(names, made[positional:], strict=True)),
        bytes([kind for kind, _ in choices]),
        keys,
    )
    assert computed(given, results) == (
        tuple(expected[:positional]),
        dict(zip(names, expected[positional:], strict=True)),
    )


def test_a_future_in_a_value_is_a_dependency_after_those_of_the_graph() -> None:
    given = GivenArguments((Node(operator.neg, "a"), [future("f")]), {}, bytes([NODE, VALUE]), ("a",))
    assert b"trio_dask.client.futures" in pickle.dumps(future("f"))  # so it is found where no hook sees it
    assert pickled(given).dependencies == ("f",)
    assert computed(given, {"a": 1, "f": 5}) == ((-1, [5]), {})


def test_a_node_may_hold_a_future() -> None:
    given = GivenArguments((Node(functools.partial(operator.add, future("f")), "a"),), {}, bytes([NODE]), ("a",))
    assert pickled(given).dependencies == ("f",)
    assert computed(given, {"a": 1, "f": 5}) == ((6,), {})


def test_what_the_plain_pickler_must_not_pickle_goes_to_the_other_one() -> None:
    defined = in_main("class Own:\n    pass\ndef double(x):\n    return 2 * x\n")
    large = np.ones(LARGE)
    for value in (defined["double"], defined["Own"], large, bytes(2 * LARGE), lambda: 1):
        call = pickled(GivenArguments((value,), {}, bytes([VALUE]), ()))
        assert call.call[1] != pickle.PROTO[0], value
    ((double,), _) = computed(GivenArguments((defined["double"],), {}, bytes([VALUE]), ()), {})
    assert double(4) == 8
    call = pickled(GivenArguments((large, 1), {}, bytes([VALUE, VALUE]), ()))
    assert len(call.call) < 1000
    assert len(call.blobs) == 1
    (((again, _), _)) = computed(GivenArguments((large, 1), {}, bytes([VALUE, VALUE]), ()), {})
    assert again.tolist() == large.tolist()


def test_small_arrays_travel_in_the_call() -> None:
    call = pickled(GivenArguments((np.arange(10), np.arange(20)[::2]), {}, bytes([VALUE, VALUE]), ()))
    assert call.call[1:2] == pickle.PROTO
    assert not call.blobs


def test_each_task_has_its_own_copy_of_a_value() -> None:
    call = pickled(GivenArguments(([1],), {}, bytes([VALUE]), ()))
    first, second = (GivenArguments(*load_call(call.call, {}, {})[0]).compute({})[0][0] for _ in range(2))
    first.append(2)
    assert second == [1]


def test_what_cannot_be_pickled_is_named() -> None:
    class Stubborn:
        def __reduce__(self) -> Never:
            raise TypeError("I stay here")

    with pytest.raises(SerializationError, match="I stay here"):
        pickled(GivenArguments(([Stubborn()],), {}, bytes([VALUE]), ()))


def test_what_a_node_raises_is_raised_where_it_is_computed() -> None:
    given = GivenArguments((Node(operator.truediv, "a", "b"),), {}, bytes([NODE]), ("a", "b"))
    with pytest.raises(ZeroDivisionError):
        computed(given, {"a": 1, "b": 0})
