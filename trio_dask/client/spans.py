"""`span`: names the tasks that are submitted in a block, for those who look at them later."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, cast

from trio_dask.errors import UsageError
from trio_dask.parsing import checked_text
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

MOST_TAGS: Final = 100


class Span(NamedTuple):
    """The tags of the blocks around some code, the outermost first, alone and as the scheduler reads them."""

    tags: tuple[str, ...]
    extra: Mapping[str, Any]


_around: ContextVar[Span | None] = ContextVar("trio_dask span", default=None)

span_here = _around.get
"""The span of the code that calls this, or None."""


@contextmanager
def span(*tags: str) -> Generator[tuple[str, ...]]:
    """Give the tasks that are submitted in this block a name, which may have several parts.

        with span("load"):
            with span("january"):
                client.map(read, names)           # these are in ("load", "january")

    The block gives the whole name. The runs of `get_task_stream`, `performance_report` (with totals),
    `get_task_metadata`, `Client.explain` and `Client.dump_cluster_state` have it. A task that is known already keeps
    the span of its first submission. Collections of dask that are made in the block, and computed later, have it too,
    where dask keeps annotations.

    Raises:
      UsageError: there is no tag, or one is not a text.
    """
    if not tags:
        raise UsageError('span() takes at least one name, such as span("load")')
    outer = _around.get()
    names = (() if outer is None else outer.tags) + tuple(map(_checked, tags))
    if len(names) > MOST_TAGS:
        raise UsageError(f"spans are nested too deeply: {len(names)} names")
    token = _around.set(Span(names, {"span": names}))
    try:
        with _annotated(names):
            yield names
    finally:
        _around.reset(token)


def _checked(tag: object) -> str:
    if not isinstance(tag, str) or not tag:
        raise UsageError(f"the name of a span is a text, not {tag!r:.60}")
    return checked_text("the name of a span", tag, MAX_KEY_LENGTH)


def _annotated(names: tuple[str, ...]) -> AbstractContextManager[Any]:
    """A block in which dask notes the span on the collections that are made, if the program uses dask."""
    if "dask.base" not in sys.modules:
        return nullcontext()
    from trio_dask.client.collections.dask_names import annotating

    return cast("AbstractContextManager[Any]", annotating(span={"name": names}))


def span_of(annotation: object) -> Span | None:
    """The span of an annotation of dask, which distributed's `span` makes in the same form."""
    name = cast("dict[str, Any]", annotation).get("name") if isinstance(annotation, dict) else None
    if not isinstance(name, tuple | list) or not name:
        return None
    tags = tuple(map(str, cast("tuple[object, ...]", name)))
    return Span(tags, {"span": tags})
