"""What code does with names: which globals it reads, and whether it can leave something for its next call."""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType
from typing import Final, NamedTuple

_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_BINDS_GLOBAL: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_BINDS_CELL: Final = frozenset({"STORE_DEREF", "DELETE_DEREF"})
_BINDS_ATTRIBUTE: Final = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_READS_ATTRIBUTE: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})

_BINDING_BUILTINS: Final = frozenset({"delattr", "eval", "exec", "globals", "setattr", "vars"})
_WAYS_IN: Final = frozenset({"__class__", "__closure__", "__func__", "__globals__", "__kwdefaults__", "__wrapped__"})


class CodeUse(NamedTuple):
    """What a code object does, including the code nested in it."""

    globals: tuple[str, ...]
    """The global names that it reads, without names of attributes."""
    outer: frozenset[str]
    """The variables of enclosing functions that it binds."""
    keeps_state: bool
    """It binds global names, or calls a builtin that can bind any name."""
    binds_attributes: bool
    finds_definitions: bool
    """It reaches the classes of objects, or the parts of functions."""


@lru_cache(maxsize=4096)
def code_use(code: CodeType) -> CodeUse:
    """What `code` does with names."""
    names: dict[str, None] = {}
    outer: set[str] = set()
    own: set[str] = set()  # names that the body of a class has certainly bound by then
    is_straight = True
    keeps_state = binds_attributes = finds_definitions = False
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if "JUMP" in operation or instruction.is_jump_target:
            is_straight = False
        if operation in _READS:
            if operation == "LOAD_GLOBAL" or name not in own:
                names[name] = None
        elif operation == "STORE_NAME" and is_straight:
            own.add(name)
        elif operation in _BINDS_GLOBAL:
            keeps_state = True
        elif operation in _BINDS_CELL:
            outer.add(name)
        elif operation in _BINDS_ATTRIBUTE:
            binds_attributes = True
        elif operation in _READS_ATTRIBUTE:
            binds_attributes = binds_attributes or name == "__dict__"
            finds_definitions = finds_definitions or name in _WAYS_IN
    for nested in code.co_consts:
        if type(nested) is CodeType:
            use = code_use(nested)
            names.update(dict.fromkeys(use.globals))
            outer |= use.outer
            keeps_state = keeps_state or use.keeps_state
            binds_attributes = binds_attributes or use.binds_attributes
            finds_definitions = finds_definitions or use.finds_definitions
    return CodeUse(
        tuple(names),
        frozenset(outer.intersection(code.co_freevars)),
        keeps_state or not _BINDING_BUILTINS.isdisjoint(names),
        binds_attributes,
        finds_definitions or "type" in names,
    )
