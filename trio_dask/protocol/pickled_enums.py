"""Enumerations by value: members with their names, aliases, attributes and mixed-in type.

A metaclass makes the members, from their values, while it makes the class. The user's `__new__` and `__init__` ran
where the class was defined and must not run again. So an enumeration is made with a stand-in for each value. Afterwards
its members get their attributes, as classes do: at first, and again where a task has changed them.
"""

from __future__ import annotations

import copyreg
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from trio_dask.protocol.introspection import attributes_of, kind_of

_OF_THE_METACLASS = frozenset({"__objclass__", "_inverted_", "_name_", "_sort_order_"})
"""Attributes of members."""
_TABLES = frozenset(
    {
        "_hashable_values_", "_member_map_", "_member_names_", "_member_type_", "_unhashable_values_",
        "_unhashable_values_map_", "_value2member_map_",
    }
)  # fmt: skip
"""Attributes of classes that hold members, values, and combinations of flags used so far."""
MADE_WITH_MEMBERS = _TABLES | {
    "_all_bits_", "_boundary_", "_flag_mask_", "_generate_next_value_", "_inverted_", "_new_member_", "_singles_mask_",
    "_use_args_", "_value_repr_", "__new_member__",
}  # fmt: skip
"""Attributes of classes that the metaclass derives from the members and their creation."""
_PROTOCOL = 2
_PLAIN = (int, float, str, bytes, bool, type(None))


class FilledEnum(NamedTuple):
    """The state of an enumeration. `attributes` has those of its class, and has to come first (`rebuilt_classes`)."""

    attributes: dict[str, Any]
    set_attributes: Callable[[Any, Any], object]
    members: dict[str, dict[str, Any]]
    other_values: list[tuple[Any, str]]


def members_of(cls: type[enum.Enum]) -> dict[str, dict[str, Any]]:
    """The value that the user gave each member, by name, without aliases."""
    return {
        name: {key: value for key, value in _attributes_of_member(member).items() if key not in _OF_THE_METACLASS}
        for name, member in cls.__members__.items()
        if member.name == name
    }


def _attributes_of_member(member: enum.Enum) -> dict[str, Any]:
    slots = [name for kind in type(member).__mro__ for name in _slots_of(kind)]
    if not slots:
        return attributes_of(member)
    return {**{name: getattr(member, name) for name in slots if hasattr(member, name)}, **attributes_of(member)}


def _slots_of(kind: type[Any]) -> tuple[str, ...]:
    slots: Any = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def told_of(cls: type[enum.Enum], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """The attributes of its class that distinguish an enumeration from others."""
    own = {name: value for name, value in attributes.items() if name not in _TABLES and name not in cls.__members__}
    aliases = [(name, member.name) for name, member in cls.__members__.items() if member.name != name]
    return own, members_of(cls), aliases, aliases_of(cls)


def aliases_of(cls: type[enum.Enum]) -> list[tuple[Any, str]]:
    """Values that lead to a member besides its own, with its name."""
    own = attributes_of(cls)
    table: dict[Any, Any] = own.get("_value2member_map_", {})
    found = [
        (value, member.name)
        for value, member in list(table.items())
        if member.name in cls.__members__ and value is not member.value and value != member.value
    ]
    by_name: dict[str, list[Any]] = own.get("_unhashable_values_map_", {})  # from Python 3.13 on
    for name, values in by_name.items():
        found += [(value, name) for value in values if value is not cls[name].value]  # arrays do not say if they differ
    return found


def reduce_enum(
    cls: type[enum.Enum], attributes: dict[str, Any], set_attributes: Callable[[Any, Any], object]
) -> tuple[tuple[Any, ...], FilledEnum]:
    """The arguments of `make_enum` and of `fill_enum`."""
    members = dict(cls.__members__)
    stand_ins = tuple((name, _stand_in(member), _mixed_in(cls, member)) for name, member in members.items())
    attributes = {name: value for name, value in attributes.items() if name not in _TABLES and name not in members}
    if "_generate_next_value_" in vars(cls):
        attributes["_generate_next_value_"] = vars(cls)["_generate_next_value_"]
    boundary: Any = getattr(cls, "_boundary_", None) if issubclass(cls, enum.Flag) else None
    arguments = (
        type(cls), cls.__bases__, cls.__name__, cls.__qualname__, cls.__module__, _data_type(cls), boundary, stand_ins
    )  # fmt: skip
    return arguments, FilledEnum(attributes, set_attributes, members_of(cls), aliases_of(cls))


def _stand_in(member: enum.Enum) -> Any:
    """The value itself if it is plain: hooks of the user that run while a class is made may read it."""
    value: Any = member.value
    parts: tuple[Any, ...] = value if kind_of(value) is tuple else (value,)
    return value if all(kind_of(part) in _PLAIN for part in parts) else f"the value of {member.name}"


def _data_type(cls: Any) -> Any:
    return cls._member_type_


def _mixed_in(cls: type[enum.Enum], member: Any) -> tuple[Any, ...]:
    """The arguments of the mixed-in type for its part of a member, besides the class."""
    data_type = _data_type(cls)
    if data_type is object:
        return ()
    made = data_type.__reduce_ex__(member, _PROTOCOL)
    return tuple(made[1][1:] if made[0] is copyreg.__newobj__ else made[1])  # type: ignore[attr-defined]


def make_enum(
    metaclass: Any,
    bases: tuple[Any, ...],
    name: str,
    qualified_name: str,
    module: str,
    data_type: Any,
    boundary: Any,
    stand_ins: tuple[tuple[str, Any, tuple[Any, ...]], ...],
) -> Any:
    """An enumeration whose members are there, without their attributes."""
    to_come = iter(stand_ins)

    def make_member(cls: Any, *_arguments: object) -> Any:
        _, value, parts = next(to_come)
        member = data_type.__new__(cls, *parts)
        member._value_ = value
        return member

    options: dict[str, Any] = {} if boundary is None else {"boundary": boundary}
    namespace = metaclass.__prepare__(name, bases, **options)
    namespace["__module__"], namespace["__qualname__"] = module, qualified_name
    if stand_ins:
        namespace["__new__"], namespace["__init__"] = make_member, _leave_as_it_is
    for stand_in in stand_ins:
        namespace[stand_in[0]] = stand_in[1]
    made = metaclass(name, bases, namespace, **options)
    for attribute in ("__new_member__", "__init__"):
        if attribute in vars(made):
            delattr(made, attribute)
    return made


def _leave_as_it_is(_member: Any, *_arguments: object) -> None:
    """Replaces the `__init__` of members while they are made."""


def fill_enum(cls: Any, state: tuple[Any, ...]) -> None:
    """Replace the attributes of an enumeration and its members.

    Other tasks may use them meanwhile, so attributes that stay are there at every moment.
    """
    filled = FilledEnum(*state)
    filled.set_attributes(cls, (filled.attributes, {}))
    by_name: dict[str, Any] = cls._member_map_
    for name, attributes in filled.members.items():
        own = attributes_of(by_name[name])
        for attribute, value in attributes.items():
            object.__setattr__(by_name[name], attribute, value)
        for attribute in own.keys() - attributes.keys() - _OF_THE_METACLASS:
            own.pop(attribute, None)
    _fill_tables(cls, by_name, filled.other_values)


def _fill_tables(cls: Any, members: dict[str, Any], other_values: list[tuple[Any, str]]) -> None:
    table: dict[Any, Any] = cls._value2member_map_
    former = [value for value, member in list(table.items()) if member.name in members]  # so not combinations of flags
    by_value: dict[Any, Any] = {}
    hashable: list[Any] = []
    unhashable: list[Any] = []
    by_name: dict[str, list[Any]] = {}
    for value, name in [*((member.value, member.name) for member in members.values()), *other_values]:
        try:
            by_value.setdefault(value, members[name])
        except TypeError:
            unhashable.append(value)
            by_name.setdefault(name, []).append(value)
        else:
            hashable.append(value)
    table.update(by_value)
    for value in former:
        if value not in by_value:
            table.pop(value, None)
    tables: tuple[tuple[str, Any], ...] = (
        ("_hashable_values_", hashable),
        ("_unhashable_values_", unhashable),
        ("_unhashable_values_map_", by_name),
    )
    for table_name, content in tables:
        if table_name in vars(cls):  # the later a version of Python, the more of them
            type.__setattr__(cls, table_name, content)
