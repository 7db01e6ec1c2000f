"""A connection of asyncssh, and the commands that run over it. Their streams are handed over to Trio in pieces."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trio_dask.deploy.ssh.bridge import Bridge
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError, HostLost

if TYPE_CHECKING:
    import asyncssh

MAX_BUFFERED_BYTES = 2**20


class AsyncsshSession:
    """One connection of asyncssh."""

    def __init__(self, bridge: Bridge, connection: asyncssh.SSHClientConnection, place: str) -> None:
        self._bridge = bridge
        self._connection = connection
        self._place = place

    @asynccontextmanager
    async def start(self, command: str) -> AsyncGenerator[AsyncsshProcess]:
        """See `Session.start`."""
        import asyncssh

        process = AsyncsshProcess(self._bridge)
        try:
            await self._bridge.run(process.open, self._connection, command)
        except (asyncssh.Error, OSError) as exc:
            lost = self._connection.is_closed() or isinstance(exc, asyncssh.ConnectionLost | asyncssh.DisconnectError)
            kind = HostLost if lost else HostError
            raise kind(self._place, "start", getattr(exc, "reason", "") or str(exc)) from exc
        try:
            yield process
        finally:
            process.close()

    @asynccontextmanager
    async def forward(self, host: str, port: int) -> AsyncGenerator[int]:
        """See `Session.forward`."""
        import asyncssh

        try:
            listener = await self._bridge.run(_listen, self._connection, host, port)
        except (asyncssh.Error, OSError) as exc:
            raise HostError(self._place, "tunnel", str(exc)) from exc
        try:
            yield listener.get_port()
        finally:
            self._bridge.post(listener.close)


async def _listen(connection: asyncssh.SSHClientConnection, host: str, port: int) -> asyncssh.SSHListener:
    return await connection.forward_local_port("127.0.0.1", 0, host, port)


class _Inbox:
    """Pieces of a stream that wait for their reader."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._changed = trio.Event()
        self._ended = False
        self.size = 0

    def put(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def get(self) -> bytes:
        while not self._pieces and not self._ended:
            self._changed = trio.Event()
            await self._changed.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return data


class AsyncsshProcess:
    """A command on a channel of asyncssh; what it sends is handed over to Trio in pieces."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._token = trio.lowlevel.current_trio_token()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._output = _Inbox()
        self._errors = _Inbox()
        self._paused = False
        self._status = EXIT_UNKNOWN
        self._ended = trio.Event()

    # --------------------------------------------------------------------------- in asyncio's thread

    async def open(self, connection: asyncssh.SSHClientConnection, command: str) -> None:
        """Start the command."""
        import asyncssh

        process = self

        class Session(asyncssh.SSHClientSession[bytes]):
            def data_received(self, data: bytes, datatype: int | None) -> None:
                process.tell(process.received, data, datatype is not None)

            def eof_received(self) -> bool:
                return True  # our own end stays open until we close it

            def exit_status_received(self, status: int) -> None:
                process.tell(process.note_status, status)

            def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
                process.tell(process.note_status, -_number_of(signal))

            def connection_lost(self, exc: Exception | None) -> None:
                process.tell(process.ended)

        opening = connection.create_session(Session, command, encoding=None)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        self._channel, _ = await opening  # pyright: ignore[reportUnknownVariableType]

    def tell(self, function: Callable[..., object], *args: object) -> None:
        """Call this in Trio's thread."""
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            pass  # nobody listens any more

    def _write_there(self, data: bytes) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data)  # pyright: ignore[reportUnknownMemberType] - asyncssh does not say of what

    def _end_input_there(self) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write_eof()

    def _close_there(self) -> None:
        if self._channel is not None:
            self._channel.close()

    # --------------------------------------------------------------------------- in Trio's thread

    def received(self, data: bytes, is_error: bool) -> None:
        """It has sent this."""
        (self._errors if is_error else self._output).put(data)
        if not self._paused and self._output.size + self._errors.size > MAX_BUFFERED_BYTES and self._channel:
            self._paused = True
            self._bridge.post(self._channel.pause_reading)

    def note_status(self, status: int) -> None:
        """It has ended like this."""
        self._status = status

    def ended(self) -> None:
        """Its channel is closed."""
        self._output.end()
        self._errors.end()
        self._ended.set()

    async def _receive(self, inbox: _Inbox) -> bytes:
        data = await inbox.get()
        if self._paused and self._output.size + self._errors.size <= MAX_BUFFERED_BYTES and self._channel:
            self._paused = False
            self._bridge.post(self._channel.resume_reading)
        return data

    async def receive(self) -> bytes:
        """See `RemoteProcess`."""
        return await self._receive(self._output)

    async def receive_error(self) -> bytes:
        """See `RemoteProcess`."""
        return await self._receive(self._errors)

    def write(self, data: bytes) -> None:
        """See `RemoteProcess`."""
        self._bridge.post(self._write_there, data)

    def close_stdin(self) -> None:
        """See `RemoteProcess`."""
        self._bridge.post(self._end_input_there)

    def close(self) -> None:
        """Close its channel: then it has neither stdin nor anything to write to."""
        self._bridge.post(self._close_there)

    async def wait(self) -> int:
        """See `RemoteProcess`."""
        await self._ended.wait()
        return self._status


def _number_of(name: str) -> int:
    return getattr(signal, f"SIG{name}", signal.SIGKILL)
