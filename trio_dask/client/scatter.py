"""Put values of the client onto workers."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from trio_dask.client.core.key_state import KeyState
from trio_dask.client.dask_graphs import key_to_str
from trio_dask.client.engine import Engine
from trio_dask.client.nested_futures import is_dict, is_series, series_like
from trio_dask.client.replicas import add_copies, wait_for_results
from trio_dask.client.task_options import Workers, whole_number, worker_names
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, failure_text
from trio_dask.errors import ClusterError, ProtocolError, UsageError
from trio_dask.ids import Key
from trio_dask.protocol.call_tokens import canonical_token
from trio_dask.protocol.messages import Absent, Put, PutDone
from trio_dask.protocol.picklers import type_name
from trio_dask.protocol.pickling import dump_value

ANSWER_S: Final = 30.0
"""How long a worker that has taken a value may take to say so."""

CHANNELS: Final = 2
PARALLEL_BYTES: Final = 8 * 2**20
"""Up to this size, one channel is faster than opening a second one."""


class ScatterItem(NamedTuple):
    """One pickled value."""

    key: Key
    type_name: str
    frames: list[memoryview]


def scatter_items(data: Any, *, hashed: bool) -> list[ScatterItem]:
    """The values in a list, tuple, set, frozenset or dict, or the one value that `data` is.

    Raises `SerializationError`, which names what cannot be pickled.
    """
    if is_dict(data):
        return [_scatter_item(key_to_str(key), value) for key, value in data.items()]
    return [_scatter_item(None, value, hashed=hashed) for value in (data if is_series(data) else (data,))]


def _scatter_item(key: Key | None, value: object, *, hashed: bool = False) -> ScatterItem:
    frames = [memoryview(frame).cast("B") for frame in dump_value(value)]
    kind = type(value)
    if key is None:
        token = canonical_token(value, bytes(frames[0])) if hashed else secrets.token_bytes(16)
        key = f"{kind.__name__}-{token.hex()}"
    return ScatterItem(key, type_name(kind), frames)


def reshaped(data: Any, futures: Sequence[Any]) -> Any:
    """The futures in the shape of the data."""
    if is_dict(data):
        return dict(zip(data, futures, strict=True))
    return series_like(data, futures) if is_series(data) else futures[0]


async def put_all(
    engine: Engine, items: Sequence[ScatterItem], states: Sequence[KeyState], workers: Workers, broadcast: bool | int
) -> None:
    """Send each value to one worker, by turns, unless it is there already; wait until it counts as a result.

    With `broadcast` the workers then copy it among themselves until as many have it (True: all).

    Raises `UsageError` if there is no such worker, `ClusterError` if no worker takes a value.
    """
    number = 0 if isinstance(broadcast, bool) else whole_number("broadcast", broadcast, 0, 2**31)
    addresses = await _targets(engine, workers)
    missing = [item for item, state in zip(items, states, strict=True) if state.status == "pending"]
    missing = list({item.key: item for item in missing}.values())
    turns = _turns(addresses)
    loads: dict[str, deque[ScatterItem]] = {address: deque() for address in addresses}
    for item in missing:
        loads[next(turns)].append(item)
    failures: list[str] = []
    stranded: list[ScatterItem] = []
    async with trio.open_nursery() as nursery:
        for address, load in loads.items():
            if load:
                nursery.start_soon(_put_each, engine, address, load, failures, stranded)
    for item in stranded:
        await _put_anywhere(engine, item, addresses, failures)
    await wait_for_results(engine, states)
    if states and (broadcast is True or number > 1):
        await add_copies(engine, states, number, workers)


async def _targets(engine: Engine, workers: Workers) -> dict[str, int]:
    """The threads of the workers that may hold the data, by address. Waits for the first worker if there is none."""
    names = worker_names(workers)
    if not names:
        await engine.ask("wait_for_workers", ("1",))
    found: Mapping[str, int] = await engine.ask("nthreads", names)
    if not found:
        raise UsageError(f"there is no worker {names[0]!r}" if names else "there are no workers")
    return dict(found)


def _turns(addresses: Mapping[str, int]) -> Iterator[str]:
    """The workers in turn, each as often as it has threads, without end."""
    while True:
        for turn in range(max(addresses.values())):
            for address, threads in addresses.items():
                if turn < max(threads, 1):
                    yield address


async def _put_each(
    engine: Engine, address: str, load: deque[ScatterItem], failures: list[str], stranded: list[ScatterItem]
) -> None:
    """Send large values over several channels at once: copying one takes little longer than its confirmation."""
    found: list[str] = []
    nbytes = sum(len(frame) for item in load for frame in item.frames)
    async with trio.open_nursery() as nursery:
        for _ in range(min(CHANNELS, len(load)) if nbytes > PARALLEL_BYTES else 1):
            nursery.start_soon(_put_load, engine, address, load, found)
    if load:
        failures += found
        stranded += load


async def _put_load(engine: Engine, address: str, load: deque[ScatterItem], failures: list[str]) -> None:
    try:
        await engine.channels.exchange(address, partial(_put_over, engine.incarnation, load))
    except CHANNEL_FAILURES as error:
        failures.append(failure_text(address, error))


async def _put_over(incarnation: str, load: deque[ScatterItem], channel: Channel) -> None:
    while load:
        item = load.popleft()
        try:
            await _put(incarnation, item, channel)
        except BaseException:  # whatever cut it short, the item is not confirmed
            load.appendleft(item)
            raise


async def _put(incarnation: str, item: ScatterItem, channel: Channel) -> None:
    sizes = tuple(len(frame) for frame in item.frames)
    await channel.send(Put(item.key, incarnation, item.type_name, sizes), item.frames)
    try:
        with trio.fail_after(ANSWER_S):  # the worker may be stopped, and would answer only when it goes on
            message, _ = await channel.receive()
    except trio.TooSlowError:
        raise ClusterError(f"{item.key!r} was sent but not confirmed within {ANSWER_S:g} s") from None
    if isinstance(message, Absent):
        raise ClusterError(message.text)
    if not isinstance(message, PutDone) or message.key != item.key:
        raise ProtocolError(f"a Put was answered with {type(message).__name__}")


async def _put_anywhere(engine: Engine, item: ScatterItem, addresses: Mapping[str, int], failures: list[str]) -> None:
    for address in addresses:
        load = deque([item])
        await _put_load(engine, address, load, failures)
        if not load:
            return
    raise ClusterError(f"no worker accepted {item.key!r}: {failures[-1]}")
