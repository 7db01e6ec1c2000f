"""The same bytes inside WebSocket messages, by trio-websocket, for networks that let nothing else through.

trio-websocket reads in a task of its own. That task runs in `WebSocketTransport.run`, in the nursery of the
connection's owner, and never raises there: the next `receive` tells what went wrong. It reads from TCP only while a
receive is waiting. So a websocket behaves like the TCP connection below it: at most one read and one message are ahead
of the reader, a peer that sends faster is slowed down, and an unknown one cannot fill our memory.

A message has no meaning here. A send that is cut short closes the connection, since half a frame cannot be mended.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.tcp import TcpListener, TcpTransport, bind_tcp, connect_tcp
from trio_dask.comm.transport import Bytes, ConnectionLost, Transport, first_error, let_go
from trio_dask.errors import ProtocolError, TrioDaskError

MESSAGE_BYTES = 64 * 2**10
"""The largest message: we send no larger one, and a peer that does is refused."""

_OPTIONS: Mapping[str, Any] = {
    # trio-websocket hands each message to a receive that waits; so when it reads on, none is left.
    "message_queue_size": 0,
    "max_message_size": MESSAGE_BYTES,
    "receive_buffer_size": None,
}

CLOSE_S = 1.0
"""How long a close may wait until the network takes the last frame."""

_BREACHES = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""The codes of RFC 6455 for a peer that breaks the protocol."""

_READ_BYTES = 2**18


class Carrier(Transport, Protocol):
    """What a websocket needs below it: TCP, or TLS over it."""

    async def wait_writable(self) -> None:
        """Wait until `try_send` may take something again."""
        ...


Wrap = Callable[[TcpTransport], Carrier]
Connect = Callable[[Endpoint], Awaitable[Carrier]]

Agree = Callable[[trio.Nursery, "_Stream"], Awaitable[WebSocketConnection]]
"""The handshake of one side; the nursery hosts the reader."""


class _Stream(trio.abc.Stream):
    """The TCP connection as trio-websocket sees it; it can be read only as far as `allow` has said."""

    def __init__(self, tcp: Carrier, on_end: Callable[[], None]) -> None:
        self.end: Exception | None = None
        """How TCP ended, if it did: what it raised, or `trio.EndOfChannel`."""
        self._tcp = tcp
        self._on_end = on_end
        self._allowed = 0
        self._changed = trio.lowlevel.ParkingLot()
        self.is_read = False
        """Whether trio-websocket waits for more; then all that it had was received."""
        self._reading = trio.CancelScope()
        self._is_closing = self._is_closed = False
        self._first = b""

    async def wait_spoken(self) -> None:
        """Wait for the first bytes, which the next receive gives."""
        self._first = await self.receive_some()

    def allow(self, size: int) -> None:
        """Let the next read take up to `size` bytes; 0 lets none begin."""
        self._allowed = size
        if size:
            self._changed.unpark_all()

    def end_after_next_send(self) -> None:
        """Pretend that the peer has closed, once the next frame is out: no answer to that is awaited."""
        self._is_closing = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            await trio.lowlevel.checkpoint()
            data, self._first = self._first, b""
            return data
        data = b""
        self.is_read = True
        try:
            with trio.CancelScope() as self._reading:
                while not self._allowed and not self._is_closed:
                    await self._changed.park()
                if not self._is_closed:
                    data = await self._receive()
        except TrioDaskError as error:
            self.end = error
            self._on_end()
            raise trio.BrokenResourceError from error
        finally:
            self.is_read = False
        if not data:
            self.end = trio.EndOfChannel()
            self._on_end()
        return data

    async def _receive(self) -> bytes:
        if self._allowed >= _READ_BYTES:
            return await self._tcp.receive_some()
        buffer = bytearray(self._allowed)
        count = await self._tcp.receive_into(memoryview(buffer))
        return bytes(buffer[:count])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            sent = self._tcp.try_send(data)
            if sent < len(data):
                await self._tcp.send_all(memoryview(data)[sent:])
        except ConnectionLost as error:
            self.end = error
            raise trio.BrokenResourceError from error
        if self._is_closing:
            self._is_closed = True
            self._reading.cancel()

    async def wait_send_all_might_not_block(self) -> None:
        await self._tcp.wait_writable()

    async def aclose(self) -> None:
        self._on_end()
        await self._tcp.aclose()


class WebSocketTransport:
    """`Transport` over a TCP connection, which it owns. Its own owner has to `run` it."""

    thread_safe_send = False
    fd = None

    def __init__(self, tcp: Carrier, cleanup_s: float) -> None:
        self.remote = tcp.remote
        self.is_local = tcp.is_local
        self._tcp = tcp
        self._cleanup_s = cleanup_s
        self._agreeing = trio.CancelScope()
        self._stream = _Stream(tcp, self._agreeing.cancel)
        self._websocket: WebSocketConnection | None = None
        self._received = b""
        self._end: Exception | None = None
        """What a receive raises when everything was received; `trio.EndOfChannel` stands for the end of the stream."""
        self._closed = False
        self._agreed = trio.Event()
        """Set after the handshake, also if there was none."""
        # When the owner is cancelled, it may still have something to send: see `_hurry_when_cancelled`.
        self._scope = trio.CancelScope(shield=True)

    def __repr__(self) -> str:
        return f"<WebSocketTransport to {self.remote}>"

    @property
    def channel_binding(self) -> bytes:
        return self._tcp.channel_binding

    @property
    def peer_units(self) -> frozenset[str]:
        return self._tcp.peer_units

    # ----------------------------------------------------------------------------------------------- in the background

    async def run(self, agree: Agree) -> None:
        """Do the handshake, and host the reader until this is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry_when_cancelled)
            with self._scope:
                try:
                    async with trio.open_nursery() as readers:
                        with self._agreeing:  # trio-websocket goes on waiting for a handshake that can no longer come
                            self._websocket = await agree(readers, self._stream)
                        if self._websocket is None:
                            self._end = self._stream.end or ProtocolError("not a websocket peer: no handshake came")
                        self._agreed.set()
                except Exception as error:  # whatever trio-websocket raises for what a peer did
                    self._end = self._stream.end or _failure(error)
                    self._agreed.set()
                await trio.sleep_forever()  # until this is closed, or a cancelled owner's time is over
            if not self._closed:
                self.abort()
            nursery.cancel_scope.cancel()

    async def _hurry_when_cancelled(self) -> None:
        """When the nursery of the owner is cancelled, leave the owner time for a goodbye, and no more."""
        try:
            await trio.sleep_forever()
        finally:
            self._scope.deadline = trio.current_time() + self._cleanup_s

    # --------------------------------------------------------------------------------------------------------- sending

    async def wait_agreed(self) -> None:
        """Wait for the end of the handshake. Raises `ProtocolError` or `ConnectionLost` if there is none."""
        self._stream.allow(_READ_BYTES)
        try:
            await self._agreed.wait()
        finally:
            self._stream.allow(0)
        if isinstance(self._end, trio.EndOfChannel):
            raise ConnectionLost(f"{self.remote} closed the connection in the middle of the handshake")
        if self._end is not None:
            raise self._end

    def try_send(self, data: Bytes) -> int:
        """Takes nothing: a websocket cannot send without waiting."""
        self._check()
        return 0

    async def send_all(self, data: Bytes) -> None:
        if not data:
            await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            for start in range(0, len(view), MESSAGE_BYTES):
                await self._send_message(bytes(view[start : start + MESSAGE_BYTES]))

    async def _send_message(self, message: bytes) -> None:
        try:
            await self._check().send_message(message)
        except trio.Cancelled:
            self.abort()  # a part of the frame may be out
            raise
        except Exception as error:  # while it closes, trio-websocket lets errors of the protocol library through
            self._check()
            raise self._broken() from error

    def _check(self) -> WebSocketConnection:
        if self._closed:
            raise trio.ClosedResourceError
        if self._websocket is None or self._end is not None:
            raise self._broken()
        return self._websocket

    def _broken(self) -> ConnectionLost:
        if isinstance(self._stream.end, ConnectionLost):
            return self._stream.end
        return ConnectionLost(f"the connection to {self.remote} broke: the other end is closed")

    # ------------------------------------------------------------------------------------------------------- receiving

    async def receive_some(self) -> bytes:
        await self._receive(_READ_BYTES)
        data, self._received = self._received, b""
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        await self._receive(len(buffer))
        data, self._received = self._received[: len(buffer)], self._received[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    async def _receive(self, size: int) -> None:
        """Have something received, unless the stream has ended; read about `size` bytes at a time for it."""
        if self._received or self._end is not None:
            await trio.lowlevel.checkpoint()
        self._stream.allow(size)
        try:
            while not self._received and self._end is None:
                await self._agreed.wait()
                if self._websocket is not None:
                    self._take(await self._websocket.get_message())
        except ConnectionClosed as closed:
            self._end = self._stream.end or _end(closed)
        finally:
            self._stream.allow(0)
        if self._closed:
            raise trio.ClosedResourceError
        if not self._received and not isinstance(self._end, trio.EndOfChannel):
            assert self._end is not None
            raise self._end

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._end = ProtocolError("not a websocket peer of ours: it sent text")
        else:
            self._received = message

    def has_input(self) -> bool:
        return bool(self._received) or self._end is not None or not self._stream.is_read or self._tcp.has_input()

    # --------------------------------------------------------------------------------------------------------- closing

    def abort(self) -> None:
        self._closed = True
        let_go(self._end)
        let_go(self._stream.end)
        self._tcp.abort()
        self._scope.cancel()
        self._agreed.set()

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        for _ in range(2):  # the reader may still be on its way back from the last message
            await trio.lowlevel.checkpoint()
        # With input that nobody read, the close is a loss for the other side, as it is over TCP.
        is_loss = self._end is None and self.has_input()
        self._closed = True
        self._agreed.set()
        try:
            if self._websocket is not None and not is_loss:
                self._stream.end_after_next_send()
                with trio.move_on_after(CLOSE_S):
                    await self._websocket.aclose()
        finally:
            self._scope.cancel()
            if not is_loss:
                await self._tcp.aclose()
            self._tcp.abort()


def _end(closed: ConnectionClosed) -> Exception:
    """How the peer, or what it sent, has ended the connection."""
    reason = closed.reason
    if reason is None or reason.code in _BREACHES:
        return ProtocolError(f"not a websocket peer of ours: {(reason and reason.reason) or 'it broke the protocol'!r}")
    return trio.EndOfChannel()


def _failure(error: Exception) -> ProtocolError:
    """What the reader raised, in words."""
    cause = first_error(error)
    if isinstance(cause, ProtocolError):
        return cause
    if isinstance(cause, ConnectionRejected):
        return ProtocolError(f"not a websocket peer: it answered with the HTTP status {cause.status_code}")
    return ProtocolError(f"not a websocket peer: {cause!r}")


def _as_it_is(tcp: TcpTransport) -> Carrier:
    return tcp


async def agree_as_server(nursery: trio.Nursery, stream: _Stream) -> WebSocketConnection:
    """Accept whatever path is asked for, since proxies have their own, but no page that a browser shows.

    A browser names the origin of the page in every handshake, and no page can prevent that; callers of ours name none.
    Which one it is plays no part: a page may have a name that leads here. Raises `ProtocolError`.
    """
    await stream.wait_spoken()  # one that is stuck in its TLS handshake costs no task and no parser
    request = await wrap_server_stream(nursery, stream, **_OPTIONS)
    origin = next((value for name, value in request.headers if name.lower() == b"origin"), None)
    if origin is None:
        return await request.accept()
    refused = ProtocolError(f"a browser called, for a page of {origin[:80].decode('latin-1')!a}")
    await request.reject(403, body=b"no page of a browser may connect here")
    stream.end = refused
    await stream.aclose()  # in good order, as a reset might overtake the answer
    raise refused


def agree_as_client(host: str, headers: Mapping[str, str] | None = None) -> Agree:
    """Ask that host for a websocket, with these headers besides the usual ones."""
    more = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]

    async def agree(nursery: trio.Nursery, stream: trio.abc.Stream) -> WebSocketConnection:
        # It uses nothing of a socket's stream but what all streams have.
        socket_stream = cast("trio.SocketStream", stream)
        return await wrap_client_stream(nursery, socket_stream, host, "/", extra_headers=more, **_OPTIONS)

    return agree


def bind_websocket(endpoint: Endpoint, sock: socket.socket | None = None, wrap: Wrap = _as_it_is) -> list[TcpListener]:
    """Listen like `bind_tcp`, with what `wrap` puts between. The handshakes take place with the first receive."""

    def build(tcp: TcpTransport, nursery: trio.Nursery) -> WebSocketTransport:
        transport = WebSocketTransport(wrap(tcp), endpoint.limits.cleanup_s)
        nursery.start_soon(transport.run, agree_as_server)
        return transport

    return bind_tcp(endpoint, sock, build)


async def connect_websocket(
    endpoint: Endpoint, nursery: trio.Nursery, connect: Connect = connect_tcp
) -> WebSocketTransport:
    """Connect with `connect`, and wait until the other side has agreed to speak websocket.

    Raises `OSError` when it cannot be reached, `ProtocolError` when it does not agree, and as `connect` does.
    """
    tcp = await connect(endpoint)
    transport = WebSocketTransport(tcp, endpoint.limits.cleanup_s)
    try:
        headers = endpoint.credentials.tls.headers if endpoint.credentials.tls else None
        nursery.start_soon(transport.run, agree_as_client(str(endpoint).partition("://")[2], headers))
        await transport.wait_agreed()
    except BaseException:  # no agreement, whatever the reason
        transport.abort()
        raise
    return transport
