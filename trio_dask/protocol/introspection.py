"""The parts of objects, classes and functions, with types for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE

kind_of: Callable[[Any], type[Any]] = type


def attributes_of(thing: Any) -> dict[str, Any]:
    """The attributes of an object itself; of a class a copy, since other threads may bind more meanwhile."""
    found = cast("dict[str, Any]", vars(thing))
    return dict(found) if issubclass(kind_of(thing), type) else found


def cells_of(function: FunctionType, unbound: object) -> list[Any]:
    """What the variables of enclosing functions hold; `unbound` stands for one that is not bound yet."""
    cells: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:
            cells.append(unbound)
    return cells


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name; False for a builtin that does not tell its parameters."""
    import inspect  # slow to load, and rarely needed

    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def is_made_by_statement(cls: type[Any]) -> bool:
    """Whether a class statement made this class; else it is a type of the interpreter or of an extension."""
    return bool(cls.__flags__ & _HEAP_TYPE)
