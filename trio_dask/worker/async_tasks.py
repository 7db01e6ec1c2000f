"""`async def` tasks run in the Trio thread, each in a cancel scope; the slot that took one waits for its reply."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import trio

from trio_dask.errors import TaskCancelled
from trio_dask.plugins.hooks_of_users import is_cancellation
from trio_dask.protocol.error_text import mention_trio
from trio_dask.worker.task_context import TaskContext, enter


class AsyncCall(NamedTuple):
    """An `async def` task for the Trio thread; its slot waits for the reply, which raises or returns the value."""

    context: TaskContext
    call: Callable[[], Any]
    reply: SimpleQueue[Callable[[], Any]]


async def run_async(task: AsyncCall) -> None:
    """Run an `async def` task in a cancel scope of its own, and answer its slot in any case."""
    context = task.context
    answer = raiser(TaskCancelled(f"task {context.key!r} was cancelled"))
    try:
        enter(context)
        with trio.CancelScope() as scope:
            context.on_cancel(scope.cancel)
            answer = _giver(await task.call())
    except trio.Cancelled:
        raise
    except BaseException as error:  # as in a slot: what a task raises is its result
        if is_cancellation(error):
            raise
        mention_trio(error)
        answer = raiser(error)
    finally:
        task.reply.put(answer)
        del answer  # it refers to the error, whose traceback refers to this frame


def raiser(error: BaseException) -> Callable[[], Any]:
    held = [error]

    def answer() -> Any:
        raise held.pop()  # without a name: its traceback refers to this frame, and a name would close a cycle

    return answer


def _giver(value: Any) -> Callable[[], Any]:
    return lambda: value
