"""How the tasks of a graph run: the options of the call, and dask's annotations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

from trio_dask.client.collections.dask_names import annotations_of
from trio_dask.client.spans import span_here, span_of
from trio_dask.client.task_options import ANNOTATIONS, Options, extra_from

OPTIONS: Final = ANNOTATIONS | {"output"}
"""The options of a call that do."""

SPAN: Final = "span"


class TaskAnnotations:
    """Gives what the scheduler is told about each task of a graph: its own annotations, else those of the call."""

    def __init__(self, graph: Any, options: Options, around: Mapping[str, Any]) -> None:
        """`around` are the annotations of the code that makes the call."""
        self._graph = graph
        self._common: dict[str, Any] = {
            name: value for name, value in around.items() if name in ANNOTATIONS and value is not None
        }
        self._common |= {name: value for name, value in options.items() if name in OPTIONS and value}
        self._span = span_here() or span_of(around.get(SPAN))
        self._own: dict[Hashable, dict[str, Any]] | None = None
        self._made: dict[str, Mapping[str, Any]] = {}
        self._has_functions = any(map(callable, self._common.values()))
        plain = {name: value for name, value in self._common.items() if not callable(value)}
        self._plain = extra_from(plain, self._span)  # type: ignore[arg-type] # wrong options raise in the caller, not later

    def __call__(self, key: Hashable) -> Mapping[str, Any]:
        own = self._own
        if own is None:
            own = self._own = {}
            for name, values in annotations_of(self._graph).items():
                if name in ANNOTATIONS or name == SPAN:
                    for owner, value in values.items():
                        own.setdefault(owner, {})[name] = value
        found = own.get(key)
        if found is None and not self._has_functions:
            return self._plain
        options = {**self._common, **(found or {})}
        options = {name: value(key) if callable(value) else value for name, value in options.items()}
        text = repr(sorted(options.items()))
        made = self._made.get(text)
        if made is None:
            if "workers" not in options:
                options.pop("allow_other_workers", None)
            span = span_of(options.pop(SPAN, None)) or self._span
            made = self._made[text] = extra_from(options, span)  # type: ignore[arg-type]
        return made
