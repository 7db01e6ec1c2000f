"""Modules and files that a user wants to have imported before the worker starts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from trio_dask.errors import ClusterError, UsageError

__all__ = ["preload"]


def preload(names: Sequence[str], argv: Sequence[str]) -> None:
    """Import each of these, once: a dotted name, or the path of a `.py` file. `sys.argv` holds `argv` meanwhile.

    Raises:
      UsageError: there is no such module or file.
      ClusterError: it raised when it was imported. Its traceback is on stderr.
    """
    before = sys.argv[1:]
    sys.argv[1:] = argv
    try:
        for name in names:
            _load(name)
    finally:
        sys.argv[1:] = before


def _load(name: str) -> None:
    is_file = name.endswith(".py")
    try:
        if is_file:
            _load_file(Path(name))
        else:
            importlib.import_module(name)
    except Exception as error:  # it is the user's code: it can raise anything
        if isinstance(error, ModuleNotFoundError) and name == error.name:
            raise UsageError(f"--preload: there is no module {name!a}") from error
        if is_file and not Path(name).is_file():
            raise UsageError(f"--preload: there is no file {name!a}") from error
        traceback.print_exc()
        raise ClusterError(f"--preload: importing {name} raised {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> None:
    """Under its own name, so that tasks can import what it defines, and functions of it pickle."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
