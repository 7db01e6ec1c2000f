"""Processes forked from one that has everything loaded: a fork server, as its launcher sees it.

    launcher ─┬─ fork server     loads what workers need, once, and forks
              ├─ guard ── worker
              └─ guard ── worker

Loading what a worker needs takes ten times as long as the rest of its start. The server is started by exec like any
child of ours, and holds nothing of the user's program: no module, no thread, no connection. The new processes are
children of the launcher, not of the server. So the launcher reaps, watches and ends them as if it had started them
itself, and they neither need the server any more nor notice its end.

The server is a help and no more: without it, or without an answer from it, a process is started by exec.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import trio

from trio_dask.errors import ClusterError
from trio_dask.processes.child_context import Program
from trio_dask.processes.child_process import Child, ChildSpec, run_child
from trio_dask.processes.environment import child_environment
from trio_dask.processes.fork_requests import pack, read_answer
from trio_dask.processes.fork_server_main import serve
from trio_dask.processes.spawn import Process, Start, start_by_exec, wait_for_end

log = logging.getLogger("trio_dask.nanny")

START_S = 20.0
ANSWER_S = 3.0
"""A fork takes milliseconds."""
DEATH_S = 1.0


class ForkChannel:
    """Asks a fork server for processes, one after the other. `kill` ends a server that does not answer."""

    def __init__(self, channel: trio.socket.SocketType, kill: Callable[[], object]) -> None:
        self._channel = channel
        self._kill = kill
        self._turn = trio.Lock()
        self._is_usable = True

    async def fork(self, start: Start) -> int | None:
        """The process that the server has forked for this, or None if it cannot.

        Cancelled, it still waits for the answer, for a limited time: else a process could be left behind unknown.

        Raises:
          OSError: the server neither answers nor ends.
        """
        async with self._turn:
            if not self._is_usable:
                return None
            try:
                with ExitStack() as stack:
                    descriptors = array.array("i", pack(start, stack))
                    await self._channel.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
                with trio.move_on_after(ANSWER_S, shield=True):
                    return await self._receive()
                self._is_usable = False
                log.warning("the fork server does not answer; ending it, and starting workers by exec")
                self._kill()
                # If it forked before its death, the new process still answers; else the channel has ended.
                with trio.move_on_after(DEATH_S, shield=True):
                    return await self._receive()
            except OSError as exc:
                log.info("the fork server could not be reached: %s", exc)
                return None
        raise OSError("the fork server cannot be ended")

    async def _receive(self) -> int | None:
        data = await self._channel.recv(4096)
        if not data:
            self._is_usable = False
            return None
        pid, error = read_answer(data)
        if error:
            log.info("the fork server could not fork: %s", error)
        return pid

    async def close(self) -> None:
        """Make no further requests; a request under way learns that the server has ended."""
        self._is_usable = False
        with trio.move_on_after(ANSWER_S + DEATH_S, shield=True):
            async with self._turn:
                pass


class ForkServer:
    """A fork server, while `run` runs; `start` is a `Starter` at any time. `load` imports what its children need."""

    def __init__(self, name: str, load: Callable[[], object]) -> None:
        self._name = name
        self._load = Program.of(load)
        self._child: Child | None = None
        self._channel: ForkChannel | None = None
        """While the server is ready."""
        self._decided = trio.Event()
        """It is ready, or will never be."""
        self._scope = trio.CancelScope()

    @property
    def pid(self) -> int | None:
        """Its process, while it is ready."""
        return None if self._channel is None or self._child is None else self._child.pid

    async def run(self) -> None:
        """Have a server until cancelled or stopped, or until it ends by itself, which does no harm."""
        with self._scope, ExitStack() as stack:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError as exc:
                log.info("%s could not be started: %s", self._name, exc)
                self._decided.set()
                return
            stack.enter_context(theirs)
            channel = stack.enter_context(trio.socket.from_stdlib_socket(ours))

            def on_start(child: Child) -> None:
                self._child = child
                theirs.close()  # else we would not learn of its end

            def on_report(child: Child, report: Mapping[str, Any]) -> None:
                self._channel = ForkChannel(channel, child.kill)
                self._decided.set()

            spec = ChildSpec(
                name=self._name,
                program=serve,
                settings={"fd": theirs.fileno(), "load": self._load},
                inherit=(theirs.fileno(),),
                environment=child_environment({}),  # some of it must be there when a process begins
                start_timeout_s=START_S,
            )
            try:
                end = await run_child(spec, on_report, on_start)
                log.info("%s %s: from now on workers are started by exec", self._name, end.describe())
            except ClusterError as exc:
                log.info("%s", exc)
            finally:
                ready, self._channel = self._channel, None
                self._decided.set()
                if ready is not None:
                    await ready.close()  # noqa: ASYNC102 - it shields itself, with a limit
                if self._child is not None and self._child.pid:
                    await _reap_strays(self._child.pid)  # noqa: ASYNC102 - likewise

    def stop(self) -> None:
        """End it. What it has forked goes on. Does not wait."""
        self._scope.cancel()

    async def wait_decided(self) -> None:
        """Wait until it is ready, or will never be."""
        await self._decided.wait()

    async def start(self, start: Start) -> Process:
        """Start a process: forked if possible, else by exec.

        Raises:
          OSError: nothing could be started.
        """
        if start.guarded:  # see `clone_parent`
            await self._decided.wait()
            pid = None if self._channel is None else await self._channel.fork(start)
            if pid is not None:
                return _Forked(pid)
        return await start_by_exec(start)


async def _reap_strays(group: int) -> None:
    """Reap processes that died with the server because they were in its group still, just forked."""
    with trio.move_on_after(DEATH_S, shield=True):
        while not _reap_group(group):  # noqa: ASYNC110 - they were killed; there is no descriptor of them to wait on
            await trio.sleep(0.001)


def _reap_group(group: int) -> bool:
    """Reap those of our children in this process group that have ended. Whether none is left."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


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
