"""Calls of functions that users write, plain or async: a plain one must not hold up the event loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import trio


async def call(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call it: an `async def` function under Trio, a plain one in a thread, which cancelling leaves alone."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **options)
    # In a tuple: Trio refuses what returns something to await.
    (result,) = await trio.to_thread.run_sync(lambda: (function(*args, **options),), abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result
