"""What definitions by value captured when they were pickled, and whether it has changed since.

A pickle by value copies what it reaches, which is of three kinds:

- *trusted*: what travels by reference. The other side imports its own;
- *watched*: what can change only by a new binding: immutable values, functions, classes, modules. A `Watch` checks the
  bindings again, which takes a microsecond;
- *state*: everything else. A list can change in place, and a function can bind a global or an outer variable. A
  definition that captured state, or can keep some, belongs to one call: it is pickled anew for each submit, and loaded
  anew for each task.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
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
    """A definition by value has captured something that can change in place, or can keep state from call to call."""


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
_NUMPY_SCALARS = (
    "bool",
    "bytes_",
    "clongdouble",
    "complex",
    "datetime64",
    "float",
    "int",
    "longdouble",
    "str_",
    "timedelta64",
    "uint",
)
"""Prefixes of the names of NumPy's immutable scalar types; `void`, which has fields, is not one."""

_WRAPPERS: frozenset[type[Any]] = frozenset({cached_property, classmethod, property, staticmethod})
"""Immutable themselves; the pickler sees functions in them, other callables may carry state."""
_WRAPPED = ("__func__", "fget", "fset", "fdel", "func")
_WATCHED_TABLES = frozenset({"__annotations__", "__dataclass_fields__", "__kwdefaults__", "_field_defaults"})
_FIXED_WITH_THE_CLASS = frozenset(
    {"__classdictcell__", "__dataclass_params__", "__protocol_attrs__", "__non_callable_proto_members__", "__slots__"}
)
_CLASS_MAKERS = frozenset({"collections", "dataclasses", "enum", "reprlib", "typing"})
"""Modules whose functions only cache results in the classes that they make."""
OF_THE_IMPORT = frozenset({"__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__"})
"""Attributes of modules that tell their origin."""
_GET_THE_CLASS = frozenset({"__new__", "__init_subclass__", "__class_getitem__"})
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
    if kind.__module__ == "numpy" and kind.__name__.startswith(_NUMPY_SCALARS):
        return True
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


# ------------------------------------------------------------------------------------------------- looking


def _table(table: Any) -> list[Any]:
    return [*table, *table.values()] if table else []


def _look_at_function(function: FunctionType) -> list[Any]:
    looked: list[Any] = [
        function.__code__,
        function.__defaults__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        *cells_of(function, _ABSENT),
    ]
    for table in (function.__kwdefaults__, function.__annotations__, function.__dict__):
        if table:
            looked += _table(table)
    return looked


def _look_at_names(namespace: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [namespace.get(name, _ABSENT) for name in names]


def _look_at_class(cls: type[Any]) -> list[Any]:
    looked: list[Any] = [cls.__name__, cls.__qualname__, kind_of(cls), *cls.__bases__]
    for name, value in attributes_of(cls).items():
        if name not in MADE_BY_PYTHON:
            looked += (name, value)
    for name in _WATCHED_TABLES:
        table = vars(cls).get(name)
        if type(table) is dict:
            looked += _table(table)
    fields: dict[str, Any] = vars(cls).get("__dataclass_fields__", {})
    for field in fields.values():
        looked += _look_at_field(field)
    if issubclass(cls, enum.Enum):
        looked += cls.__members__.values()
        for attributes in members_of(cls).values():
            looked += _table(attributes)
        looked += [part for alias in aliases_of(cls) for part in alias]
    if isinstance(cls, abc.ABCMeta):
        looked.append(_registrations())
    return looked


def _look_at_field(field: Any) -> list[Any]:
    return [getattr(field, name) for name in _FIELD_PARTS if hasattr(field, name)]


_FIELD_PARTS = tuple(name for name in dataclasses.Field.__slots__ if name not in ("metadata", "_field_type"))

_last_token: object = None


def _registrations() -> object:
    """The same object as long as no class has been registered with an abstract one."""
    global _last_token
    token = abc.get_cache_token()
    if token != _last_token:
        _last_token = token
    return _last_token


def _look_at_module(module: ModuleType) -> list[Any]:
    return [part for name, value in list(vars(module).items()) if name not in OF_THE_IMPORT for part in (name, value)]


# ------------------------------------------------------------------------------------------------- judging


def _function_keeps_state(function: FunctionType, captured: Iterable[Any]) -> bool:
    """Whether a call can leave something in the definitions that it reaches.

    Variables with immutable values can still be rebound, and so can attributes of functions and classes.
    """
    use = code_use(function.__code__)
    if use.keeps_state or use.outer:
        return True
    return use.binds_attributes and (use.finds_definitions or any(map(_leads_to_ours, captured)))


def _leads_to_ours(value: Any) -> bool:
    """Whether a value is, or contains, something by value whose attributes a call could bind."""
    return any(travels_by_value(part) or hasattr(part, "__supertype__") for part in _parts_of(value))


def _parts_of(value: Any) -> Iterator[Any]:
    """A value and, for immutable containers, its parts; each once."""
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
    return [*cells.values(), *defaults, *_look_at_names(function.__globals__, use.globals)]


def stands_alone(function: FunctionType) -> bool:
    """Whether a function can carry no state and captured nothing besides defaults that reach nothing by value.

    Even an immutable global may be one that another function of the same call binds.
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
    """Whether this method gets its class as an argument, and binds attributes."""
    if kind_of(value) is not classmethod and name not in _GET_THE_CLASS and not issubclass(cls, type):
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

    __slots__ = ("_looks", "_seen")

    def __init__(self) -> None:
        self._looks: list[Callable[[], list[Any]]] = []
        self._seen: list[Any] = []

    def add(self, thing: Any) -> None:
        """Watch a function, class or module that is pickled by value.

        Raises `CarriesState`.
        """
        kind = kind_of(thing)
        if kind is FunctionType:
            self._add_function(thing)
        elif kind is ModuleType:
            self._add_module(thing)
        elif issubclass(kind, type):
            self._add_class(thing)
        else:
            raise CarriesState  # the cache of a cached function

    def _add_function(self, function: FunctionType) -> None:
        names = code_use(function.__code__).globals
        own = self._add(partial(_look_at_function, function))
        bound = self._add(partial(_look_at_names, function.__globals__, names)) if names else []
        if _is_of_class_maker(function):
            return
        if not all(value is _ABSENT or is_immutable(value) for value in (*own, *bound)):
            raise CarriesState
        if _function_keeps_state(function, _captured_by(function)):
            raise CarriesState

    def _add_class(self, cls: type[Any]) -> None:
        if not is_made_by_statement(cls):
            return  # a type of the interpreter that no module offers by its name
        self._add(partial(_look_at_class, cls))
        if any(_attribute_is_state(cls, name, value) for name, value in attributes_of(cls).items()):
            raise CarriesState
        if issubclass(cls, enum.Enum) and not all(
            is_immutable(value) for attributes in members_of(cls).values() for value in attributes.values()
        ):
            raise CarriesState

    def _add_module(self, module: ModuleType) -> None:
        if not all(map(is_immutable, self._add(partial(_look_at_module, module)))):
            raise CarriesState

    def _add(self, look: Callable[[], list[Any]]) -> list[Any]:
        seen = look()
        self._looks.append(look)
        self._seen += seen
        return seen

    def holds(self) -> bool:
        """Whether everything is as it was."""
        now: list[Any] = []
        for look in self._looks:
            now += look()
        return len(now) == len(self._seen) and all(map(operator.is_, now, self._seen))
