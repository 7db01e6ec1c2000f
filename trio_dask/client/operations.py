"""What asks the cluster and waits for the answer: written once, for Trio; the blocking client runs it in its loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import trio

from trio_dask.client.dask_graphs import wire_key
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture, Timeout
from trio_dask.client.nested_futures import concrete, futures_in
from trio_dask.client.task_options import Workers, whole, worker_names
from trio_dask.client.wait_signals import limit
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, failure_text
from trio_dask.errors import ClusterError, ProtocolError, UsageError
from trio_dask.ids import Key, places_of
from trio_dask.protocol.messages import Call, CallResult, RestartWorkers, Retire
from trio_dask.protocol.pickling import dump_value, load_value, rebuild_exception

__all__ = [
    "NO_RUN_ON_SCHEDULER",
    "OnError",
    "ask_keys",
    "ask_workers",
    "has_what",
    "nbytes",
    "processing",
    "refuse_nanny",
    "restart",
    "restart_workers",
    "retire_workers",
    "run",
    "scheduler_info",
    "story",
    "time_limit",
    "wait_for_workers",
    "who_has",
    "worker_addresses",
]

OnError: TypeAlias = Literal["raise", "return", "ignore"]

NO_RUN_ON_SCHEDULER = (
    "run_on_scheduler is not available: the scheduler never unpickles anything, so it cannot run functions; "
    "use who_has, has_what, processing, nbytes or scheduler_info, or client.run to run on the workers"
)


async def ask_keys(engine: Engine, what: str, futures: Any) -> dict[Key, Any]:
    """Put a question about keys: of futures (nested in whatever), or texts; all keys if there are none."""
    if futures is None:
        keys: list[Key] = []
    elif isinstance(futures, str):
        keys = [wire_key(futures)]
    else:
        futures = concrete(futures)
        keys = [future.key for future in futures_in(futures)]
        if not keys:
            try:
                names: list[Any] = list(futures)
            except TypeError:
                raise TypeError(f"expected futures or keys, or a list of them, not {futures!r:.60}") from None
            keys = [wire_key(name) for name in names]
        if not keys:
            return {}
    return dict(await engine.ask(what, keys))


async def ask_workers(engine: Engine, what: str, workers: Workers) -> dict[str, Any]:
    """Put a question about workers: those of these names or addresses, all if there are none."""
    return dict(await engine.ask(what, worker_names(workers)))


async def who_has(engine: Engine, futures: Any) -> dict[Key, tuple[str, ...]]:
    """Which workers hold the results of these keys."""
    return {key: tuple(holders) for key, holders in (await ask_keys(engine, "who_has", futures)).items()}


async def has_what(engine: Engine, workers: Workers) -> dict[str, tuple[Key, ...]]:
    """Which keys these workers hold."""
    return {address: tuple(keys) for address, keys in (await ask_workers(engine, "has_what", workers)).items()}


async def processing(engine: Engine, workers: Workers) -> dict[str, tuple[Key, ...]]:
    """Which tasks these workers have been given and not finished."""
    return {address: tuple(keys) for address, keys in (await ask_workers(engine, "processing", workers)).items()}


async def nbytes(engine: Engine, keys: Any, summary: bool) -> dict[Key, int]:
    """The sizes of results, by key; as a `summary` the sum for all keys of one name."""
    sizes = await ask_keys(engine, "nbytes", keys)
    if not summary:
        return sizes
    sums: dict[Key, int] = {}
    for key, size in sizes.items():
        name = key.rpartition("-")[0] or key
        sums[name] = sums.get(name, 0) + size
    return sums


async def scheduler_info(engine: Engine) -> dict[str, Any]:
    """What the scheduler says of itself and its workers."""
    info: dict[str, Any] = await engine.ask("scheduler_info")
    workers: Collection[Mapping[str, Any]] = info["workers"].values()
    return {
        "address": engine.address,
        "n_workers": len(workers),
        "total_threads": sum(worker["nthreads"] for worker in workers),
        "total_memory": sum(worker.get("memory_limit") or 0 for worker in workers),
        **info,
    }


async def story(engine: Engine, futures: tuple[Any, ...]) -> list[tuple[float, Key, str]]:
    """The last steps of these tasks, in order: the scheduler's time in seconds, the key, what happened."""
    keys = [future.key if isinstance(future, BaseFuture) else wire_key(future) for future in futures]
    return [tuple(step) for step in await engine.ask("story", keys)]


async def wait_for_workers(engine: Engine, n_workers: int, timeout: Timeout) -> None:
    """Return once there are this many workers. Raises `TimeoutError` if that is not in time."""
    number = whole("n_workers", n_workers, 0, 2**31)
    with limit(timeout):
        await engine.ask("wait_for_workers", (str(number),))
        return
    there = len(await engine.ask("nthreads"))
    raise TimeoutError(f"only {there} of {n_workers} workers arrived within {timeout} s")


async def restart(engine: Engine, timeout: Timeout, wait_for_workers: bool) -> None:
    """Have all workers begin afresh. Raises `TimeoutError` if not all are back in time."""
    missing: Sequence[str] = ()
    with limit(timeout) as scope:
        missing = (await engine.restart())["missing"]
    if wait_for_workers and (scope.cancelled_caught or missing):
        raise TimeoutError(f"after the restart these workers did not come back in time: {', '.join(missing) or 'all'}")


async def restart_workers(engine: Engine, workers: Workers, timeout: Timeout, raise_for_error: bool) -> dict[str, str]:
    """Have these workers begin afresh; "OK" or "timed out" for each, by the name that was given.

    Raises `UsageError` for one that is not there, `TimeoutError`, unless told otherwise, if one is not back in time.
    """
    if not worker_names(workers):
        raise UsageError("restart_workers() needs the names of workers; use restart() to restart all of them")
    meant = await _workers_meant(engine, workers)
    missing: Sequence[str] = [str(worker["name"]) for found in meant.values() for worker in found.values()]
    with limit(timeout):
        reply = await engine.request(RestartWorkers, tuple(meant))
        if "refused" in reply:
            raise UsageError(f"restart_workers(): {reply['refused']}")
        missing = reply["missing"]
    if missing and raise_for_error:
        raise TimeoutError(f"these workers did not come back in time: {', '.join(sorted(set(missing)))}")
    late = frozenset(missing)
    return {
        name: "timed out" if any(worker["name"] in late for worker in found.values()) else "OK"
        for name, found in meant.items()
    }


async def retire_workers(
    engine: Engine, workers: Workers, n: int | None, close_workers: bool, remove: bool
) -> dict[str, dict[str, Any]]:
    """Have these workers leave, or `n` of the scheduler's choice; what they said of themselves, by address.

    Raises `UsageError` for wrong arguments, `ClusterError` where their results have nowhere to go.
    """
    if not close_workers or not remove:
        raise UsageError("a retired worker always leaves and ends; close_workers and remove cannot be False")
    if (workers is None) == (n is None):
        raise UsageError("retire_workers() takes either workers, or n to let the scheduler choose n workers")
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 0):
        raise UsageError(f"retire_workers() takes a number of workers as n, not {n!r}")
    meant = await _workers_meant(engine, workers)
    known: Mapping[str, Mapping[str, Any]] = (await engine.ask("scheduler_info"))["workers"]
    if not meant and not n:
        return {}
    reply = await engine.request(Retire, tuple(meant), int(n or 0))
    gone = frozenset(reply.get("retired", ()))
    if refused := reply.get("refused"):
        before = f"; {', '.join(sorted(gone))} had left before" if gone else ""
        raise ClusterError(f"the workers were not retired: {refused}{before}")
    return {address: dict(worker) for address, worker in known.items() if worker["name"] in gone}


async def _workers_meant(engine: Engine, workers: Workers) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By each of these names, addresses (with or without scheme) or hosts: the workers that it means.

    Raises `UsageError` for one that means none.
    """
    names = worker_names(workers)
    if not names:
        return {}
    known: Mapping[str, Mapping[str, Any]] = (await engine.ask("scheduler_info"))["workers"]
    meant = {
        name: {
            address: worker
            for address, worker in known.items()
            if name in (worker["name"], worker["host"], *places_of(address))
        }
        for name in names
    }
    for name, found in meant.items():
        if not found:
            raise UsageError(f"there is no worker {name!r}")
    return meant


async def worker_addresses(engine: Engine, workers: Workers) -> list[str]:
    """The addresses of these workers, given by name or address; of all, if none are given.

    Raises `UsageError` for one that is not there.
    """
    names = worker_names(workers)
    info: Mapping[str, Mapping[str, Any]] = (await engine.ask("scheduler_info", names))["workers"]
    known = set(info) | {str(worker["name"]) for worker in info.values()}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no worker {name!r}")
    return list(info)


async def run(
    engine: Engine,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    workers: Workers,
    on_error: OnError,
) -> dict[str, Any]:
    """Call a function in the process of each worker, outside of its slots; what it returned, by address.

    With `on_error="return"` an exception stands in the place of the result, with `"ignore"` such a worker is left out.
    """
    if not callable(function):
        raise TypeError(f"run() takes a function and its arguments, not {function!r:.60}")
    if on_error not in ("raise", "return", "ignore"):
        raise UsageError(f"on_error must be 'raise', 'return' or 'ignore', not {on_error!r}")
    addresses = await worker_addresses(engine, workers)
    frames = [memoryview(frame).cast("B") for frame in dump_value((function, args, dict(kwargs)))]
    outcomes: dict[str, Any] = {}
    errors: dict[str, BaseException] = {}

    async def call_one(address: str) -> None:
        try:
            use = partial(_call, frames, address)
            value, raised = await engine.channels.exchange(address, use, repeatable=False)
        except CHANNEL_FAILURES as error:
            errors[address] = ClusterError(f"the call could not be made: {failure_text(address, error)}")
        else:
            if raised is None:
                outcomes[address] = value
            else:
                errors[address] = raised

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(call_one, address)
    if errors and on_error == "raise":
        try:
            raise next(errors[address] for address in addresses if address in errors)
        finally:
            errors.clear()  # a traceback that holds this frame would keep itself, and the caller's variables
    if on_error == "return":
        outcomes |= errors
    return {address: outcomes[address] for address in addresses if address in outcomes}


def refuse_nanny(nanny: bool) -> None:
    """Raise `UsageError` if a call should run in nannies."""
    if nanny:
        raise UsageError("functions run in workers, not in their nannies; leave out nanny=True")


@contextmanager
def time_limit(timeout: Timeout, what: str) -> Generator[None]:
    """Raise `TimeoutError` if the block takes longer."""
    with limit(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(f"{what} was not done within {timeout} s")


async def _call(
    frames: Sequence[memoryview], address: str, channel: Channel
) -> tuple[Any, None] | tuple[None, BaseException]:
    """What the called function returned or raised: the latter must not be taken for a failure of the channel."""
    await channel.send(Call(tuple(map(len, frames))), frames)
    message, result = await channel.receive()
    if not isinstance(message, CallResult):
        raise ProtocolError(f"a call was answered with {type(message).__name__}")
    try:
        if message.ok:
            return load_value(result), None
        description = bytes(result[0]) if result else None
        return None, rebuild_exception(description, message.text, key="client.run", worker=address, attempt=1)
    except Exception as error:  # unpickling runs the user's code; the caller raises it, or gives it back
        return None, error
