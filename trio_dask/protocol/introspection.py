"""`type` and `vars` in words that type checkers accept for any object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

__all__ = ["attributes_of", "kind_of"]

kind_of: Callable[[Any], type[Any]] = type


def attributes_of(thing: Any) -> dict[str, Any]:
    """The attributes of an object itself; those of a class may only be read."""
    return cast("dict[str, Any]", vars(thing))
