"""What a child process gets from its parent: the program to run, settings, and a way to report.

The parent names a program by the function itself, so that imports show what depends on what; only the function's module
and name travel.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from trio_dask.processes.parent_watch import StdinWatch, arm_kill_pipe, open_parent
from trio_dask.security.credentials import Credentials, from_secrets


class Program(NamedTuple):
    """A function of a module, by its names."""

    module: str
    function: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Program:
        """The names of a function that another process can find.

        Raises:
          ValueError: it cannot, because the function stands in `__main__`, or is not a module's own.
        """
        program = cls(function.__module__, function.__qualname__)
        if program.module == "__main__" or getattr(sys.modules[program.module], program.function, None) is not function:
            raise ValueError(f"{program.function} cannot be found by its name in the module {program.module}")
        return program

    def load(self) -> Any:
        """The function."""
        return getattr(import_module(self.module), self.function)


class ChildLog(NamedTuple):
    """How a child logs to its stderr.

    `origin` stands before its lines, or they are `records`, which a parent can read. It says nothing below `level`;
    `debug` says everything, with times and tracebacks.
    """

    origin: str = ""
    records: bool = False
    level: int = logging.WARNING
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class ChildContext:
    """What a program is called with in its child process. `settings` are those of its `ChildSpec`."""

    name: str
    settings: Mapping[str, Any]
    log: ChildLog
    report_fd: int
    credentials: Credentials | None = None
    """Those that the parent hands over; else the program finds its own."""
    parent_fd: int | None = None
    """Readable once the parent has ended; None where a guard watches the parent."""
    already_read: bytes = b""
    """What this process has read of stdin already."""

    def report(self, content: Mapping[str, Any]) -> None:
        """Send the parent a report."""
        try:
            os.write(self.report_fd, json.dumps(content).encode() + b"\n")
        except OSError:
            pass  # the parent is gone, which the watch of stdin notices

    def watch_stdin(self, ask: Callable[[str, int | None], None]) -> None:
        """Have `ask` called in another thread when the parent orders something; see `StdinWatch`."""
        StdinWatch.of_stdin(self.parent_fd, self.already_read).start(ask)


Entry = Callable[[ChildContext], int]
"""The program of a child process: it runs to its end, and gives an exit status."""


def begin(orders: Mapping[str, Any], already_read: bytes) -> int:
    """Make this fresh child process end with its parent, then run the program that `orders` names."""
    report_fd, kill_fd = orders["report_fd"], orders["kill_fd"]
    parent_fd = open_parent(orders["parent_pid"])
    if orders["guarded"]:
        from trio_dask.processes.subreaper import fork_under_guard

        fork_under_guard(parent_fd, report_fd, to_close=(kill_fd,))
        parent_fd = None
    for fd in (report_fd, kill_fd):
        os.set_inheritable(fd, False)
    arm_kill_pipe(kill_fd)
    faulthandler.enable()
    context = ChildContext(
        name=orders["name"],
        settings=orders["settings"],
        log=ChildLog(*orders["log"]),
        report_fd=report_fd,
        credentials=from_secrets(orders["secrets"]),
        parent_fd=parent_fd,
        already_read=already_read,
    )
    context.report({"pid": os.getpid()})
    entry: Entry = Program(*orders["program"]).load()
    return entry(context)
