"""Processes forked from one that has everything loaded: a fork server, as its launcher sees it.

    launcher ─┬─ fork server     loads what workers need, once, and forks
              ├─ guard ── worker
              └─ guard ── worker

To load what a worker needs takes ten times as long as everything else at its start. The server is started by exec like
any child of ours, and holds nothing of the user's program: no module, no thread, no connection. It makes the new
processes children of the launcher, not its own. So they are reaped, watched and ended as if the launcher had started
them, and neither need the server any more nor notice its end.

It is a help and no more: where there is none, or it does not answer, a process is started by exec.
"""

from __future__ import annotations

import array
import json
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import trio

from trio_dask.errors import ClusterError
from trio_dask.processes.child_process import Child, ChildSpec, run_child
from trio_dask.processes.environment import child_environment
from trio_dask.processes.fork_requests import pack
from trio_dask.processes.spawn import Process, Start, start_by_exec, wait_for_end

__all__ = ["ForkServer"]

log = logging.getLogger("trio_dask.nanny")

PROGRAM = "trio_dask.deploy.fork_server_main:serve"
START_S = 20.0
ANSWER_S = 3.0
"""To fork takes milliseconds."""
DEATH_S = 1.0


class ForkServer:
    """A fork server, while `run` runs; `start` is a `Starter` all the time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._child: Child | None = None
        self._channel: trio.socket.SocketType | None = None
        self._settled = trio.Event()
        """It is ready, or will never be."""
        self._turn = trio.Lock()
        self._scope = trio.CancelScope()
        self.pid: int | None = None
        """Its process, while it is ready."""

    async def run(self) -> None:
        """Have a server, until cancelled or stopped, or until it has ended by itself, which harms nobody."""
        with self._scope, ExitStack() as stack:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError as exc:
                log.info("%s could not be started: %s", self._name, exc)
                self._settled.set()
                return
            stack.enter_context(theirs)
            self._channel = stack.enter_context(trio.socket.from_stdlib_socket(ours))

            def born(child: Child) -> None:
                self._child = child
                theirs.close()  # else we would not hear of its end

            spec = ChildSpec(
                name=self._name,
                program=PROGRAM,
                settings={"fd": theirs.fileno()},
                inherit=(theirs.fileno(),),
                environment=child_environment({}),  # some of it has to be there when a process begins
                start_timeout_s=START_S,
            )
            try:
                end = await run_child(spec, self._heard, born)
                log.info("%s %s: from now on workers are started by exec", self._name, end.describe())
            except ClusterError as exc:
                log.info("%s", exc)
            finally:
                self.pid = None
                self._settled.set()
                with trio.CancelScope(shield=True):
                    async with self._turn:  # who is in the midst of asking hears that it has ended
                        self._channel = None
                    if self._child is not None and self._child.pid:
                        await _reap_strays(self._child.pid)

    def stop(self) -> None:
        """End it. What it has forked goes on. Does not wait."""
        self._scope.cancel()

    async def settled(self) -> None:
        """Wait until it is ready, or will never be."""
        await self._settled.wait()

    def _heard(self, child: Child, report: Mapping[str, Any]) -> None:
        self.pid = child.pid
        self._settled.set()

    async def start(self, start: Start) -> Process:
        """Start a process: forked if that can be, by exec if not.

        Raises:
          OSError: nothing could be started.
        """
        if start.guarded:  # see `clone_parent`
            await self.settled()
            process = await self._fork(start)
            if process is not None:
                return process
        return await start_by_exec(start)

    async def _fork(self, start: Start) -> Process | None:
        """Not to be cancelled half-way: then there would be a process that nobody knows. It has deadlines."""
        pid: int | None = None
        with trio.CancelScope(shield=True):
            async with self._turn:
                pid = await self._ask(start)
        return None if pid is None else _Forked(pid)

    async def _ask(self, start: Start) -> int | None:
        """The process that the server has forked, or None."""
        channel, child = self._channel, self._child
        if channel is None or child is None or self.pid is None:
            return None
        try:
            with ExitStack() as stack:
                descriptors = array.array("i", pack(start, stack))
                await channel.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            for limit in (ANSWER_S, DEATH_S):
                with trio.move_on_after(limit):
                    answer = await channel.recv(4096)
                    return _pid_in(answer) if answer else None
                # Once it is dead there is either an answer, from the process that it has forked, or the end.
                self.pid = None
                log.warning("%s does not answer; ending it, and starting workers by exec", self._name)
                child.kill()
        except OSError as exc:
            log.info("%s could not be reached: %s", self._name, exc)
            return None
        raise OSError(f"{self._name} cannot be ended")


async def _reap_strays(group: int) -> None:
    """Reap what the server had forked but just now, so that it was in the server's group still, and died with it."""
    with trio.move_on_after(DEATH_S):
        while not _no_more(group):  # noqa: ASYNC110 - they have been killed; there is no descriptor of them to wait on
            await trio.sleep(0.001)


def _no_more(group: int) -> bool:
    """Reap those of our children in this process group that have ended. Whether there is none left."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _pid_in(answer: bytes) -> int | None:
    content: dict[str, Any] = json.loads(answer)
    if "error" in content:
        log.info("the fork server could not fork: %s", content["error"])
    return content.get("pid")


class _Forked:
    """A process that a fork server has forked, and that is our child all the same."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def send_signal(self, sig: int) -> None:
        """Send it a signal; its number is its own until it is reaped."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end, and reap it."""
        if not await wait_for_end(self.pid):
            with suppress(ChildProcessError):
                await trio.to_thread.run_sync(
                    os.waitid, os.P_PID, self.pid, os.WEXITED | os.WNOWAIT, abandon_on_cancel=True
                )
        if self.returncode is None:
            self.returncode = self._reap()
        return self.returncode

    def _reap(self) -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # this program ignores SIGCHLD, or reaps what is not its own
            return 0
