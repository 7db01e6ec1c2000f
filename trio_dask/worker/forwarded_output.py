"""What tasks write to `sys.stdout` and `sys.stderr`, forwarded to the clients where somebody asked for it.

`submit(..., output="forward")` asks for one task, `ForwardOutput` for all that a worker prints. While there is one of
these, both streams have a proxy in front of them, which writes to the stream and looks whose text it is.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from trio_dask.comm import inproc
from trio_dask.plugins.bases import WorkerPlugin
from trio_dask.plugins.forwarded_logs import place_of_output, this_process
from trio_dask.worker.task_context import TaskContext, WorkerHandle, current_task

LONGEST: Final = 8192
"""A longer text without an end of line is sent in pieces."""
NAMES: Final = {1: "stdout", 2: "stderr"}

Log = Callable[[str, Any], object]
_quiet: ContextVar[bool] = ContextVar("trio_dask print that is forwarded already", default=False)


class _Lines:
    """Gathers what one task or thread writes, and sends it line by line."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = dict.fromkeys(NAMES, "")
        """By number of the stream, a line without its end."""

    def write(self, number: int, text: str) -> None:
        text = self._begun[number] + text
        end = text.rfind("\n") + 1
        end += (len(text) - end) // LONGEST * LONGEST
        self._begun[number] = text[end:]
        for start in range(0, end, LONGEST):
            self._send(number, text[start : min(end, start + LONGEST)])

    def flush(self, number: int) -> None:
        text, self._begun[number] = self._begun[number], ""
        if text:
            self._send(number, text)

    def flush_all(self) -> None:
        for number in NAMES:
            self.flush(number)

    def _send(self, number: int, text: str) -> None:
        where = {"process": this_process(), "place": place_of_output(number)}
        self._log("print", {"args": (text,), "sep": "", "end": "", "file": number, "flush": True, **where})


class _OfWorker:
    """What all threads of a worker write. A worker that shares its process has its tasks only."""

    def __init__(self, worker: WorkerHandle) -> None:
        self.is_alone = not worker.address.startswith(f"{inproc.SCHEME}:")
        self._log = worker.log_event
        self._mine = threading.local()
        self._all: dict[threading.Thread, _Lines] = {}

    def lines(self) -> _Lines:
        """Of this thread."""
        lines: _Lines | None = getattr(self._mine, "lines", None)
        if lines is None:
            for thread in [thread for thread in list(self._all) if not thread.is_alive()]:
                if (left := self._all.pop(thread, None)) is not None:
                    left.flush_all()
            lines = self._mine.lines = self._all[threading.current_thread()] = _Lines(self._log)
        return lines

    def flush_all(self) -> None:
        for lines in list(self._all.values()):
            lines.flush_all()


class _Proxy:
    """Stands for `sys.stdout` or `sys.stderr`. Without users it does no more than the stream."""

    def __init__(self, number: int, stream: Any) -> None:
        self._number = number
        self.stream = stream
        self.is_used = True
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        written: int = self.stream.write(text)
        if (lines := self._lines()) is not None:
            lines.write(self._number, text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.stream.flush()
        if (lines := self._lines()) is not None:
            lines.flush(self._number)

    def _lines(self) -> _Lines | None:
        """A process that a task has forked has no event loop, and perhaps a lock of it that nobody will release."""
        return _lines_here() if self.is_used and os.getpid() == self._pid else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_lock: Final = threading.Lock()
_tasks: Final[dict[TaskContext, _Lines]] = {}
_workers: Final[dict[WorkerHandle, _OfWorker]] = {}


def _lines_here() -> _Lines | None:
    """Where text from here goes to; None if nobody asked for it."""
    if _quiet.get():
        return None
    context = current_task()
    if context is None:
        found = next((of_worker for of_worker in list(_workers.values()) if of_worker.is_alone), None)
    elif (lines := _tasks.get(context)) is not None:
        return lines
    else:
        found = _workers.get(context.worker)
    return None if found is None else found.lines()


def _set_proxies() -> None:
    """Put them there if anybody uses them, else take them away. Under the lock."""
    is_used = bool(_tasks or _workers)
    for number, name in NAMES.items():
        stream = getattr(sys, name)
        if isinstance(stream, _Proxy):
            stream.is_used = is_used
            if not is_used:
                setattr(sys, name, stream.stream)
        elif is_used and stream is not None:
            setattr(sys, name, _Proxy(number, stream))


def begin(context: TaskContext) -> None:
    """Forward what this task writes."""
    with _lock:
        _tasks[context] = _Lines(context.worker.log_event)
        _set_proxies()


def end(context: TaskContext) -> None:
    """The task has ended."""
    with _lock:
        lines = _tasks.pop(context, None)
        _set_proxies()
    if lines is not None:
        lines.flush_all()


@contextmanager
def quiet() -> Generator[None]:
    """What is written in this block goes to clients in another way."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class ForwardOutput(WorkerPlugin):
    """Forwards what workers print, to standard output and standard error, to all clients: `client.register_plugin` it.

    It is what Python code writes to `sys.stdout` and `sys.stderr`, in tasks and beside them; the workers write it as
    well. Of a worker in the client's own process, which the client sees anyhow, other clients see what its tasks print.
    """

    name = "forward-output"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Forward from now on."""
        with _lock:
            _workers[worker] = _OfWorker(worker)
            _set_proxies()

    def teardown(self, worker: Any) -> None:
        """Forward no longer."""
        with _lock:
            of_worker = _workers.pop(worker, None)
            _set_proxies()
        if of_worker is not None:
            of_worker.flush_all()
