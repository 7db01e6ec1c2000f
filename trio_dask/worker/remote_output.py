"""`print` and `warn` for tasks: what they show appears where the worker writes, and at the clients."""

from __future__ import annotations

import builtins
import inspect
import sys
import warnings
from typing import Any, TextIO

from trio_dask.plugins.forwarded_logs import place_of_output, this_process
from trio_dask.worker.forwarded_output import quiet
from trio_dask.worker.task_context import current_task


def print(
    *args: object, sep: str | None = " ", end: str | None = "\n", file: TextIO | None = None, flush: bool = False
) -> None:
    """Print here and, if a task calls it, at all clients as well; the arguments are those of `print`.

    Raises:
      TypeError: a task prints to another file than `sys.stdout` and `sys.stderr`.
    """
    task = current_task()
    if task is None:
        builtins.print(*args, sep=sep, end=end, file=file, flush=bool(flush))
    else:
        streams = {None: None, sys.stdout: 1, sys.stderr: 2}
        if file not in streams:
            raise TypeError(f"a task prints to sys.stdout or sys.stderr, not to {file!r:.60}")
        message = {"args": tuple(map(str, args)), "sep": sep, "end": end, "file": streams[file], "flush": flush}
        task.worker.log_event(
            "print", {**message, "process": this_process(), "place": place_of_output(streams[file] or 1)}
        )
        with quiet():
            builtins.print(*args, sep=sep, end=end, file=file, flush=bool(flush))


def warn(
    message: str | Warning,
    category: type[Warning] | None = UserWarning,
    stacklevel: int = 1,
    source: Any = None,
) -> None:
    """Warn here and, if a task calls it, at all clients as well; the arguments are those of `warnings.warn`.

    Clients apply their own filters.
    """
    task = current_task()
    if task is None:
        warnings.warn(message, category, stacklevel + 1, source)
    else:
        caller = inspect.currentframe()
        for _ in range(max(stacklevel, 1)):
            caller = caller and (caller.f_back or caller)
        place = caller and (caller.f_code.co_filename, caller.f_lineno)
        told = {"message": message, "category": category, "place": place, "process": this_process()}
        task.worker.log_event("warn", told)
        with quiet():
            warnings.warn(message, category, stacklevel + 1, source)
