"""Functions that clients have called in a process of the cluster, a worker or a nanny: `client.run`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import trio

from trio_dask.plugins.hooks_of_users import is_cancellation
from trio_dask.protocol.error_text import mention_trio
from trio_dask.protocol.introspection import has_parameter
from trio_dask.protocol.pickling import describe_exception, dump_value, load_value

MAX_CALLS: Final = 40
"""Plain functions that run at once; further ones wait."""

_T = TypeVar("_T")


class CallOutcome(NamedTuple):
    """What a function returned (`ok`), pickled, or what it raised, as text and, if that is possible, pickled."""

    ok: bool
    text: str
    frames: Sequence[Any]


class FunctionCalls:
    """Calls functions; a parameter `dask_worker` gets the `subject`, what users see of the worker or nanny."""

    def __init__(self, subject: Any) -> None:
        self._subject = subject
        self._limiter = trio.CapacityLimiter(MAX_CALLS)

    async def call(self, frames: Sequence[Any]) -> CallOutcome:
        """Call the function of this pickle, with its arguments: `async def` under Trio, others in a thread.

        Cancelled, it leaves a thread alone. Nothing that the function raises is raised here.
        """
        outcome = await self._in_thread(partial(_load_and_call, frames, self._subject))
        if isinstance(outcome, CallOutcome):
            return outcome
        try:
            value = await outcome()
        except trio.Cancelled:
            raise
        except BaseException as error:  # whatever the user's function raises is its result
            if is_cancellation(error):
                raise
            mention_trio(error)
            return _failed(error)
        return await self._in_thread(partial(_dump, value))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def _load_and_call(frames: Sequence[Any], subject: Any) -> CallOutcome | partial[Awaitable[Any]]:
    """Call a function; one that is `async def` is returned instead, with its arguments."""
    try:
        function, args, kwargs = load_value(frames)
        if "dask_worker" not in kwargs and has_parameter(function, "dask_worker"):
            kwargs = {**kwargs, "dask_worker": subject}
        if inspect.iscoroutinefunction(function):
            return partial(function, *args, **kwargs)
        return _dump(function(*args, **kwargs))
    except BaseException as error:  # it runs in a thread of its own, which must not end the process
        return _failed(error)


def _dump(value: Any) -> CallOutcome:
    try:
        return CallOutcome(True, "", dump_value(value))
    except BaseException as error:  # pickling runs the user's code
        return _failed(error)


def _failed(error: BaseException) -> CallOutcome:
    description, text = describe_exception(error)
    return CallOutcome(False, text, [] if description is None else [description])
