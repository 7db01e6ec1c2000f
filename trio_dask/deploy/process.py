"""The parent's side of a started process: start it by exec, know when it is ready, hear of its end, leave nothing.

The child is `child.py`, run by its path. Its first line of stdin says which program to be and how; stdin then stays
open as its lifeline. It reports on an inherited descriptor with one line of JSON once it is ready. It leads a session
of its own, so that Ctrl-C in a terminal reaches the parent alone, and so that it can be killed with all it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from trio_dask.errors import ClusterError

__all__ = ["ChildReady", "ChildSpec", "describe_end", "run_child"]

BOOTSTRAP = str(Path(__file__).with_name("child.py"))
LAST_LINES = 20
START_TIMEOUT_S = 60.0
DRAIN_S = 0.2


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to start: the function `program` (`module:function`, see `services`), with `settings` that JSON allows.

    `inherit` are descriptors that the child receives under the same numbers; `environment` comes on top of ours.
    `stderr` is called with what the child writes to its stderr.
    """

    name: str
    program: str
    settings: Mapping[str, Any]
    inherit: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    grace_s: float = 1.0
    stderr: Callable[[bytes], object] = lambda data: None


@dataclass(frozen=True)
class ChildReady:
    """What a child reported when it was ready."""

    pid: int
    report: Mapping[str, Any]


async def run_child(spec: ChildSpec, ready: Callable[[ChildReady], object] = lambda ready: None) -> tuple[int, str]:
    """Start a child, call `ready` when it is, and wait for its end; cancelled, end it within its grace, then by force.

    Returns: its exit status (negative: the signal that killed it), and the last lines that it wrote to stderr.

    Raises:
      ClusterError: it ended, or 60 s went by, before it was ready. The message has its own last words.
    """
    ready_end, ready_fd = os.pipe()
    leash_fd, leash_end = os.pipe()
    try:
        process = await trio.lowlevel.open_process(
            _command(spec),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(ready_fd, leash_fd, *spec.inherit),
            env={**os.environ, **spec.environment},
        )
    except OSError as exc:
        os.close(ready_end)
        os.close(leash_end)
        raise ClusterError(f"{spec.name} could not be started: {exc.strerror or exc}") from exc
    except BaseException:
        os.close(ready_end)
        os.close(leash_end)
        raise
    finally:
        os.close(ready_fd)
        os.close(leash_fd)
    return await _Child(spec, process, trio.lowlevel.FdStream(ready_end), leash_end).run(
        {"program": spec.program, "settings": spec.settings, "name": spec.name, **_surroundings(ready_fd, leash_fd)},
        ready,
    )


def _command(spec: ChildSpec) -> list[str]:
    # Private, but what multiprocessing itself uses: -O, -W, -X and the like hold for children as well.
    flags: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags", list)
    return [sys.executable, *flags(), BOOTSTRAP, spec.name]


def _surroundings(ready_fd: int, leash_fd: int) -> dict[str, Any]:
    return {
        # The child finds the modules that we find; an empty entry means the folder we are in now.
        "path": [entry or os.getcwd() for entry in sys.path],
        "parent_pid": os.getpid(),
        "ready_fd": ready_fd,
        "leash_fd": leash_fd,
    }


class _Child:
    def __init__(self, spec: ChildSpec, process: trio.Process, ready: trio.lowlevel.FdStream, leash_end: int) -> None:
        assert process.stdin is not None
        assert process.stderr is not None
        self._spec = spec
        self._process = process
        self._stdin = process.stdin
        self._stderr = process.stderr
        self._ready = ready
        self._leash_end = leash_end
        self._tail: deque[str] = deque(maxlen=LAST_LINES)

    async def run(self, orders: Mapping[str, Any], ready: Callable[[ChildReady], object]) -> tuple[int, str]:
        became_ready = False
        last_words = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, last_words)
                try:
                    became_ready = await self._become_ready(orders, ready)
                    if became_ready:
                        await self._wait_for_end()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._end()
                    last_words.deadline = trio.current_time() + DRAIN_S
        finally:
            os.close(self._leash_end)
            with trio.CancelScope(shield=True):
                await self._ready.aclose()
                await self._stderr.aclose()
        status, tail = self._process.returncode, "\n".join(self._tail)
        assert status is not None
        if not became_ready:
            words = f":\n{tail}" if tail else " and said nothing"
            raise ClusterError(f"{self._spec.name} {describe_end(status)} before it was ready{words}")
        return status, tail

    async def _become_ready(self, orders: Mapping[str, Any], ready: Callable[[ChildReady], object]) -> bool:
        line = b""
        with trio.move_on_after(START_TIMEOUT_S):
            try:
                await self._stdin.send_all(json.dumps(orders).encode() + b"\n")
            except trio.BrokenResourceError:
                return False  # it is dead already
            while not line.endswith(b"\n"):
                data = await self._ready.receive_some()
                if not data:
                    return False
                line += data
            ready(ChildReady(self._process.pid, json.loads(line)))
            return True
        self._tail.append(f"(not ready after {START_TIMEOUT_S:g} s)")
        return False

    async def _pump(self, scope: trio.CancelScope) -> None:
        rest = b""
        with scope:
            async for data in self._stderr:
                self._spec.stderr(bytes(data))
                *lines, rest = (rest + data).split(b"\n")
                self._tail.extend(line.decode(errors="replace") for line in lines)
        if rest:
            self._tail.append(rest.decode(errors="replace"))

    async def _wait_for_end(self) -> None:
        """Wait until the process has ended, without reaping it: its number stays taken until its group is swept."""
        try:
            fd = os.pidfd_open(self._process.pid)
        except (OSError, AttributeError):  # not Linux, or no descriptor left
            await self._process.wait()
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    async def _end(self) -> None:
        await self._stdin.aclose()
        with trio.move_on_after(self._spec.grace_s):
            await self._wait_for_end()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left; macOS refuses to signal a group of which only a zombie is left
        await self._process.wait()


def describe_end(status: int) -> str:
    """What an exit status, as `subprocess` gives it, says in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
