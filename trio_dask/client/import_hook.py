"""Calls functions once the program has imported a module: at once, later, or never.

So a program that makes a client first and imports dask, joblib or xarray later has the same as one that does it the
other way round, and one that never imports them does not pay for it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

DASK: Final = "dask._task_spec"
"""dask imports this module after its configuration, and everything else after it."""

_waiting: dict[str, list[Callable[[Any], object]]] = {}
_sought: set[tuple[int, str]] = set()
"""By which thread."""


def when_imported(name: str, function: Callable[[Any], object]) -> None:
    """Call `function` with the module of this name, once it is there."""
    _waiting.setdefault(name, []).append(function)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if name in sys.modules:
        _call_waiting(import_module(name))  # waits, where another thread is importing it


def _call_waiting(module: ModuleType) -> None:
    for function in _waiting.pop(module.__name__, ()):
        function(module)


class _Finder(MetaPathFinder):
    """Finds a module as it would be found without this, and has its loader call what waits for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        sought = threading.get_ident(), fullname
        if fullname not in _waiting or sought in _sought:
            return None
        _sought.add(sought)
        try:
            spec = find_spec(fullname)
        finally:
            _sought.discard(sought)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _call_waiting(module)
