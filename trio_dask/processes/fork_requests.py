"""Requests to a fork server: one message for each process, with an open file for everything that the process gets.

    launcher ── send ──► fork server ── fork ──► Request.apply, in the new process
    launcher ◄── answer ── the new process, or the fork server if it cannot fork

The descriptors travel over a Unix socket. In the new process they have the same numbers as in the launcher, since
orders and settings name them by these numbers. Everything else, such as the environment, is in a file in memory: it may
be larger than a message.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from trio_dask.procfs import open_descriptors

if TYPE_CHECKING:  # a fork server must not load Trio before it has to
    from trio_dask.processes.spawn import Start


MAX_DESCRIPTORS = 253
"""The kernel's limit for one message."""


def pack(start: Start, stack: ExitStack) -> list[int]:
    """The descriptors that ask for this process; `stack` closes those that were made for the request.

    Raises:
      OSError: there is no descriptor left, or our working folder is gone.
    """
    numbers = {0: start.stdin, 2: start.stderr}
    with suppress(OSError):  # ours may be closed, and then the child has an empty one, as by exec
        os.fstat(1)
        numbers[1] = 1
    numbers |= {fd: fd for fd in (start.report_fd, start.kill_fd, *start.inherit)}
    contents = os.memfd_create("trio_dask request")
    stack.callback(os.close, contents)
    environment = {**os.environ, **start.environment}
    data = json.dumps({"numbers": list(numbers), "environment": environment}).encode()
    with open(contents, "wb", closefd=False) as file:
        file.write(data)
    folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
    stack.callback(os.close, folder)
    return [contents, folder, *numbers.values()]


def answer(channel: socket.socket, *, pid: int = 0, error: str = "") -> None:
    """Answer a request with the new process, or with what went wrong.

    Raises:
      OSError: the launcher is gone.
    """
    channel.send(json.dumps({"pid": pid, "error": error}).encode())


def read_answer(data: bytes) -> tuple[int | None, str]:
    """The new process, if there is one, and what went wrong."""
    content: dict[str, Any] = json.loads(data)
    return content["pid"] or None, content["error"]


class Request:
    """A request, in the fork server."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors

    @classmethod
    def receive(cls, channel: socket.socket) -> Request | None:
        """The next one, or None if there will be none.

        Raises:
          OSError: it could not be received whole.
        """
        data, descriptors, flags, _ = socket.recv_fds(channel, 1, MAX_DESCRIPTORS)
        request = cls(descriptors)
        if flags & socket.MSG_CTRUNC:
            request.close()
            raise OSError("no descriptor left")
        return request if data else None

    def close(self) -> None:
        """Close the descriptors that came with it."""
        for fd in self._descriptors:
            os.close(fd)

    def apply(self) -> None:
        """Make this process, fresh from the fork, like one that the launcher has started by exec."""
        contents, folder, *given = self._descriptors
        with open(contents, "rb", closefd=False) as file:
            file.seek(0)
            wanted = json.load(file)
        os.fchdir(folder)
        _set_environment(wanted["environment"])
        arrange(given, wanted["numbers"])
        importlib.invalidate_caches()


def _set_environment(environment: Mapping[str, Any]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    time.tzset()


def arrange(given: Sequence[int], numbers: Sequence[int]) -> None:
    """Give these descriptors these numbers, for inheritance, and close every other one except the first three."""
    safe: list[int] = []
    for fd in given:
        while fd in numbers:  # another one needs this number, and overwrites it
            fd = os.dup(fd)
        safe.append(fd)
    for fd, number in zip(safe, numbers, strict=True):
        os.dup2(fd, number)
    kept = {0, 1, 2, *numbers}
    for fd in open_descriptors():
        if fd not in kept:
            with suppress(OSError):  # the one that was opened to read the list
                os.close(fd)
