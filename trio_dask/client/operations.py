"""Calls that ask the cluster, or tell it something, and wait for the answer: each is defined once.

They run in the loop of the client's engine. Their blocking forms and those for Trio stand at the end.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import trio

from trio_dask.client.call_forms import (
    CallForms,
    Done,
    ForCall,
    HasEngine,
    Timeout,
    Waiting,
    awaitable,
    blocking,
    in_loop,
)
from trio_dask.client.dask_graphs import key_to_str
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture
from trio_dask.client.nanny_calls import Returned, call_nanny, check_nannies, check_size, returned
from trio_dask.client.nested_futures import all_futures_in, materialize
from trio_dask.client.option_conflicts import unambiguous
from trio_dask.client.replicas import rebalance, replicate
from trio_dask.client.task_options import Workers, each_worker, whole_number, worker_names
from trio_dask.client.wait_signals import limit, within
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, failure_text
from trio_dask.errors import ClusterError, ProtocolError, UsageError
from trio_dask.html_cards import SchedulerInfo
from trio_dask.ids import Key, WorkerName, given_name, name_of, places_of
from trio_dask.protocol.messages import Call, CallResult, Restart, RestartWorkers, Retire
from trio_dask.protocol.pickling import dump_value

OnError: TypeAlias = Literal["raise", "return", "ignore"]
WorkerInfo: TypeAlias = Mapping[str, Any]


@in_loop
async def who_has(engine: Engine, futures: Any = None) -> dict[Key, tuple[str, ...]]:
    """The addresses of the workers that hold each result, by key."""
    return {key: tuple(holders) for key, holders in (await _about_keys(engine, "who_has", futures)).items()}


@in_loop
async def has_what(engine: Engine, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
    """The keys of the results that each worker holds, by address."""
    return {address: tuple(keys) for address, keys in (await _about_workers(engine, "has_what", workers)).items()}


@in_loop
async def processing(engine: Engine, workers: Workers = None) -> dict[str, tuple[Key, ...]]:
    """The keys of the tasks that each worker has been given and not finished, by address."""
    return {address: tuple(keys) for address, keys in (await _about_workers(engine, "processing", workers)).items()}


@in_loop
async def nthreads(engine: Engine, workers: Workers = None) -> dict[str, int]:
    """How many threads each worker has, by address."""
    return await _about_workers(engine, "nthreads", workers)


@in_loop
async def nbytes(engine: Engine, keys: Any = None, summary: bool = True) -> dict[Key, int]:
    """The sizes of results in bytes, by name of the function; without `summary`, by key."""
    sizes = await _about_keys(engine, "nbytes", keys)
    if not summary:
        return sizes
    sums: dict[Key, int] = {}
    for key, size in sizes.items():
        name = name_of(key)
        sums[name] = sums.get(name, 0) + size
    return sums


@in_loop
async def scheduler_info(engine: Engine, /, *_: object, **__: object) -> SchedulerInfo:
    """What the scheduler says of itself and of its workers. Arguments mean nothing here."""
    info: dict[str, Any] = await engine.ask("scheduler_info")
    workers: Collection[WorkerInfo] = info["workers"].values()
    return SchedulerInfo(
        {
            "address": engine.address,
            "n_workers": len(workers),
            "total_threads": sum(worker["nthreads"] for worker in workers),
            "total_memory": sum(worker.get("memory_limit") or 0 for worker in workers),
            **info,
            "workers": {address: _shown(worker) for address, worker in info["workers"].items()},
        }
    )


@in_loop
async def story(engine: Engine, *keys_or_futures: Any) -> list[tuple[float, Key, str]]:
    """The last steps of tasks that the scheduler remembers: its time in seconds, the key, what happened."""
    keys = [future.key if isinstance(future, BaseFuture) else key_to_str(future) for future in keys_or_futures]
    return [tuple(step) for step in await engine.ask("story", keys)]


@in_loop
async def wait_for_workers(engine: Engine, n_workers: int = 1, timeout: Timeout = None) -> None:
    """Wait until there are this many workers.

    Raises:
      UsageError: `n_workers` is no whole number from 1 on.
      TimeoutError: they are not there in time.
    """
    if type(n_workers) is not int:
        raise UsageError(f"n_workers must be a whole number from 1 on, such as 2, not {n_workers!r:.60}")
    number = whole_number("n_workers", n_workers, 1, 2**31)
    with limit(timeout):
        await engine.ask("wait_for_workers", (str(number),))
        return
    there = len(await engine.ask("nthreads"))
    if there >= number:
        return
    raise TimeoutError(f"only {there} of {n_workers} workers arrived {within(timeout)}")


async def _about_keys(engine: Engine, what: str, futures: Any) -> dict[Key, Any]:
    """Ask about keys, given as futures (alone, nested, in collections) or names; about all keys if none are given."""
    if futures is None:
        keys: list[Key] = []
    elif isinstance(futures, str):
        keys = [key_to_str(futures)]
    else:
        futures = materialize(futures)
        keys = [future.key for future in all_futures_in(futures)]
        if not keys and not hasattr(futures, "__dask_graph__"):
            try:
                names: list[Any] = list(futures)
            except TypeError:
                raise TypeError(f"expected futures or keys, or a list of them, not {futures!r:.60}") from None
            keys = [key_to_str(name) for name in names]
        if not keys:
            return {}
    return dict(await engine.ask(what, keys))


async def _about_workers(engine: Engine, what: str, workers: Workers) -> dict[str, Any]:
    """Ask about the workers of these names or addresses; about all workers if none are given."""
    return dict(await engine.ask(what, worker_names(workers)))


@in_loop
async def restart(engine: Engine, timeout: Timeout = None, wait_for_workers: bool = True) -> None:
    """Cancel everything of every client, and restart all workers.

    Nannies give their workers new processes. A worker without a nanny that is a program of its own ends, and whatever
    started it may start another one in its place; one that shares its process with others begins afresh in it.

    Raises `TimeoutError` if, after `timeout`, there are not as many workers as before.
    """
    known: Mapping[str, WorkerInfo] = {}
    missing: Sequence[str] = ()
    with limit(timeout) as scope:
        engine.cancel_all("the cluster was restarted")
        known = (await engine.ask("scheduler_info"))["workers"]
        missing = (await engine.request(Restart))["missing"]
    if wait_for_workers and (scope.cancelled_caught or missing):
        which = "not all workers came back in time"
        if missing:
            which = f"these workers did not come back in time: {', '.join(missing)}"
        lone = {worker["name"] for worker in known.values() if not worker["nanny"]}
        if missing:
            lone &= set(missing)
        hint = f"; these have no nanny, and whatever started them has to start others: {', '.join(sorted(lone))}"
        raise TimeoutError(f"after the restart {which}{hint if lone else ''}")


@in_loop
async def restart_workers(
    engine: Engine, workers: Workers, timeout: Timeout = None, raise_for_error: bool = True
) -> dict[WorkerName, str]:
    """Have the nannies of some workers give them new processes; what only they held is computed again.

    Returns "OK" or "timed out" for each, by the name given here.

    Raises:
      UsageError: there is no such worker, or it has no nanny.
      TimeoutError: one is not back after `timeout` (at most 30 s), unless `raise_for_error` is False.
    """
    asked = each_worker(workers)
    names = worker_names(asked)
    if not names:
        raise UsageError("restart_workers() needs the names of workers; use restart() to restart all of them")
    meant = await _workers_meant(engine, names)
    if bare := sorted({where for found in meant.values() for where, worker in found.items() if not worker["nanny"]}):
        raise UsageError(
            f"restart_workers() requires a nanny, and {', '.join(bare)} {'has' if len(bare) == 1 else 'have'} none; "
            "restart() is for all workers, with a nanny or without"
        )
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
        given: "timed out" if any(worker["name"] in late for worker in meant[name].values()) else "OK"
        for given, name in zip(asked, names, strict=True)
    }


@in_loop
async def retire_workers(
    engine: Engine, workers: Workers = None, close_workers: bool = True, remove: bool = True, n: int | None = None
) -> dict[str, dict[str, Any]]:
    """Have workers leave without losing anything: they finish what runs, and others take over what only they hold.

    Actors whose class says `movable = True` move to other workers.

    Args:
      workers: names, addresses, hosts or numbers of the workers.
      n: instead of them, how many; those with the least to do go first.

    Returns the descriptions of the workers that have left, by address.

    Raises:
      UsageError: there is no such worker.
      ClusterError: no other worker can take what they hold, an actor cannot move, or they are still needed; the message
        says why.
    """
    if not close_workers or not remove:
        raise UsageError("a retired worker always leaves and ends; close_workers and remove cannot be False")
    if (workers is None) == (n is None):
        raise UsageError("retire_workers() takes either workers, or n to let the scheduler choose n workers")
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 0):
        raise UsageError(f"retire_workers() takes a number of workers as n, not {n!r}")
    meant = await _workers_meant(engine, worker_names(workers))
    known: Mapping[str, WorkerInfo] = (await engine.ask("scheduler_info"))["workers"]
    if not meant and not n:
        return {}
    reply = await engine.request(Retire, tuple(meant), int(n or 0))
    gone = frozenset(reply.get("retired", ()))
    if refused := reply.get("refused"):
        before = f"; {', '.join(sorted(gone))} had left before" if gone else ""
        raise ClusterError(f"the workers were not retired: {refused}{before}")
    return {address: _shown(worker) for address, worker in known.items() if worker["name"] in gone}


def _shown(worker: WorkerInfo) -> dict[str, Any]:
    """A worker's description as users read it."""
    return {**worker, "name": given_name(worker["name"])}


async def _workers_meant(engine: Engine, names: Sequence[str]) -> dict[str, dict[str, WorkerInfo]]:
    """The workers that each of these names, addresses (with or without scheme) or hosts means.

    Raises `UsageError` for one that means none.
    """
    if not names:
        return {}
    known: Mapping[str, WorkerInfo] = (await engine.ask("scheduler_info"))["workers"]
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


@unambiguous
def run(
    client: HasEngine,
    function: Callable[..., Any],
    /,
    *args: Any,
    workers: Workers = None,
    wait: bool = True,
    nanny: bool = False,
    on_error: OnError = "raise",
    **kwargs: Any,
) -> Waiting[dict[str, Any] | None]:
    """Call a function in the process of each worker, outside of its task slots; what it returned, by address.

    `async def` functions run under Trio, others in a thread. A parameter `dask_worker` gets the worker, as
    `get_worker()` gives it in a task. `workers` are names or addresses; an empty list means none. What the function
    raises is raised here; with `on_error="return"` it stands in the result's place, with `"ignore"` such workers are
    left out. Without `wait` nothing is returned, and errors are logged. A worker that has just begun sets up its
    plugins first.

    With `nanny` the function runs in the processes of the workers' nannies, and `dask_worker` is the `NannyHandle` that
    modules of `--preload-nanny` get; the answers stand by the addresses of the workers all the same. The function with
    its arguments, and each answer, may have 48 MiB.

    Raises:
      Exception: what the function raised on a worker, the first of them.
      ClusterError: a worker, or its nanny, was lost.
      UsageError: there is no such worker, or it has no nanny.
    """
    if not callable(function):
        raise TypeError(f"run() takes a function and its arguments, not {function!r:.60}")
    if on_error not in ("raise", "return", "ignore"):
        raise UsageError(f"on_error must be 'raise', 'return' or 'ignore', not {on_error!r}")
    engine = client.engine
    if workers is not None and not worker_names(workers):
        return Done({})
    operation = partial(_run, engine, function, args, kwargs, workers, on_error, in_nannies=nanny)
    if wait:
        return ForCall(engine, operation)
    engine.start(operation)
    return Done(None)


async def _run(
    engine: Engine,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    workers: Workers,
    on_error: OnError,
    limit_s: float = math.inf,
    *,
    repeatable: bool = False,
    in_nannies: bool = False,
) -> dict[str, Any]:
    question = "nannies" if in_nannies else "scheduler_info" if repeatable else "ready_workers"
    described = await described_workers(engine, workers, question)
    addresses = list(described)
    frames = [memoryview(frame).cast("B") for frame in dump_value((function, args, dict(kwargs)))]
    call: Callable[[str], Awaitable[Returned]] = partial(_call_worker, engine, frames, repeatable)
    if in_nannies:
        check_nannies(described)
        check_size(frames)
        call = partial(call_nanny, engine, tuple(map(bytes, frames)))
    outcomes: dict[str, Any] = {}
    errors: dict[str, BaseException] = {}

    async def call_one(address: str) -> None:
        value: Any = None
        raised: BaseException | None = TimeoutError(f"it did not answer within {limit_s:g} s")
        with trio.move_on_after(limit_s):
            value, raised = await call(address)
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


async def call_workers(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...], workers: Workers, limit_s: float = math.inf
) -> dict[str, Any]:
    """What a function of ours returns in the process of each worker, by address; without those that do not answer.

    It only looks, so that it may be called twice if a connection is lost.
    """
    return await _run(engine, function, args, {}, workers, "ignore", limit_s, repeatable=True)


async def outcomes_of_workers(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...], limit_s: float
) -> dict[str, Any]:
    """The same with an exception in the place of what was not returned, or not in time."""
    return await _run(engine, function, args, {}, None, "return", limit_s, repeatable=True)


async def described_workers(
    engine: Engine, workers: Workers, question: str = "scheduler_info"
) -> Mapping[str, WorkerInfo]:
    """What the scheduler says of these workers, given by name or address, or of all; by address.

    With the question `ready_workers` it waits for those that are setting up plugins.

    Raises `UsageError` for one that is not there.
    """
    names = worker_names(workers)
    info: Mapping[str, WorkerInfo] = (await engine.ask(question, names))["workers"]
    known = set(info) | {str(worker["name"]) for worker in info.values()}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no worker {name!r}")
    return info


async def _call_worker(engine: Engine, frames: Sequence[memoryview], repeatable: bool, address: str) -> Returned:
    try:
        return await engine.channels.exchange(address, partial(_call, frames, address), repeatable=repeatable)
    except CHANNEL_FAILURES as error:
        return None, ClusterError(f"the call could not be made: {failure_text(address, error)}")


async def _call(frames: Sequence[memoryview], address: str, channel: Channel) -> Returned:
    """What the function returned or raised, apart from failures of the channel."""
    await channel.send(Call(tuple(map(len, frames))), frames)
    message, result = await channel.receive()
    if not isinstance(message, CallResult):
        raise ProtocolError(f"a call was answered with {type(message).__name__}")
    return returned(message.ok, message.text, result, address)


def run_on_scheduler(client: HasEngine, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Waiting[Any]:
    """Not available: a scheduler of trio_dask never unpickles anything. Raises `UsageError`."""
    raise UsageError(
        "run_on_scheduler is not available: the scheduler never unpickles anything, so it cannot run functions; "
        "use who_has, has_what, processing, nbytes or scheduler_info, or client.run to run on the workers"
    )


class BlockingOperations(CallForms):
    """The forms of these calls for `Client`."""

    has_what = blocking(has_what)
    nbytes = blocking(nbytes)
    nthreads = blocking(nthreads)
    ncores = nthreads
    processing = blocking(processing)
    rebalance = blocking(rebalance)
    replicate = blocking(replicate)
    restart = blocking(restart)
    restart_workers = blocking(restart_workers)
    retire_workers = blocking(retire_workers)
    run = blocking(run, waits_if="wait")
    run_on_scheduler = blocking(run_on_scheduler)
    scheduler_info = blocking(scheduler_info)
    story = blocking(story)
    wait_for_workers = blocking(wait_for_workers)
    who_has = blocking(who_has)


class AsyncOperations(CallForms):
    """The forms of these calls for `AsyncClient`."""

    has_what = awaitable(has_what)
    nbytes = awaitable(nbytes)
    nthreads = awaitable(nthreads)
    ncores = nthreads
    processing = awaitable(processing)
    rebalance = awaitable(rebalance)
    replicate = awaitable(replicate)
    restart = awaitable(restart)
    restart_workers = awaitable(restart_workers)
    retire_workers = awaitable(retire_workers)
    run = awaitable(run)
    run_on_scheduler = awaitable(run_on_scheduler)
    scheduler_info = awaitable(scheduler_info)
    story = awaitable(story)
    wait_for_workers = awaitable(wait_for_workers)
    who_has = awaitable(who_has)
