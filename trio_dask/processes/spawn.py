"""How a process is started: by exec, or in another way that a `Starter` knows.

The process gets the same either way: its ends of four pipes, descriptors to inherit, our environment with something on
top of it, our working folder, and a session of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

BOOTSTRAP = str(Path(__file__).with_name("child_main.py"))


class Process(Protocol):
    """A child process of ours. Its number stays taken until `wait` has returned."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its status as `subprocess` has it, once it has ended."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it is still there."""
        ...

    async def wait(self) -> int:
        """Wait for its end, and reap it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Start:
    """What to start. We keep the descriptors; the child has `report_fd`, `kill_fd` and `inherit` under these numbers.

    `guarded`: the process will be a guard, and fork the one that runs the program.
    """

    name: str
    stdin: int
    stderr: int
    report_fd: int
    kill_fd: int
    inherit: tuple[int, ...]
    environment: Mapping[str, str]
    guarded: bool


Starter = Callable[[Start], Awaitable[Process]]
"""Raises OSError if nothing could be started."""


async def start_by_exec(start: Start) -> Process:
    """Start an interpreter."""
    return await trio.lowlevel.open_process(
        _command(start.name),
        stdin=start.stdin,
        stderr=start.stderr,
        start_new_session=True,
        pass_fds=(start.report_fd, start.kill_fd, *start.inherit),
        env={**os.environ, **start.environment},
    )


def _command(name: str) -> list[str]:
    # Private, but what multiprocessing itself uses: -O, -W, -X and the like hold for children as well.
    flags: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags", list)
    return [sys.executable, *flags(), BOOTSTRAP, name]


async def wait_for_end(pid: int) -> bool:
    """Wait until a child of ours has ended, and do not reap it. False if that is not possible here."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # not Linux, or no descriptor left
        return False
    try:
        # A process that the user's program forked has copies of our descriptors, also of those that we have closed, and
        # shares our epoll: what it holds may wake a wait for another descriptor of the same number.
        while not _has_ended(pid):
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
    return True


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # and it was reaped
        return True
