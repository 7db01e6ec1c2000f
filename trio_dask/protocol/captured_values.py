"""What definitions by value captured when they were pickled, and whether it has changed since.

A pickle by value copies what it reaches, which is of three kinds:

- *trusted*: what travels by reference. The other side imports its own;
- *watched*: what can change only by a new binding: immutable values, functions, classes, modules. A `Watch` checks the
  bindings again, which takes a microsecond;
- *state*: everything else. A list can change in place, and a function can bind a global or an outer variable. A
  definition that captured state, or can keep some, belongs to one call: each submit pickles it again, and each task
  loads its own.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from operator import attrgetter
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Annotated, Any

from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.introspection import attributes_of, cells_of, is_made_by_statement, kind_of
from trio_dask.protocol.pickled_enums import MADE_WITH_MEMBERS, aliases_of, members_of
from trio_dask.protocol.picklers import is_definition, travels_by_value
from trio_dask.protocol.rebuilt_classes import MADE_BY_PYTHON


class CarriesState(Exception):
    """A definition by value has captured something that can change in place, or can keep state between calls."""


_IMMUTABLE = frozenset(
    {
        bool, bytes, complex, float, int, object, range, str, type(None), type(...), type(NotImplemented),
        ClassMethodDescriptorType, CodeType, GenericAlias, GetSetDescriptorType, MemberDescriptorType,
        MethodDescriptorType, UnionType, WrapperDescriptorType,
    }
)  # fmt: skip
_IMMUTABLE_BY_NAME = frozenset(
    {
        "_collections._tuplegetter", "collections._tuplegetter",
        "dataclasses._HAS_DEFAULT_FACTORY_CLASS", "dataclasses._MISSING_TYPE",
        "datetime.date", "datetime.timedelta", "datetime.timezone",
        "decimal.Decimal", "fractions.Fraction", "ipaddress.IPv4Address", "ipaddress.IPv6Address",
        "logging.Logger", "logging.RootLogger", "numpy.ufunc", "operator.attrgetter", "operator.itemgetter",
        "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath", "pathlib._local.PurePosixPath",
        "re.Pattern", "uuid.UUID", "zoneinfo.ZoneInfo",
    }
)  # fmt: skip
"""A logger is identified by its name. Names of types save their import."""
_WRAPPERS: frozenset[type[Any]] = frozenset({cached_property, classmethod, property, staticmethod})
"""Immutable themselves; the pickler sees functions in them, other callables may carry state."""
_WRAPPED = ("__func__", "fget", "fset", "fdel", "func")
_WATCHED_TABLES = frozenset({"__annotations__", "__dataclass_fields__", "__kwdefaults__", "_field_defaults"})
_FIXED_WITH_THE_CLASS = frozenset(
    {"__classdictcell__", "__dataclass_params__", "__protocol_attrs__", "__non_callable_proto_members__", "__slots__"}
)
_CLASS_MAKERS = frozenset({"collections", "dataclasses", "enum", "reprlib", "typing"})
"""Modules whose functions only cache results in the classes that they make."""
_OF_THE_IMPORT = frozenset({"__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__"})
"""Attributes of modules that tell their origin."""
_TAKE_THE_CLASS = frozenset({"__new__", "__init_subclass__", "__class_getitem__"})
_ABSENT = object()
_ANNOTATED: type[Any] = kind_of(Annotated[int, ""])
_CONTAINERS: frozenset[type[Any]] = frozenset({tuple, frozenset, slice, _ANNOTATED})
"""Immutable themselves; their items may not be."""


def is_immutable(value: Any) -> bool:
    """Whether `value` can change only by a new binding; functions, classes and modules are watched by themselves."""
    kind = kind_of(value)
    if kind in _CONTAINERS:
        return all(map(_is_immutable_part, _parts_of(value)))
    return _is_immutable_part(value)


def _is_immutable_part(value: Any) -> bool:
    kind = kind_of(value)
    if kind in _IMMUTABLE or kind in _CONTAINERS or kind in (FunctionType, ModuleType) or issubclass(kind, type):
        return True
    if kind.__module__ == "numpy" and (numpy := sys.modules.get("numpy")) and issubclass(kind, numpy.generic):
        return not issubclass(kind, numpy.void)  # it has fields
    if kind.__module__ == "numpy.dtypes":
        return not value.fields
    if kind is BuiltinFunctionType:
        return is_immutable(value.__self__)  # `math.sqrt`, but not `some_list.append`
    if kind.__module__ == "typing" or issubclass(kind, enum.Enum):
        return True
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name == "datetime.datetime" or name == "datetime.time":
        return is_immutable(value.tzinfo)
    return name in _IMMUTABLE_BY_NAME or (
        not travels_by_value(value) and is_definition(value)  # a cached function by reference
    )


# ------------------------------------------------------------------------------------------------- what is bound


def _table(table: Any) -> list[Any]:
    return [*table, *table.values()] if table else []


_parts_of_function = attrgetter("__code__", "__defaults__", "__name__", "__qualname__", "__module__", "__doc__")
_FIELD_PARTS = tuple(name for name in dataclasses.Field.__slots__ if name not in ("metadata", "_field_type"))


def _bindings_of_function(function: FunctionType) -> list[Any]:
    bound: list[Any] = [*_parts_of_function(function), *cells_of(function, _ABSENT)]
    for table in (function.__kwdefaults__, function.__annotations__, function.__dict__):
        if table:
            bound += _table(table)
    return bound


def _bindings_of_names(namespace: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [namespace.get(name, _ABSENT) for name in names]


def _bindings_of_class(cls: type[Any]) -> list[Any]:
    bound: list[Any] = [cls.__name__, cls.__qualname__, kind_of(cls), *cls.__bases__]
    own = attributes_of(cls)
    for name, value in own.items():
        if name not in MADE_BY_PYTHON:
            bound += (name, value)
        if name in _WATCHED_TABLES and type(value) is dict:
            bound += _table(value)
    fields: dict[str, Any] = own.get("__dataclass_fields__", {})
    for field in fields.values():
        bound += [getattr(field, name) for name in _FIELD_PARTS if hasattr(field, name)]
    if issubclass(cls, enum.Enum):
        bound += cls.__members__.values()
        for attributes in members_of(cls).values():
            bound += _table(attributes)
        bound += [part for alias in aliases_of(cls) for part in alias]
    if isinstance(cls, abc.ABCMeta):
        bound.append(_registrations())
    return bound


_last_token: object = None


def _registrations() -> object:
    """The same object as long as no class has been registered with an abstract one."""
    global _last_token
    token = abc.get_cache_token()
    if token != _last_token:
        _last_token = token
    return _last_token


def own_attributes(module: ModuleType) -> dict[str, Any]:
    """What the code of a module has bound in it."""
    return {name: value for name, value in list(vars(module).items()) if name not in _OF_THE_IMPORT}


def _bindings_of_module(module: ModuleType) -> list[Any]:
    return _table(own_attributes(module))


# ------------------------------------------------------------------------------------------------- what is state


def _function_keeps_state(function: FunctionType, captured: Iterable[Any]) -> bool:
    """Whether a call can leave something in the definitions that it reaches.

    It can bind variables with immutable values, and attributes of functions and classes.
    """
    use = code_use(function.__code__)
    if use.keeps_state or use.outer:
        return True
    return use.binds_attributes and (use.finds_definitions or any(map(_contains_definitions, captured)))


def _contains_definitions(value: Any) -> bool:
    """Whether a value is, or contains, something by value whose attributes a call could bind."""
    return any(travels_by_value(part) or hasattr(part, "__supertype__") for part in _parts_of(value))


def _parts_of(value: Any) -> Iterator[Any]:
    """A value and the parts of immutable containers, each once."""
    seen: set[int] = set()
    to_come = [value]
    while to_come:
        part = to_come.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        kind = kind_of(part)
        if kind is tuple or kind is frozenset:
            to_come += part
        elif kind is slice:
            to_come += (part.start, part.stop, part.step)
        elif kind is _ANNOTATED:
            to_come += (part.__origin__, *part.__metadata__)


def _captured_by(function: FunctionType) -> list[Any]:
    use = code_use(function.__code__)
    cells = dict(zip(function.__code__.co_freevars, cells_of(function, _ABSENT), strict=True))
    if "super" in use.globals:
        cells.pop("__class__", None)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return [*cells.values(), *defaults, *_bindings_of_names(function.__globals__, use.globals)]


def stands_alone(function: FunctionType) -> bool:
    """Whether a function can carry no state and captured nothing besides defaults that reach nothing by value.

    Another function of the same call may bind a global that it reads, even an immutable one.
    """
    use = code_use(function.__code__)
    if function.__closure__ or any(name in function.__globals__ for name in use.globals):
        return False
    captured = _captured_by(function)
    return (
        all(map(is_immutable, captured))
        and not any(travels_by_value(part) for value in captured for part in _parts_of(value))
        and not _function_keeps_state(function, captured)
    )


def _attribute_is_state(cls: type[Any], name: str, value: Any) -> bool:
    kind = kind_of(value)
    if name in MADE_BY_PYTHON:
        return False
    if kind in _WRAPPERS:
        wrapped = [getattr(value, part) for part in _WRAPPED if hasattr(value, part)]
        return not all(map(is_immutable, wrapped)) or _is_given_the_class(cls, name, value)
    if kind is FunctionType:
        return _is_given_the_class(cls, name, value)
    if issubclass(cls, enum.Enum) and (name in MADE_WITH_MEMBERS or issubclass(kind, enum.Enum)):
        return False
    if name in _WATCHED_TABLES and kind is dict:
        return not all(map(_is_table_entry, value.values()))
    return name not in _FIXED_WITH_THE_CLASS and not is_immutable(value)


def _is_table_entry(value: Any) -> bool:
    if kind_of(value) is dataclasses.Field:
        return is_immutable(value.default) and not value.metadata
    return is_immutable(value)


def _is_of_class_maker(function: FunctionType) -> bool:
    return function.__globals__.get("__name__") in _CLASS_MAKERS


def _is_given_the_class(cls: type[Any], name: str, value: Any) -> bool:
    """Whether this method takes its class as an argument, and binds attributes."""
    if kind_of(value) is not classmethod and name not in _TAKE_THE_CLASS and not issubclass(cls, type):
        return False
    function: Any = getattr(value, "__func__", value)
    return (
        type(function) is FunctionType
        and travels_by_value(function)
        and not _is_of_class_maker(function)
        and code_use(function.__code__).binds_attributes
    )


class Watch:
    """What definitions referred to while they were pickled, and how to check it again."""

    __slots__ = ("_readers", "_seen")

    def __init__(self) -> None:
        self._readers: list[Callable[[], list[Any]]] = []
        self._seen: list[Any] = []

    def add(self, thing: Any) -> None:
        """Watch a function, class or module that is pickled by value. Raises `CarriesState`."""
        kind = kind_of(thing)
        if kind is FunctionType:
            self._add_function(thing)
        elif kind is ModuleType:
            if not all(map(is_immutable, self._add(partial(_bindings_of_module, thing)))):
                raise CarriesState
        elif issubclass(kind, type):
            self._add_class(thing)
        else:
            raise CarriesState  # the cache of a cached function

    def _add_function(self, function: FunctionType) -> None:
        names = code_use(function.__code__).globals
        bound = self._add(partial(_bindings_of_function, function))
        if names:
            bound += self._add(partial(_bindings_of_names, function.__globals__, names))
        if _is_of_class_maker(function):
            return
        are_immutable = all(value is _ABSENT or is_immutable(value) for value in bound)
        if not are_immutable or _function_keeps_state(function, _captured_by(function)):
            raise CarriesState

    def _add_class(self, cls: type[Any]) -> None:
        if not is_made_by_statement(cls):
            return  # a type of the interpreter that no module offers by its name
        self._add(partial(_bindings_of_class, cls))
        if any(_attribute_is_state(cls, name, value) for name, value in attributes_of(cls).items()):
            raise CarriesState
        if issubclass(cls, enum.Enum) and not all(
            is_immutable(value) for attributes in members_of(cls).values() for value in attributes.values()
        ):
            raise CarriesState

    def _add(self, read: Callable[[], list[Any]]) -> list[Any]:
        bound = read()
        self._readers.append(read)
        self._seen += bound
        return bound

    def holds(self) -> bool:
        """Whether everything is as it was."""
        now: list[Any] = []
        for read in self._readers:
            now += read()
        return len(now) == len(self._seen) and all(map(operator.is_, now, self._seen))
