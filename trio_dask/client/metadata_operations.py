"""Metadata: values that clients and tasks keep at the scheduler, by a path of names."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, cast

from trio_dask.client.call_forms import CallForms, awaitable, blocking, in_loop
from trio_dask.client.coordination.values import LARGEST_VALUE_BYTES, item_for
from trio_dask.client.dask_graphs import key_to_str
from trio_dask.client.dataset_operations import REQUIRED
from trio_dask.client.default_clients import usable
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import refuse_in_event_loop
from trio_dask.errors import UsageError
from trio_dask.hooks import client_here
from trio_dask.ids import Key
from trio_dask.protocol.messages import SetMetadata

DEEPEST: Final = 20
"""The most names on the way to a value: messages are not nested deeper than a little more."""

ENTRY_BYTES: Final = 16
"""What a name takes in a message beside its text, or more; so no dict in it has more names than it may."""


@in_loop
async def set_metadata(engine: Engine, key: Any, value: Any) -> None:
    """Have the scheduler keep a value under a name, or under the last of a list of names, for all clients and tasks.

        client.set_metadata("model", {"version": 3})
        client.set_metadata(["model", "trained by"], "me")
        client.get_metadata("model")                      # {"version": 3, "trained by": "me"}

    The value is anything that pickles; names in a dict can be set one by one later. Under the key of a task it lasts
    as long as the task, under any other name as long as the scheduler. It keeps no results of futures.

    Raises:
      UsageError: a name is no text, there are more than 20 of them, or the value is larger than 16 MiB.
      SerializationError: it cannot be pickled.
    """
    path = _path(key)
    tree, nbytes = _tree(value, len(path))
    if nbytes > LARGEST_VALUE_BYTES:
        raise UsageError(
            f"metadata of {nbytes / 2**20:.0f} MiB is too much for one call, whose limit is "
            f"{LARGEST_VALUE_BYTES >> 20} MiB: set its parts one by one"
        )
    await engine.request(SetMetadata, path, tree)


@in_loop
async def get_metadata(engine: Engine, keys: Any, default: Any = REQUIRED) -> Any:
    """The value that was set under a name, or under the last of a list of names.

    Raises:
      KeyError: there is none, and no `default`.
      TypeError: the path leads into a value that has no items.
    """
    path = _path(keys)
    answer: tuple[Any, int] | None = await engine.ask("metadata", path)
    if answer is not None:
        node, left = answer
        try:
            value = _value(engine, node)
            for name in path[len(path) - left :]:
                value = value[name]
        except KeyError:
            pass
        else:
            return value
    if default is REQUIRED:
        raise KeyError(keys)
    return default


def _path(keys: Any) -> tuple[str, ...]:
    names = tuple(cast("list[Any]", keys)) if isinstance(keys, list | tuple) else (keys,)
    if not 0 < len(names) <= DEEPEST:
        raise UsageError(f"metadata has a name, or a list of 1 to {DEEPEST} names, not {keys!r:.60}")
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"the name of metadata is a text, not {name!r:.60}")
    return tuple(map(key_to_str, names))


def _tree(value: Any, depth: int) -> tuple[Any, int]:
    """The value as it travels, and how many bytes it takes about.

    Dicts with texts for names are trees, as deep as messages go; the rest is pickled.
    """
    if type(value) is dict and depth < DEEPEST:
        entries = cast("dict[object, Any]", value)
        if all(isinstance(name, str) for name in entries):
            tree: dict[str, Any] = {}
            total = 0
            for name, below in cast("dict[str, Any]", value).items():
                tree[key_to_str(name)], nbytes = _tree(below, depth + 1)
                total += nbytes + len(name) + ENTRY_BYTES
            return tree, total
    frames, _ = item_for(value, place="metadata")
    return frames, sum(map(len, frames))


def _value(engine: Engine, node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _value(engine, below) for name, below in cast("dict[str, Any]", node).items()}
    head, *buffers = cast("tuple[bytes, ...]", node)
    return engine.load((head, *map(bytearray, buffers)))


class get_task_metadata:
    """Gather the state and the metadata of the tasks that are submitted and finished in a block.

        with get_task_metadata() as tasks:        # `async with` under Trio
            client.gather(client.map(f, range(10)))
        tasks.state                               # {"f-...": "memory", ...}
        tasks.metadata                            # what `set_metadata(future.key, ...)` has set
        tasks.spans                               # of those with a `span`

    It is the current client that is asked. Tasks that are forgotten by the end of the block, as nobody wants them any
    more, are not among them.
    """

    def __init__(self) -> None:
        self.state: Mapping[Key, str] = {}
        self.metadata: Mapping[Key, Any] = {}
        self.spans: Mapping[Key, tuple[str, ...]] = {}
        self._engine: Engine
        self._mark = ""

    async def __aenter__(self) -> Self:
        self._engine = _current_engine()
        self._mark = str(await self._engine.ask("task_mark"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ask = self._engine.ask("tasks_since", (self._mark,))
        found: Mapping[Key, tuple[str, Any, tuple[str, ...]]] = await ask  # noqa: ASYNC102 - cancelled, it needs no answer
        self.state = {key: state for key, (state, _, _) in found.items()}
        self.metadata = {key: _value(self._engine, node) for key, (_, node, _) in found.items()}
        self.spans = {key: span for key, (_, _, span) in found.items() if span}

    def __enter__(self) -> Self:
        refuse_in_event_loop("with get_task_metadata()", "`async with`")
        return _current_engine().call(self.__aenter__)

    def __exit__(self, *error: Any) -> None:
        self._engine.call(lambda: self.__aexit__(None, None, None))


def _current_engine() -> Engine:
    engine: Engine = usable(client_here()).engine
    return engine


class BlockingMetadata(CallForms):
    """The forms of these calls for `Client`."""

    get_metadata = blocking(get_metadata)
    set_metadata = blocking(set_metadata)


class AsyncMetadata(CallForms):
    """The forms of these calls for `AsyncClient`."""

    get_metadata = awaitable(get_metadata)
    set_metadata = awaitable(set_metadata)
