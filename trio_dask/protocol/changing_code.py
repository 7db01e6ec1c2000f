"""Whether code can be seen to change what the tasks of a process share: a class, an enumeration, a named object.

The byte code is followed with a stack of notes: which values lead to such an object. A global or captured name may, and
so do `type(x)`, `x.__class__`, and the first argument of a class method. Code changes the object if it binds one of its
attributes, changes a container among them, or calls an object among them. What happens in the code of libraries, and to
objects that are reached through others, is not seen.
"""

from __future__ import annotations

import dis
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from itertools import islice
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple, cast

from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.captured_values import is_immutable, stands_alone
from trio_dask.protocol.introspection import attributes_of, kind_of
from trio_dask.protocol.pickled_names import PARTS_BY_TYPE
from trio_dask.protocol.picklers import travels_by_value

_CHANGERS: Final = frozenset(
    {
        "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert",
        "intersection_update", "move_to_end", "pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault",
        "sort", "symmetric_difference_update", "update", "__setitem__", "__delitem__",
    }
)  # fmt: skip
"""Methods that change the containers of the standard library."""
_CONTAINERS: Final = frozenset({bytearray, defaultdict, deque, dict, list, OrderedDict, set})
_MOST_CODE: Final = 50_000
"""Bytes of code; a longer function was generated, and is suspected unread."""
_MOST_ITEMS: Final = 100
"""Of a captured container, looked through for classes."""
_BINDERS: Final = frozenset({"delattr", "eval", "exec", "setattr", "vars"})
_READS_NAME: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_READS_CELL: Final = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_GIVE_ITEMS: Final = frozenset({"__getitem__", "get", "items", "values"})
_STRAIGHT_ON: Final = frozenset({"CACHE", "EXTENDED_ARG", "GET_ITER", "KW_NAMES", "NOP", "PRECALL", "RESUME"})
_ENDS: Final = ("RETURN_", "RAISE_", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")


class _Leads(NamedTuple):
    """A value that leads to a definition, or is part of one; `found` is the value itself, where it is known."""

    found: Any
    is_known: bool = True


_TYPE = _Leads(type)
_UNKNOWN = _Leads(None, is_known=False)
_GIVES_ITEMS = _Leads("a method that gives the items of a container")
_Note = _Leads | None


class _Seen(Exception):
    """The code changes a definition."""


class _Step(NamedTuple):
    """An instruction: its argument as a value, a number and text, and its effect on the height of the stack.

    From Python 3.13 on, one instruction may have two local variables: `names`.
    """

    operation: str
    name: Any
    names: tuple[str, ...]
    argument: int
    text: str
    offset: int
    is_target: bool
    effect: int


@lru_cache(maxsize=4096)
def _steps(code: CodeType) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    for found in dis.get_instructions(code):
        if found.opname not in _STRAIGHT_ON:
            value: Any = found.argval
            names = cast("tuple[str, ...]", value if type(value) is tuple else (value,))
            effect = dis.stack_effect(found.opcode, found.arg, jump=False)
            place = found.offset, found.is_jump_target
            steps.append(_Step(found.opname, value, names, found.arg or 0, found.argrepr, *place, effect))
    return tuple(steps)


def changes_definitions(function: FunctionType, *, given: bool = False) -> bool:
    """Whether a function can be seen to change a definition; `given`: where its arguments are definitions."""
    code = function.__code__
    if len(code.co_code) > _MOST_CODE:
        return True
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))

    def note_of(name: str) -> _Note:
        if name in cells:
            try:
                return _note(cells[name].cell_contents)
            except ValueError:  # an empty cell
                return None
        if name in function.__globals__:
            return _note(function.__globals__[name])
        return _TYPE if name == "type" else None

    use = code_use(code)
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = function.__defaults__ or ()
    try:
        if not (given or use.finds_definitions or defaults or any(map(note_of, (*use.globals, *cells)))):
            return False
        local: dict[str, _Note] = dict.fromkeys(parameters, _UNKNOWN) if given else {}
        if not given:
            local = dict(zip(parameters[code.co_argcount - len(defaults) :], map(_note, defaults), strict=False))
        _follow(code, note_of, local)
    except _Seen:
        return True
    except Exception:  # an odd object of the user: what cannot be followed is suspected
        return True
    return False


def changes_given(function: Any) -> bool:
    """Whether a callable can be seen to change definitions that are given to it."""
    if kind_of(function) is FunctionType:
        return changes_definitions(function, given=True)
    return function is setattr or function is delattr


def class_changes_itself(cls: Any) -> bool:
    """Whether a method that gets its class as an argument can be seen to change it."""
    for name, value in list(attributes_of(cls).items()):
        function: Any = value.__func__ if kind_of(value) in (classmethod, staticmethod) else value
        is_given = kind_of(value) is classmethod or name == "__init_subclass__" or issubclass(cls, type)
        is_own = kind_of(function) is FunctionType and travels_by_value(function)
        if is_given and is_own and changes_definitions(function, given=True):
            return True
    return False


def _note(value: Any) -> _Note:
    kind = kind_of(value)
    if issubclass(kind, type):
        is_shared = travels_by_value(value)
    elif kind is FunctionType:
        is_shared = travels_by_value(value) and stands_alone(value)
    elif kind is tuple or kind is list or kind is dict or kind is set or kind is frozenset:
        parts = islice(value.values() if kind is dict else value, _MOST_ITEMS)
        return _UNKNOWN if any(issubclass(kind_of(part), type) and travels_by_value(part) for part in parts) else None
    else:
        is_shared = kind in PARTS_BY_TYPE or (
            travels_by_value(kind)
            and (issubclass(kind, Enum) or any("__reduce__" in attributes_of(base) for base in kind.__mro__[:-1]))
        )
    return _Leads(value) if is_shared else None


def _attribute(note: _Leads, name: str) -> _Note:
    """What an attribute of such a value leads to."""
    if not note.is_known:
        return _UNKNOWN
    owner = note.found
    kind = kind_of(owner)
    if kind in _CONTAINERS:
        return _GIVES_ITEMS if name in _GIVE_ITEMS else None
    if issubclass(kind, Enum):
        found: Any = owner.value if name in ("value", "_value_") else attributes_of(owner).get(name, owner)
    elif issubclass(kind, type) and issubclass(owner, Enum) and name in owner.__members__:
        return _Leads(owner.__members__[name])
    else:
        spaces = owner.__mro__ if issubclass(kind, type) else (owner,)
        tables = [attributes_of(space) for space in spaces if hasattr(space, "__dict__")]
        found = next((table[name] for table in tables if name in table), owner)
    if found is owner:
        return _UNKNOWN
    if kind_of(found) is staticmethod:
        found = found.__func__
    if kind_of(found) in (FunctionType, classmethod, property) or is_immutable(found):
        return _note(found)
    return _Leads(found)


def _changes(note: _Leads, method: str) -> bool:
    """Whether a call of this method changes the value, as far as anybody can tell."""
    if not note.is_known or kind_of(note.found) in _CONTAINERS:
        return method in _CHANGERS
    if issubclass(kind_of(note.found), type):
        return method == "register"
    return _changes_when_called(note)


def _changes_when_called(note: _Leads) -> bool:
    kind = kind_of(note.found)
    return note.is_known and not issubclass(kind, type) and not issubclass(kind, Enum) and not is_immutable(note.found)


def _follow(code: CodeType, note_of: Callable[[str], _Note], local: dict[str, _Note]) -> None:
    """Follow the instructions of `code`; twice, as it may have loops. Raises `_Seen`."""
    binds_any = not _BINDERS.isdisjoint(code_use(code).globals)
    for _ in range(2):
        stack: list[_Note] = []
        at_target: dict[int, list[_Note]] = {}
        has_ended = False
        for step in _steps(code):
            if step.is_target and (has_ended or len(at_target.get(step.offset, ())) > len(stack)):
                stack = at_target.get(step.offset, [])
            _take(step, stack, note_of, local, binds_any)
            if "JUMP" in step.operation or step.operation == "FOR_ITER":
                at_target.setdefault(step.name, list(stack))
            has_ended = step.operation.startswith(_ENDS)
    for nested in code.co_consts:
        if type(nested) is CodeType:
            _follow(nested, lambda name: local[name] if name in local else note_of(name), {})


def _pop(stack: list[_Note], count: int) -> list[_Note]:
    taken = stack[max(0, len(stack) - count) :]
    del stack[len(stack) - len(taken) :]
    return [None] * (count - len(taken)) + taken


def _take(
    step: _Step, stack: list[_Note], note_of: Callable[[str], _Note], local: dict[str, _Note], binds_any: bool
) -> None:
    """Follow one instruction. Raises `_Seen`."""
    operation, name, _, argument, text, _, _, effect = step
    if operation in _READS_NAME or operation in _READS_CELL:
        note = local[name] if operation in _READS_CELL and name in local else note_of(name)
        stack += [note] * max(1, effect)
    elif operation.startswith("LOAD_FAST"):
        stack += map(local.get, step.names)
    elif operation.startswith("STORE_FAST") or operation == "STORE_DEREF":
        stored = step.names[:1] if operation.endswith("LOAD_FAST") else step.names
        for one in stored:
            local[one] = _pop(stack, 1)[0] or local.get(one)
        stack += map(local.get, step.names[len(stored) :])
    elif operation in ("LOAD_ATTR", "LOAD_METHOD"):
        (owner,) = _pop(stack, 1)
        if owner and effect == 1 and _changes(owner, name):
            raise _Seen
        note = _UNKNOWN if name == "__class__" else owner and _attribute(owner, name)
        stack += [note] * (1 + effect)
    elif operation == "LOAD_SUPER_ATTR":
        _pop(stack, 3)
        stack += [None] * (3 + effect)
    elif operation in ("STORE_ATTR", "DELETE_ATTR"):
        if _pop(stack, -effect)[-1]:
            raise _Seen
    elif operation in ("STORE_SUBSCR", "DELETE_SUBSCR"):
        if _pop(stack, -effect)[-2]:
            raise _Seen
    elif operation == "BINARY_SUBSCR" or (operation == "BINARY_OP" and text == "[]"):
        stack.append(_pop(stack, 2)[0] and _UNKNOWN)
    elif operation == "BINARY_OP":
        if _pop(stack, 2)[0] and text.endswith("="):
            raise _Seen
        stack.append(None)
    elif operation == "BUILD_TUPLE":
        stack.append(_UNKNOWN if any(_pop(stack, argument)) else None)
    elif operation == "COPY":
        stack.append(stack[-argument] if len(stack) >= argument else None)
    elif operation == "SWAP":
        if len(stack) >= argument:
            stack[-1], stack[-argument] = stack[-argument], stack[-1]
    elif operation == "FOR_ITER":
        stack.append(stack[-1] and _UNKNOWN if stack else None)
    elif operation.startswith("CALL"):
        taken = _pop(stack, argument + 2 if operation == "CALL" else 1 - effect)
        if (binds_any and any(taken)) or any(note and _changes_when_called(note) for note in taken[:2]):
            raise _Seen
        gives = any(note is not None and (note.found is type or note is _GIVES_ITEMS) for note in taken)
        stack.append(_UNKNOWN if gives else None)
    elif effect < 0:
        _pop(stack, -effect)
        if stack and not operation.startswith(("POP_", "STORE_", "DELETE_", "RETURN_")) and "JUMP" not in operation:
            stack[-1] = None
    else:
        stack += [None] * effect
