"""What the tasks of this worker are doing: the frames of their threads.

A slot notes nothing for this: its thread is found by the frame of `Executor._execute`, which knows its task.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Collection
from types import CodeType, FrameType
from typing import Final

from trio_dask.ids import Key
from trio_dask.worker.executor import Executor
from trio_dask.worker.task_context import TaskContext

EXECUTE: Final[CodeType] = Executor._execute.__code__  # pyright: ignore[reportPrivateUsage] - its frames are found


def running_frames() -> dict[Key, list[FrameType]]:
    """The frames of the tasks that run here, each from the task's own call to where it is."""
    found = [task_of(frame) for frame in _frames_of_threads()]
    return {context.key: frames[::-1] for context, frames in filter(None, found)}


def _frames_of_threads() -> list[FrameType]:
    return list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage] - Python documents it


def task_of(frame: FrameType | None) -> tuple[TaskContext, list[FrameType]] | None:
    """The task in whose thread this frame is, and the frames from there to its own call; None outside of tasks."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code is not EXECUTE:
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
