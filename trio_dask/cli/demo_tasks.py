"""The demo's work: count the names in Python source. Plain functions on plain values; workers import them from here."""

from __future__ import annotations

import keyword
import os
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

FAN_IN = 8
LARGEST = 5
SKIPPED_FOLDERS = {"__pycache__", "idle_test", "site-packages", "dist-packages", "test", "tests"}


class Module(NamedTuple):
    """One source file, and how much is in it."""

    tokens: int
    lines: int
    name: str


class Counts(NamedTuple):
    """What some source files contain. `skipped` names those that are not valid Python, with the reason."""

    files: int
    tokens: int
    lines: int
    names: Counter[str]
    largest: tuple[Module, ...]
    skipped: tuple[str, ...]


def standard_library() -> Path:
    """The folder of Python's standard library."""
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))


def source_files(folder: Path) -> list[str]:
    """The Python files below a folder, largest first; tests and installed packages are left out."""
    found: list[tuple[int, str]] = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in files:
            path = Path(here, name)
            if name.endswith(".py") and path.is_file():
                found.append((-path.stat().st_size, str(path.relative_to(folder))))
    return [name for _, name in sorted(found)]


def count_names(folder: str, name: str) -> Counts:
    """Tokenize one file and count its names."""
    names: Counter[str] = Counter()
    tokens = lines = 0
    try:
        with open(Path(folder, name), "rb") as file:
            for token in tokenize.tokenize(file.readline):
                tokens += 1
                lines = token.start[0]
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                    names[token.string] += 1
    except (OSError, SyntaxError, tokenize.TokenError, UnicodeDecodeError) as exc:
        return Counts(1, 0, 0, Counter(), (), (f"{name}: {exc}",))
    return Counts(1, tokens, lines, names, (Module(tokens, lines, name),), ())


def combine(parts: Sequence[Counts]) -> Counts:
    """Add up the counts; only the largest few modules are kept."""
    names: Counter[str] = Counter()
    for part in parts:
        names.update(part.names)
    modules = [module for part in parts for module in part.largest]
    return Counts(
        sum(part.files for part in parts),
        sum(part.tokens for part in parts),
        sum(part.lines for part in parts),
        names,
        tuple(sorted(modules, reverse=True)[:LARGEST]),
        tuple(reason for part in parts for reason in part.skipped),
    )


def run_plainly(folder: str, names: Iterable[str]) -> Counts:
    """The whole job in this process, one file after the other."""
    return combine([count_names(folder, name) for name in names])
