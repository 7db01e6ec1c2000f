"""Copy results to more workers, and spread them evenly: the scheduler plans it, and has it done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from trio_dask.client.call_forms import in_loop
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import states_of
from trio_dask.client.nested_futures import check_cluster, futures_given
from trio_dask.client.task_errors import no_value
from trio_dask.client.task_options import Workers, each_worker, whole_number, worker_names
from trio_dask.client.wait_signals import SettleWaiter
from trio_dask.errors import ClusterError, UsageError
from trio_dask.ids import Key
from trio_dask.protocol.messages import Rebalance, Replicate

FAN_OUT: Final = 2


@in_loop
async def replicate(
    engine: Engine,
    futures: Any,
    n: int | None = None,
    workers: Workers = None,
    branching_factor: int = FAN_OUT,
    asynchronous: object = None,
) -> None:
    """Copy results so that `n` workers hold each of them, or with no `n`, all; surplus copies are dropped.

    It waits for the results first, and then until the copies are there. They spread as a tree: each worker that has a
    result gives it to `branching_factor` others at once. It happens once: when a worker leaves later, its copies are
    not made again. `workers` are those that count, and that get copies; by default all.

    Raises:
      UsageError: there is no such worker.
      ClusterError: a copy could not be made.
    """
    states = await _finished(engine, futures)
    number = 0 if n is None else whole_number("n", n, 1, 2**31)
    fan_out = whole_number("branching_factor", branching_factor, 1, 2**31)
    await _placed(engine, Replicate, _keys(states), number, worker_names(workers), fan_out)


async def add_copies(engine: Engine, states: Sequence[KeyState], number: int, workers: Workers) -> None:
    """Have at least this number (0: all) of these workers hold each of these results. Raises as `replicate` does."""
    await _placed(engine, Replicate, _keys(states), number, worker_names(workers), FAN_OUT, stay=True)


@in_loop
async def rebalance(engine: Engine, futures: Any = None, workers: Workers = None, asynchronous: object = None) -> None:
    """Move results from the workers that hold the most bytes to those that hold the fewest.

    `futures` are the results that may move, by default all; `workers` those that take part, by default all. Tasks may
    run meanwhile: each result is copied first, and a copy that a task still needs where it is goes when that has begun.

    Raises:
      KeyError: there is no such worker.
      ClusterError: a copy could not be made.
    """
    if (futures is not None and not futures) or (workers is not None and not each_worker(workers)):
        return
    states = [] if futures is None else await _finished(engine, futures)
    try:
        await _placed(engine, Rebalance, _keys(states), worker_names(workers))
    except UsageError as error:
        raise KeyError(str(error)) from None


async def _finished(engine: Engine, futures: Any) -> list[KeyState]:
    """The states of these futures, once all of them have results. Raises what a task raised."""
    given = futures_given(futures, "this")
    check_cluster(engine, given)
    states = list(dict.fromkeys(states_of(given)))
    await wait_for_results(engine, states)
    return states


async def wait_for_results(engine: Engine, states: Sequence[KeyState]) -> None:
    """Return once all of these have results. Raises what a task raised."""
    await engine.wait_for_async(states, SettleWaiter(len(states), len(states)))
    for state in states:
        if state.failure is not None:
            raise no_value(state, "")


def _keys(states: Sequence[KeyState]) -> tuple[Key, ...]:
    return tuple([state.key for state in states])


async def _placed(engine: Engine, message: Callable[..., Any], *fields: Any, **more: Any) -> None:
    reply = await engine.request(message, *fields, **more)
    if refused := reply.get("refused"):
        raise UsageError(refused)
    if missing := reply["missing"]:
        raise ClusterError(f"{len(missing)} results could not be copied, {missing[0]!r} for one")
