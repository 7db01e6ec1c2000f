"""Settings as JSON, for a child process, and back: tuples, infinities, nested records and all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from trio_dask.errors import UsageError

Settings = TypeVar("Settings", bound=NamedTuple)
INFINITIES = ("inf", "-inf")


def to_json(settings: NamedTuple) -> dict[str, Any]:
    """The settings as JSON can carry them: infinity as `"inf"`, a tuple as a list, a record as an object.

    Raises:
      UsageError: a value is of a type that no setting can have; the message names the setting.
    """
    return {name: _to_json(value, name) for name, value in settings._asdict().items()}


def _to_json(value: Any, name: str) -> Any:
    kind = value.__class__  # unlike type(value), no type checker narrows the value by it
    if value is None or issubclass(kind, bool | int | str):
        return value
    if issubclass(kind, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(kind, "_fields"):
        return to_json(value)
    if kind is tuple:
        return [_to_json(item, name) for item in value]
    if issubclass(kind, Mapping):
        return {key: _to_json(item, name) for key, item in value.items()}
    raise UsageError(f"{name} cannot be {value!r:.60}")


def from_json(kind: type[Settings], content: object) -> Settings:
    """The settings from which `to_json` made `content`.

    Raises:
      UsageError: a setting is unknown or missing, or has a wrong value; the message names the setting.
    """
    settings: Settings = _from_json(kind, content, kind.__name__)
    return settings


def _from_json(kind: Any, value: Any, name: str) -> Any:
    origin, arguments, given = get_origin(kind), get_args(kind), value.__class__
    if origin is Annotated:
        return _from_json(arguments[0], value, name)
    if origin is UnionType:  # of a kind and None
        return None if value is None else _from_json(arguments[0], value, name)
    if origin is Literal:
        if value in arguments:
            return value
    elif kind is float:
        if value in INFINITIES:
            return float(value)
        if given in (int, float) and value == value:
            return value
    elif origin is tuple and given is list:
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_from_json(kinds[at], item, f"{name}[{at}]") for at, item in enumerate(value))
    elif origin is Mapping and given is dict:
        return {key: _from_json(arguments[1], item, f"{name}[{key!a:.60}]") for key, item in value.items()}
    elif hasattr(kind, "_fields") and given is dict:
        return _record(kind, value, name)
    elif given is kind:
        return value
    raise UsageError(f"{name} is {value!a:.60}, not {kind if arguments else kind.__name__}")


def _record(kind: Any, fields: Mapping[str, Any], name: str) -> Any:
    kinds: Mapping[str, Any] = kind.__annotations__
    for field in fields:
        if field not in kinds:
            raise UsageError(f"{name} has no setting {field!a:.60}")
    for field in kinds:
        if field not in fields and field not in kind._field_defaults:
            raise UsageError(f"{name}.{field} is missing")
    return kind(**{field: _from_json(kinds[field], value, f"{name}.{field}") for field, value in fields.items()})
