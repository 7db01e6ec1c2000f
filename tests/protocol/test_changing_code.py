"""What can be seen in code: whether it changes a class, an enumeration, or a named object."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest

from trio_dask.protocol.changing_code import changes_definitions, changes_given, class_changes_itself

SCRIPT = """
import enum, functools, types

class K:
    x, items, cache, columns, table = 0, [], {}, ["a"], {"a": [1]}
    keep = staticmethod(functools.partial(lambda seen, x: seen.append(x), []))
class Level(enum.Enum):
    LOW = [1]
HOLDER = types.SimpleNamespace()

def binds(): K.x = 1
def deletes(): del K.x
def adds(): K.x += 1
def appends(v): K.items.append(v)
def stores(k, v): K.cache[k] = v
def adds_in_place(k): K.cache[k] += 1
def removes(): del K.items[0]
def extends(v): K.items += [v]
def by_type(self): type(self).n += 1
def by_class(self): self.__class__.n = 1
def by_other_name():
    items = K.items
    if items is not None:
        items.append(1)
def by_closure():
    def inner(): K.x = 2
    return inner
def by_cell():
    kind = K
    def inner(): kind.x = 2
    return inner
def in_loop():
    for row in K.table.values(): row.append(1)
def in_item(k): K.table[k].append(2)
def from_tuple():
    for kind in (K, int): kind.x = 1
def by_name(k): setattr(K, k, 1)
def by_call(x): K.keep(x)
def of_member(): Level.LOW.value.append(1)
def to_member(): Level.LOW.marks = 1
def of_default(kind=K): kind.x = 1

def reads_columns(frame): frame["x"] = frame[K.columns].sum(axis=1)
def makes_object(x):
    made = K()
    made.x = x
    return made
def binds_own(self, k): self.made, self.x = K(), K.x
def copies(out):
    for name in K.columns: out.append(name)
    return out
def checks(out, x):
    if isinstance(out, K): out.x = x
    return type(out).__name__
def indexes(out): out[K.table["a"][0]] = 1
def computes(): return [K(), K.columns.index("a"), dict(K.cache), sorted(K.items), K.items + [1]]
def fills(x):
    found = {}
    found.update(K.cache)
    found["b"] = K.x
    return found
def of_object(): HOLDER.x = 1
def in_library(k): import os; os.environ[k] = "1"
def binds_global():
    global counter
    counter = 1
"""

NAMES: dict[str, Any] = {"__name__": "__main__"}
exec(SCRIPT, NAMES)

CHANGING = [
    "binds",
    "deletes",
    "adds",
    "appends",
    "stores",
    "adds_in_place",
    "removes",
    "extends",
    "by_type",
    "by_class",
    "by_other_name",
    "by_closure",
    "by_cell",
    "in_loop",
    "in_item",
    "from_tuple",
    "by_name",
    "by_call",
    "of_member",
    "to_member",
    "of_default",
]
OTHERS = [
    "reads_columns",
    "makes_object",
    "binds_own",
    "copies",
    "checks",
    "indexes",
    "computes",
    "fills",
    "of_object",
    "in_library",
    "binds_global",
]


@pytest.mark.parametrize("name", CHANGING)
def test_code_that_changes_a_definition_is_found(name: str) -> None:
    assert changes_definitions(NAMES[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_code_is_not_suspected(name: str) -> None:
    assert not changes_definitions(NAMES[name])


def test_every_function_of_the_script_is_tried() -> None:
    functions = {name for name, value in NAMES.items() if callable(value) and not isinstance(value, type)}
    assert functions - {"HOLDER"} == {*CHANGING, *OTHERS}


def test_code_that_binds_attributes_of_its_arguments_changes_those_that_are_definitions() -> None:
    names = dict(NAMES)
    exec("def binds(kind): kind.x = 1\ndef calls(kind): return kind(1)", names)
    assert changes_given(names["binds"])
    assert not changes_given(names["calls"])
    assert changes_given(setattr)
    assert not changes_given(getattr)


class _Odd(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(f"{name} is not to be looked at")


def test_what_cannot_be_followed_is_suspected_and_raises_nothing() -> None:
    NAMES["odd"] = _Odd("odd", (), {"__module__": "__main__"})
    exec("def reads(): return odd.x", NAMES)
    assert changes_definitions(NAMES["reads"])


def test_values_that_have_no_truth_are_followed() -> None:
    NAMES["np"] = np
    exec("class Holds: array = np.arange(3)\ndef sums(): return np.sum(Holds.array)", NAMES)
    assert not changes_definitions(NAMES["sums"])


class Counts:
    made = 0

    @classmethod
    def bump(cls) -> None:
        cls.made += 1


class Makes:
    made = 0

    @classmethod
    def of(cls, x: int) -> Makes:
        made = cls()
        made.made = x
        return made


class Stays(enum.Enum):
    ONE = 1

    @classmethod
    def first(cls) -> Stays:
        return cls.ONE


def test_a_class_changes_itself_by_a_class_method_that_binds_its_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Counts, Makes, Stays):
        monkeypatch.setattr(kind, "__module__", "__main__")
        for value in list(vars(kind).values()):
            if isinstance(value, classmethod):
                monkeypatch.setattr(value.__func__, "__module__", "__main__")
    assert class_changes_itself(Counts)
    assert not class_changes_itself(Makes)
    assert not class_changes_itself(Stays)
