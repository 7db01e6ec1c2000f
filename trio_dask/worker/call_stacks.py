"""What the tasks of this worker are doing: the frames of their threads.

A slot notes nothing for this: its thread is found by the frame of `Executor._execute`, which knows its task. So is a
thread of an executor of users, by that of `run_here`; then the slot only waits for it.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Collection
from types import CodeType, FrameType
from typing import Final

from trio_dask.ids import Key
from trio_dask.worker.executor import Executor
from trio_dask.worker.named_executors import call_in_executor, run_here
from trio_dask.worker.task_context import TaskContext

_EXECUTE: Final = frozenset({Executor._execute.__code__, run_here.__code__})  # pyright: ignore[reportPrivateUsage]
"""What calls the function of a task, with its context as the variable `context`."""
_WAIT: Final[CodeType] = call_in_executor.__code__
"""What a slot is in while it waits for an executor of users."""


def running_frames() -> dict[Key, list[FrameType]]:
    """The frames of the tasks that run here, each from the task's own call to where it is."""
    found = list(filter(None, map(task_of, _frames_of_threads())))
    found.sort(key=lambda task: not waits_for_executor(task[1]))  # where a thread does the work, it counts
    return {context.key: frames[::-1] for context, frames in found}


def _frames_of_threads() -> list[FrameType]:
    return list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage] - Python documents it


def waits_for_executor(frames: list[FrameType]) -> bool:
    """Whether a task, by its frames, only waits for an executor of users, in which another thread runs it."""
    return bool(frames) and frames[-1].f_code is _WAIT


def task_of(frame: FrameType | None) -> tuple[TaskContext, list[FrameType]] | None:
    """The task in whose thread this frame is, and the frames from there to its own call; None outside of tasks."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code not in _EXECUTE:
        frames.append(frame)
        frame = frame.f_back
    context = None if frame is None else frame.f_locals.get("context")
    return (context, frames) if isinstance(context, TaskContext) else None


def call_stacks(keys: Collection[Key] | None = None) -> dict[Key, list[str]]:
    """The call stack of each of these tasks that runs here, or of all: a text for each frame, the outermost first."""
    return {
        key: [_described(frame) for frame in frames]
        for key, frames in running_frames().items()
        if keys is None or key in keys
    }


def _described(frame: FrameType) -> str:
    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals).strip()
    return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {line}'
