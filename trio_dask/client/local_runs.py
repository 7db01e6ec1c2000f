"""Run a task of the cluster here, as it runs on a worker: to look at it with a debugger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any

import trio

from trio_dask.client.call_forms import CallForms, ForCall, HasEngine, Waiting, awaitable, blocking
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import states_of
from trio_dask.client.nested_futures import futures_given, values_of
from trio_dask.client.wait_signals import SettleWaiter, ValueReader
from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.protocol.messages import KeyFailed
from trio_dask.protocol.pickled_calls import COMPUTED
from trio_dask.protocol.pickled_nodes import GivenArguments
from trio_dask.protocol.pickling import load_call, load_function


@dataclass(slots=True, eq=False)
class _ForRun:
    """The outcome of a task that runs here, with what it was given."""

    given: ForCall[Callable[[], Any]]

    def block(self) -> Any:
        outcome = self.given.block()()
        return trio.run(_awaited, outcome) if isawaitable(outcome) else outcome

    async def wait(self) -> Any:
        outcome = (await self.given.wait())()
        return await outcome if isawaitable(outcome) else outcome


async def _awaited(outcome: Any) -> Any:
    return await outcome


def recreate_error_locally(client: HasEngine, future: Any) -> Waiting[Any]:
    """Run the task that made this future fail once more, here, so that a debugger can show where; raises what it does.

    That task may be one on which the future's own depends. Of several futures, or of a collection, the first that
    failed is meant.

    Raises:
      ValueError: none has failed.
    """
    return _ForRun(ForCall(client.engine, partial(_prepare, client.engine, future, _blamed)))


def recreate_task_locally(client: HasEngine, future: Any) -> Waiting[Any]:
    """Run the task of this future once more, here, and return what it does. Of several the first is meant."""
    return _ForRun(ForCall(client.engine, partial(_prepare, client.engine, future, lambda states: states[0].key)))


def _blamed(states: list[KeyState]) -> Key:
    for state in states:
        if isinstance(state.failure, KeyFailed):
            return state.failure.blamed
    raise ValueError("none of these futures has failed")


async def _prepare(engine: Engine, future: Any, choose: Callable[[list[KeyState]], Key]) -> Callable[[], Any]:
    """The call, with the results that it needs; they are computed again if they were released."""
    states = states_of(futures_given(future, "this"))
    if not states:
        raise ValueError("there are no futures in this")
    await engine.wait_for_async(states, SettleWaiter(len(states), len(states)))
    key = choose(states)
    told: Mapping[str, Any] | None = await engine.ask("call", (key,))
    if told is None:
        raise UsageError(f"the scheduler has no call of {key!r}: its data was scattered, or it was released")
    inputs = engine.adopt(told["dependencies"])
    try:
        reader = ValueReader(len(inputs), stops_early=True)
        await engine.wait_for_async(inputs, reader)
        found = values_of(engine, reader, inputs, skip=False)
    finally:
        engine.release(inputs)
    return partial(_run, told, {state.key: value for state, value in found.items()})


def _run(told: Mapping[str, Any], values: Mapping[Key, Any]) -> Any:
    blobs = dict(told["blobs"])
    digest = told["function"]
    function, _ = load_function(digest, blobs[digest], blobs)
    args, kwargs = load_call(told["call"], blobs, values)
    if told["call"][0] == COMPUTED:
        given: Any = args
        args, kwargs = GivenArguments(*given).compute(values)
    return function(*args, **kwargs)


class BlockingLocalRuns(CallForms):
    """The forms of these calls for `Client`."""

    recreate_error_locally = blocking(recreate_error_locally)
    recreate_task_locally = blocking(recreate_task_locally)


class AsyncLocalRuns(CallForms):
    """The forms of these calls for `AsyncClient`."""

    recreate_error_locally = awaitable(recreate_error_locally)
    recreate_task_locally = awaitable(recreate_task_locally)
