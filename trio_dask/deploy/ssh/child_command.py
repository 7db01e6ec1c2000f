"""A command on this machine, as a session has them: its three streams, and an end that takes what it started along."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import trio

REAP_S = 1.0


class ChildCommand:
    """A running command; see `RemoteProcess`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr
        self._to_write, self._written = trio.open_memory_channel[bytes](1000)

    async def send(self) -> None:
        """Send to its stdin what is written, until that ends."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has ended
            async for data in self._written:
                await self._stdin.send_all(data)
        await self._stdin.aclose()

    async def receive(self) -> bytes:
        """See `RemoteProcess`."""
        return bytes(await self._stdout.receive_some())

    async def receive_error(self) -> bytes:
        """See `RemoteProcess`."""
        return bytes(await self._stderr.receive_some())

    def write(self, data: bytes) -> None:
        """See `RemoteProcess`. What a command that has stalled does not read is dropped in the end."""
        with suppress(trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            self._to_write.send_nowait(data)

    def close_stdin(self) -> None:
        """See `RemoteProcess`."""
        self._to_write.close()

    async def wait(self) -> int:
        """See `RemoteProcess`."""
        return await self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it, and its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


@asynccontextmanager
async def run_command(words: Sequence[str]) -> AsyncGenerator[ChildCommand]:
    """A command in a session of its own, which Ctrl-C in a terminal does not reach. The end of the block kills it.

    Raises OSError if it cannot be started.
    """
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    command = ChildCommand(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.send)
            yield command
            nursery.cancel_scope.cancel()
    finally:
        command.kill()
        with trio.move_on_after(REAP_S, shield=True):
            await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with trio.move_on_after(0, shield=True):
                    await stream.aclose()


class LocalSession:
    """This machine, as if it had been logged in to."""

    def start(self, command: str) -> AbstractAsyncContextManager[ChildCommand]:
        """See `Session.start`. That somebody has logged in to this machine does not say where others reach it."""
        return run_command(["/bin/sh", "-c", f"unset SSH_CONNECTION; {command}"])

    @asynccontextmanager
    async def forward(self, host: str, port: int) -> AsyncGenerator[int]:
        """See `Session.forward`: nothing stands between."""
        yield port
