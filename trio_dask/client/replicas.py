"""Copy results to more workers, and spread them evenly: the client decides, the scheduler has it done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from trio_dask.client.call_forms import in_loop
from trio_dask.client.engine import Engine
from trio_dask.client.futures import states_of
from trio_dask.client.nested_futures import futures_given
from trio_dask.client.task_errors import no_value
from trio_dask.client.task_options import Workers, each_worker, whole_number, worker_names
from trio_dask.client.wait_signals import SettleWaiter
from trio_dask.errors import ClusterError, UsageError
from trio_dask.ids import Key, places_of
from trio_dask.protocol.messages import Replicate


class _Place(NamedTuple):
    """One copy of one result."""

    key: Key
    address: str


@in_loop
async def replicate(
    engine: Engine,
    futures: Any,
    n: int | None = None,
    workers: Workers = None,
    branching_factor: object = None,
    asynchronous: object = None,
) -> None:
    """Copy results so that `n` workers hold each of them, or with no `n`, all; surplus copies are dropped.

    It waits for the results first. `workers` are those that count, and that get copies; by default all.

    Raises:
      UsageError: there is no such worker.
      ClusterError: a copy could not be made.
    """
    keys = await _finished(engine, futures)
    loads = await _loads(engine, workers)
    number = len(loads) if n is None else min(whole_number("n", n, 1, 2**31), len(loads))
    if not keys:
        return
    holders: Mapping[Key, Collection[str]] = await engine.ask("who_has", keys)
    sizes: Mapping[Key, int] = await engine.ask("nbytes", keys)
    copies: list[_Place] = []
    surplus: list[_Place] = []
    for key in keys:
        there = [address for address in holders[key] if address in loads]
        missing = number - len(there)
        if missing > 0:
            others = sorted(loads.keys() - set(there), key=lambda address: (loads[address], address))
            for address in others[:missing]:
                copies.append(_Place(key, address))
                loads[address] += sizes.get(key, 0)
        elif missing < 0 and n is not None:
            surplus += [_Place(key, address) for address in there[missing:]]
    await _change(engine, copies, surplus)


@in_loop
async def rebalance(engine: Engine, futures: Any = None, workers: Workers = None, asynchronous: object = None) -> None:
    """Move results from the workers that hold the most bytes to those that hold the fewest.

    `futures` are the results that may move, by default all; `workers` those that take part, by default all.

    Raises:
      KeyError: there is no such worker.
      ClusterError: a copy could not be made.
    """
    if (futures is not None and not futures) or (workers is not None and not each_worker(workers)):
        return
    keys = [] if futures is None else await _finished(engine, futures)
    try:
        loads = await _loads(engine, workers)
    except UsageError as error:
        raise KeyError(str(error)) from None
    holders = {key: list(found) for key, found in (await engine.ask("who_has", keys)).items()}
    moves = _moves(holders, await engine.ask("nbytes", keys), loads)
    await _change(engine, list(moves.values()), [])
    await _change(engine, [], list(moves))


def _moves(
    holders: Mapping[Key, Collection[str]], sizes: Mapping[Key, int], loads: dict[str, int]
) -> dict[_Place, _Place]:
    """Which copies move where, so that the loads become as equal as they can; `loads` has them afterwards."""
    stacks: dict[str, list[tuple[int, Key]]] = {address: [] for address in loads}
    for key, size in sizes.items():
        for address in holders.get(key, ()):
            if address in stacks:
                stacks[address].append((size, key))
    for stack in stacks.values():
        stack.sort()
    moves: dict[_Place, _Place] = {}
    moved: set[Key] = set()
    while sources := [address for address, stack in stacks.items() if stack]:
        source = max(sources, key=loads.__getitem__)
        target = min(loads, key=loads.__getitem__)
        size, key = stacks[source].pop()
        if key not in moved and target not in holders[key] and loads[target] + size <= loads[source] - size:
            moved.add(key)
            moves[_Place(key, source)] = _Place(key, target)
            loads[source] -= size
            loads[target] += size
    return moves


async def _finished(engine: Engine, futures: Any) -> list[Key]:
    """The keys of these futures, once all of them have results. Raises what a task raised."""
    states = list(dict.fromkeys(states_of(futures_given(futures, "this"))))
    await engine.wait_for_async(states, SettleWaiter(len(states), len(states)))
    for state in states:
        if state.failure is not None:
            raise no_value(state, "")
    return [state.key for state in states]


async def _loads(engine: Engine, workers: Workers) -> dict[str, int]:
    """The bytes of results that each of these workers (names, addresses or hosts; by default all) holds, by address."""
    known: Mapping[str, Mapping[str, Any]] = (await engine.ask("scheduler_info"))["workers"]
    names = worker_names(workers)
    if not names:
        return {address: worker["managed_bytes"] for address, worker in known.items()}
    loads: dict[str, int] = {}
    for name in names:
        found = {
            address: worker["managed_bytes"]
            for address, worker in known.items()
            if name in (worker["name"], worker["host"], *places_of(address))
        }
        if not found:
            raise UsageError(f"there is no worker {name!r}")
        loads |= found
    return loads


async def _change(engine: Engine, copies: list[_Place], surplus: list[_Place]) -> None:
    if copies or surplus:
        reply = await engine.request(Replicate, tuple(copies), tuple(surplus))
        if missing := reply["missing"]:
            raise ClusterError(f"{len(missing)} copies could not be made, that of {missing[0]!r} for one")
