"""Tracebacks as plain data that another process can rebuild.

A rebuilt frame belongs to a stub, compiled under the file name, function name, line and columns of the original. So
Python prints the user's own source lines, with its own markers, if the file (or the notebook's cell) is available.
"""

from __future__ import annotations

import ast
import linecache
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

MAX_FRAMES = 100
SOURCE_CHARACTERS = 300

# The code that calls the user's function, and the code that pickles its result.
_PACKAGE = Path(__file__).resolve().parents[1]
_OUR_FOLDERS = tuple(f"{_PACKAGE / room}{os.sep}" for room in ("worker", "protocol"))


class Frame(NamedTuple):
    """One line of a traceback; unknown columns are -1, and an unknown `source` is empty."""

    filename: str
    name: str
    module: str
    line: int
    end_line: int
    column: int
    end_column: int
    source: str


def _frame(traceback: TracebackType) -> Frame:
    code = traceback.tb_frame.f_code
    line = traceback.tb_lineno or code.co_firstlineno
    positions = next(islice(code.co_positions(), max(traceback.tb_lasti, 0) // 2, None), (None, None, None, None))
    first, last, column, end_column = positions
    if first != line or last is None or column is None or end_column is None:
        last, column, end_column = line, -1, -1
    source = linecache.getline(code.co_filename, line, traceback.tb_frame.f_globals).strip()
    name = traceback.tb_frame.f_globals.get("__name__")
    module, source = name if type(name) is str else "?", source[:SOURCE_CHARACTERS]
    return Frame(code.co_filename, code.co_name, module, line, last, column, end_column, source)


def _walk(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def collect_frames(traceback: TracebackType | None, skip_frames: int = 0) -> tuple[Frame, ...]:
    """The frames as data, outermost first; without our own at the outer end, and of very many without the middle."""
    found = list(_walk(traceback))[skip_frames:]
    while found and found[0].tb_frame.f_code.co_filename.startswith(_OUR_FOLDERS):
        del found[0]
    if len(found) <= MAX_FRAMES:
        return tuple(map(_frame, found))
    half = MAX_FRAMES // 2
    gap = Frame(f"<{len(found) - MAX_FRAMES} frames left out>", "...", "?", 1, 1, -1, -1, "")
    return (*map(_frame, found[:half]), gap, *map(_frame, found[-half:]))


def format_frames(frames: Iterable[Frame]) -> Iterator[str]:
    """The frames as Python would print them, one string a line."""
    for frame in frames:
        yield f'  File "{frame.filename}", line {frame.line}, in {frame.name}'
        if frame.source:
            yield f"    {frame.source}"


def has_source(frames: Iterable[Frame]) -> bool:
    """Whether this process would print the same source lines as the process of the frames."""
    return all(
        linecache.getline(frame.filename, frame.line).strip()[:SOURCE_CHARACTERS] == frame.source
        for frame in frames
        if frame.source
    )


def _compile(frame: Frame) -> TracebackType:
    """One stub: a generator that never starts, since its frame, unlike that of a call, keeps no callers alive."""
    tree = ast.parse("lambda: (yield)", mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.lineno, node.end_lineno = frame.line, frame.end_line
            node.col_offset, node.end_col_offset = frame.column, frame.end_column
    stub: Any = eval(compile(tree, frame.filename, "eval"), {"__name__": frame.module, "__file__": frame.filename})
    stub.__code__ = stub.__code__.replace(co_name=frame.name, co_qualname=frame.name)
    columns = (None, None) if frame.column < 0 else (frame.column, frame.end_column)
    wanted = (frame.line, frame.end_line, *columns)
    positions = enumerate(stub.__code__.co_positions())
    instruction = next((number for number, position in positions if position == wanted), 0)
    return TracebackType(None, stub().gi_frame, 2 * instruction, frame.line)


def rebuild_traceback(frames: Sequence[Frame]) -> TracebackType | None:
    """A traceback object with these frames."""
    rebuilt: TracebackType | None = None
    for frame in reversed(frames):
        try:
            made = _compile(frame)
        except ValueError:  # positions, or a name, that this Python's compiler refuses
            made = _compile(Frame(repr(frame.filename), "?", "?", 1, 1, -1, -1, ""))
        made.tb_next = rebuilt
        rebuilt = made
    return rebuilt
