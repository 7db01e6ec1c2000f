"""Runs functions when dask has been imported: at once, or when the program imports it, perhaps never.

So a program that makes a client first and imports dask later has the same as one that does it the other way round, and
one that never imports dask does not pay for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

_MODULE: Final = "dask._task_spec"
"""The module whose import counts. dask imports it after its configuration, and everything else after it."""

_waiting: list[Callable[[Any], object]] = []


def when_dask_is_imported(function: Callable[[Any], object]) -> None:
    """Call this with dask's `TaskRef` once the program has imported dask: now, if it has."""
    module = sys.modules.get(_MODULE)
    if module is not None and hasattr(module, "TaskRef"):
        function(module.TaskRef)
        return
    _waiting.append(function)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the module as it would be found without this, and has its loader call what waits."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname != _MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
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
        while _waiting:
            _waiting.pop(0)(module.TaskRef)
