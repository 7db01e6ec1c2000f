"""Between an event loop and code of users: their functions must not hold it up, and may call into it from a thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import trio

Result = TypeVar("Result")


async def call(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call it: an `async def` function under Trio, a plain one in a thread, which cancelling leaves alone."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **options)
    # In a tuple: Trio refuses what returns something to await.
    (result,) = await trio.to_thread.run_sync(lambda: (function(*args, **options),), abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result


def call_in_loop(token: trio.lowlevel.TrioToken | None, function: Callable[[], Result]) -> Result:
    """Call this in the thread of the loop that has this token, from any thread, and return what it returns."""
    try:
        here = trio.lowlevel.current_trio_token()
    except RuntimeError:
        here = None
    return function() if here is token else trio.from_thread.run_sync(function, trio_token=token)


def is_cancellation(error: BaseException) -> bool:
    """Whether this is Trio's cancellation: alone, or as nurseries of the user's code pass it on, in groups."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_cancellation, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, trio.Cancelled)
