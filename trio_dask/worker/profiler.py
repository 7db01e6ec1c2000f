"""Samples the tasks of a worker: in which functions they spend their time. Off unless the configuration switches it on.

A slot notes nothing for this: the profiler finds a task by the frames of its slot's thread, an `async def` one by its
Trio task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

import trio

from trio_dask.ids import name_of
from trio_dask.processes.profiler import Profiler
from trio_dask.processes.stack_samples import Rows, Samples
from trio_dask.protocol.introspection import kind_of
from trio_dask.worker.async_tasks import run_async
from trio_dask.worker.call_stacks import task_of, waits_for_executor
from trio_dask.worker.executor import Executor
from trio_dask.worker.task_context import context_in

_CALL_ASYNC: Final[CodeType] = Executor._call_async.__code__  # pyright: ignore[reportPrivateUsage] - its frames are found
"""A thread in it waits for an `async def` task, which runs in the event loop."""

_RUN_ASYNC: Final[CodeType] = run_async.__code__


class TaskProfiler(Profiler):
    """Samples the threads and the Trio tasks of one executor, beside the event loop.

    `threads` are the identifiers of the threads, as they come; `trio_tasks` gives the others, to any thread.
    """

    def __init__(
        self,
        threads: Iterable[int],
        trio_tasks: Callable[[], Collection[trio.lowlevel.Task]],
        is_busy: Callable[[], bool],
        **options: Any,
    ) -> None:
        super().__init__(is_busy=is_busy, **options)
        self._threads = threads
        self._trio_tasks = trio_tasks
        self._samples = Samples(time.time())

    def between(self, start: float, stop: float, name: str | None = None) -> Rows:
        """What was sampled of tasks between these times, in seconds since 1970. From any thread."""
        self._samples.end_cycle(time.time())
        return self._samples.between(start, stop, name)

    def _end_cycle(self, now: float) -> None:
        super()._end_cycle(now)
        self._samples.end_cycle(now)

    def _sample_all(self, frames: Mapping[int, FrameType]) -> int:
        found = super()._sample_all(frames)
        for thread in list(self._threads):
            sampled = task_of(frames.get(thread))
            if sampled is None or waits_for_executor(sampled[1]):
                continue
            codes = [frame.f_code for frame in sampled[1]]
            if not codes or codes[-1] is not _CALL_ASYNC:
                self._samples.add(name_of(sampled[0].key), codes)
                found += 1
        for task in self._trio_tasks():
            context = context_in(task.context)
            if context is not None and getattr(task.coro, "cr_code", None) is _RUN_ASYNC:
                self._samples.add(name_of(context.key), _async_stack(task, frames.get(self._loop_thread)))
                found += 1
        return found


def _async_stack(task: trio.lowlevel.Task, loop: FrameType | None) -> list[CodeType]:
    """Where an `async def` task is, from the innermost frame to its own call: where it runs, else where it waits.

    It runs if the Trio task, or one that it has started, is what the loop is in.
    """
    running = next((coroutine for coroutine in _coroutines_of(task) if coroutine.cr_running), None)
    codes: list[CodeType] = []
    while loop is not None and running is not None:
        if loop.f_code is _RUN_ASYNC:
            return codes
        codes.append(loop.f_code)
        if loop is running.cr_frame:
            return codes
        loop = loop.f_back
    return _awaited(task.coro)[:0:-1]  # without `run_async`


def _coroutines_of(task: trio.lowlevel.Task) -> list[Any]:
    tasks = [task]
    for found in tasks:
        for nursery in found.child_nurseries:
            tasks += nursery.child_tasks
    return [found.coro for found in tasks if isinstance(found.coro, CoroutineType)]


def _awaited(waiting: object) -> list[CodeType]:
    """The calls in which a coroutine waits, the outermost first, as far as Python shows them."""
    codes: list[CodeType] = []
    following: Any = waiting
    while kind_of(following) in (CoroutineType, GeneratorType):
        is_generator = kind_of(following) is GeneratorType
        codes.append(following.gi_code if is_generator else following.cr_code)
        following = following.gi_yieldfrom if is_generator else following.cr_await
    return codes
