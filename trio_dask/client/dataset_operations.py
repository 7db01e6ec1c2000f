"""Published datasets: futures, collections and other values that the scheduler keeps by name, for all clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from trio_dask.client.call_forms import CallForms, Waiting, awaitable, blocking
from trio_dask.client.coordination.requests import ForAnswer, Primitive, RequestId, ask
from trio_dask.client.coordination.values import Item, forget, item_for, values_of
from trio_dask.errors import UsageError
from trio_dask.parsing import checked_text
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

REQUIRED: Final[Any] = object()
"""The default of a call that has no default: what is not there is an error."""

LARGEST_DEPTH: Final = 8
"""Of tuples in tuples, in the name of a dataset."""

MOST_TOGETHER_BYTES: Final = 32 * 2**20
"""The most that one message publishes."""


class _Datasets(Primitive):
    """All datasets of a cluster, as the scheduler knows them."""

    KIND = "dataset"


@dataclass(slots=True, eq=False)
class _Each:
    """The values of several calls, one after the other."""

    waiting: list[Waiting[Any]]

    def block(self) -> list[Any]:
        return [one.block() for one in self.waiting]

    async def wait(self) -> list[Any]:
        return [await one.wait() for one in self.waiting]


def publish_dataset(
    client: Any, /, *args: Any, name: Any = None, override: bool = False, **kwargs: Any
) -> Waiting[None]:
    """Have the scheduler keep datasets by name, for all clients; all of them are published, or none.

        client.publish_dataset(frame, name="flights")           # or
        client.publish_dataset(flights=frame, planes=other)     # or
        client.publish_dataset({("flights", 2013): frame})

    A dataset is anything that pickles: a future, a list of futures, a persisted collection of dask, a plain value. The
    results of futures in it are kept until it is unpublished, whatever becomes of this client. What is not computed
    stays so: call `persist` before.

    Args:
      name: text, a number, or a tuple of these.
      override: whether to replace datasets with the same names.

    Raises:
      KeyError: there is a dataset with such a name.
      UsageError: one is larger than 16 MiB, or all together than 32 MiB, without the results of futures; or a future
        belongs to another cluster.
      SerializationError: one cannot be pickled.
    """
    given: dict[Any, Any] = dict(kwargs)
    if name is not None:
        if not args:
            raise UsageError("publish_dataset(name=) also takes the dataset: publish_dataset(data, name='flights')")
        (given[name],) = args if len(args) == 1 else (args,)
    elif args:
        (by_name,) = args if len(args) == 1 else (None,)
        if not isinstance(by_name, Mapping):
            raise UsageError("publish_dataset() takes datasets with name=, as keywords, or as one dict by name")
        given |= by_name
    engine = client.engine
    entries = tuple([(_checked(key), item_for(value, engine, place="a dataset")) for key, value in given.items()])
    nbytes = sum(len(frame) for _, (frames, _) in entries for frame in frames)
    if nbytes > MOST_TOGETHER_BYTES:
        raise UsageError(f"{nbytes / 2**20:.0f} MiB are too much for one call; publish the datasets one by one")

    def finish(_: RequestId, taken: tuple[Hashable, ...]) -> None:
        if taken:
            names = ", ".join(map(repr, taken))
            raise KeyError(f"the dataset {names} exists already; override=True replaces it")

    return ForAnswer(_Datasets("", client), "publish", (entries, override), finish, futures=given)


def get_dataset(client: Any, /, name: Any, default: Any = REQUIRED) -> Waiting[Any]:
    """The dataset of this name; for a list of names, a list of datasets. Its futures are new ones, of this client.

    Raises `KeyError` if there is none, and no `default`.
    """
    if isinstance(name, list):
        return _Each([get_dataset(client, one, default) for one in cast("list[object]", name)])
    name = _checked(name)

    def finish(request: RequestId, items: tuple[Item, ...]) -> Any:
        if items:
            return values_of(request, items)[0]
        if default is REQUIRED:
            raise KeyError(f"the dataset {name!r} was not found")
        return default

    return ForAnswer(_Datasets("", client), "get", (name,), finish, undo=forget)


def list_datasets(client: Any, /) -> Waiting[tuple[Any, ...]]:
    """The names of all published datasets."""

    def finish(_: RequestId, names: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(names, key=str))

    return ForAnswer(_Datasets("", client), "names", (), finish)


def unpublish_dataset(client: Any, /, name: Any) -> Waiting[None]:
    """Forget the dataset of this name, or of each name in a list. It need not exist.

    The results of its futures are freed, unless clients or other datasets still need them.
    """
    names = cast("list[object]", name) if isinstance(name, list) else [name]
    return ask(_Datasets("", client), "delete", *map(_checked, names))


def _checked(name: Any) -> Any:
    """The name of a dataset. Raises `UsageError` for what cannot be one."""
    checked = _plain(name, LARGEST_DEPTH)
    checked_text("the name of a dataset", repr(checked), MAX_KEY_LENGTH)
    return checked


def _plain(name: Any, depth: int) -> Any:
    if isinstance(name, tuple) and depth:
        return tuple([_plain(part, depth - 1) for part in cast("tuple[object, ...]", name)])
    if isinstance(name, str):
        return checked_text("the name of a dataset", name, MAX_KEY_LENGTH)
    if not isinstance(name, bytes | int | float) or name != name:
        raise UsageError(f"the name of a dataset is text, a number, or a tuple of these, not {name!r:.60}")
    if isinstance(name, int) and not -(2**63) <= name < 2**64:
        raise UsageError("a number that is the name of a dataset has at most 64 bits")
    return name


class PublishedDatasets(MutableMapping[Any, Any]):
    """The datasets of a cluster as a mapping: `client.datasets["flights"]`. Each use asks the scheduler."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<datasets of {self._client!r}>"

    def __getitem__(self, name: Any) -> Any:
        return self._client.get_dataset(name)

    def get(self, name: Any, default: Any = None) -> Any:
        """The dataset of this name, or `default`."""
        return self._client.get_dataset(name, default=default)

    def __setitem__(self, name: Any, value: Any) -> None:
        self._client.publish_dataset(value, name=name)

    def __delitem__(self, name: Any) -> None:
        self._client.unpublish_dataset(name)

    def __contains__(self, name: object) -> bool:
        return name in self._client.list_datasets()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._client.list_datasets())

    def __len__(self) -> int:
        return len(self._client.list_datasets())

    def __aiter__(self) -> NoReturn:
        raise TypeError("this client blocks; use `for name in client.datasets`")


class AsyncPublishedDatasets:
    """The same for Trio: `await client.datasets["flights"]`, `async for name in client.datasets`.

    What Python has no `await` for is a method of the client: `publish_dataset`, `unpublish_dataset`, `list_datasets`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __getitem__(self, name: Any) -> Any:
        return await self._client.get_dataset(name)

    async def get(self, name: Any, default: Any = None) -> Any:
        """The dataset of this name, or `default`."""
        return await self._client.get_dataset(name, default=default)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for name in await self._client.list_datasets():
            yield name

    def __setitem__(self, name: Any, value: Any) -> NoReturn:
        raise TypeError("this cannot be awaited; use `await client.publish_dataset(value, name=...)`")

    def __delitem__(self, name: Any) -> NoReturn:
        raise TypeError("this cannot be awaited; use `await client.unpublish_dataset(name)`")

    def __contains__(self, name: object) -> NoReturn:
        raise TypeError("this cannot be awaited; use `name in await client.list_datasets()`")

    def __iter__(self) -> NoReturn:
        raise TypeError("this cannot be awaited; use `async for name in client.datasets`")

    def __len__(self) -> NoReturn:
        raise TypeError("this cannot be awaited; use `len(await client.list_datasets())`")


class BlockingDatasets(CallForms):
    """The forms of these calls for `Client`."""

    get_dataset = blocking(get_dataset)
    list_datasets = blocking(list_datasets)
    publish_dataset = blocking(publish_dataset)
    unpublish_dataset = blocking(unpublish_dataset)

    @property
    def datasets(self) -> PublishedDatasets:
        """The published datasets: a mapping in `Client`, for `await` and `async for` in `AsyncClient`."""
        return PublishedDatasets(self)


class AsyncDatasets(CallForms):
    """The forms of these calls for `AsyncClient`."""

    get_dataset = awaitable(get_dataset)
    list_datasets = awaitable(list_datasets)
    publish_dataset = awaitable(publish_dataset)
    unpublish_dataset = awaitable(unpublish_dataset)

    @property
    def datasets(self) -> AsyncPublishedDatasets:
        """The published datasets: a mapping in `Client`, for `await` and `async for` in `AsyncClient`."""
        return AsyncPublishedDatasets(self)
