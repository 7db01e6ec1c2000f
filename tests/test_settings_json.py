import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.config import ClientSettings, NannySettings, SchedulerSettings, WorkerSettings
from trio_dask.errors import UsageError
from trio_dask.settings_json import from_json, to_json

KINDS = [SchedulerSettings, WorkerSettings, NannySettings, ClientSettings]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """All values of a setting of this kind."""
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is Annotated:
            return values(arguments[0])
        case origin if origin is UnionType:
            return st.none() | values(arguments[0])
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is tuple and arguments[-1] is ...:
            return st.lists(values(arguments[0])).map(tuple)
        case origin if origin is tuple:
            return st.tuples(*map(values, arguments))
        case origin if origin is Mapping:
            return st.dictionaries(values(arguments[0]), values(arguments[1]))
    if hasattr(kind, "_fields"):
        return st.builds(kind, **{name: values(each) for name, each in kind.__annotations__.items()})
    anything = {
        str: st.text(st.characters()),
        float: st.floats(allow_nan=False),
        int: st.integers(),
        bool: st.booleans(),
    }
    return anything[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_settings_of_any_value_come_back_from_json_as_they_were(kind: type[Any], data: st.DataObject) -> None:
    settings = data.draw(values(kind))
    text = json.dumps(to_json(settings), allow_nan=False)
    found = from_json(kind, json.loads(text))
    assert found == settings
    assert repr(found) == repr(settings)  # a tuple is not a list, and 1 is not True


def test_settings_that_json_leaves_out_have_their_defaults() -> None:
    assert from_json(NannySettings, {"worker": {}}) == NannySettings(worker=WorkerSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nthreads": "2"}, "WorkerSettings.nthreads is '2', not int"),
        ({"nthreads": True}, "WorkerSettings.nthreads is True, not int"),
        ({"nthreads": None}, "WorkerSettings.nthreads is None, not int"),
        ({"reconnect": 1}, "WorkerSettings.reconnect is 1, not bool"),
        ({"port_range": [1, 2, 3]}, r"WorkerSettings.port_range is \[1, 2, 3\], not tuple\[int, int\]"),
        ({"port_range": [1, "2"]}, r"WorkerSettings.port_range\[1\] is '2', not int"),
        ({"lifetime_s": math.nan}, "WorkerSettings.lifetime_s is nan, not float"),
        ({"lifetime_s": "soon"}, "WorkerSettings.lifetime_s is 'soon', not float"),
        ({"resources": {"GPU": []}}, r"WorkerSettings.resources\['GPU'\] is \[\], not float"),
        ({"resources": []}, r"WorkerSettings.resources is \[\], not .*Mapping\[str, float\]"),
        (
            {"on_scheduler_stop": "go"},
            r"WorkerSettings.on_scheduler_stop is 'go', not typing.Literal\['leave', 'wait'\]",
        ),
        ({"name": "x" * 1000 + "\n", "max_tasks": "y" * 1000}, "WorkerSettings.max_tasks is 'y{59}, not int"),
        ({"colour": 1}, "WorkerSettings has no setting 'colour'"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_the_setting(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        from_json(WorkerSettings, {**to_json(WorkerSettings()), **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "NannySettings.worker is missing"),
        ({"worker": {"nthreads": 1.5}}, "NannySettings.worker.nthreads is 1.5, not int"),
        ([], r"NannySettings is \[\], not NannySettings"),
    ],
)
def test_a_wrong_record_is_refused_by_its_name(content: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        from_json(NannySettings, content)


def test_a_value_that_json_cannot_carry_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^local_directory cannot be PosixPath\("):
        to_json(WorkerSettings(local_directory=cast("str", tmp_path)))
