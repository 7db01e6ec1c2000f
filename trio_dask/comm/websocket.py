"""`ws://`: the same bytes inside WebSocket messages, for networks that let nothing else through.

The protocol is done by wsproto, without a task or a queue of its own: so a websocket keeps the manners of the TCP
connection below it. Messages have no meaning here; they are cut small, since a frame that was begun must be finished.
"""

from __future__ import annotations

from contextlib import suppress

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trio_dask.comm.addresses import Address
from trio_dask.comm.tcp import TcpListener, TcpTransport, connect_tcp
from trio_dask.comm.transport import Bytes, ConnectionLost
from trio_dask.errors import ProtocolError

__all__ = ["WebSocketListener", "WebSocketTransport", "connect_websocket"]

_PIECE = 64 * 2**10


class WebSocketTransport:
    """`Transport` over a TCP connection, which it owns."""

    any_thread_sends = False
    fd = None

    def __init__(self, tcp: TcpTransport, protocol: WSConnection) -> None:
        self.remote = tcp.remote.replace("tcp:", "ws:", 1)
        self.is_local = tcp.is_local
        self._tcp = tcp
        self._protocol = protocol
        self._received = b""
        self._agreed = False
        self._ended = False
        # Bytes that must go out next, whatever happens: the rest of a frame. If it is the frame of a piece, that piece
        # has not been reported as sent, and the caller will offer it again, as whoever continues a send does.
        self._rest: Bytes = b""
        self._piece_size = 0
        self._pongs = b""

    def __repr__(self) -> str:
        return f"<WebSocketTransport to {self.remote}>"

    async def ask_for_upgrade(self, host: str) -> None:
        """The handshake of the side that calls."""
        await self._tcp.send_all(self._protocol.send(Request(host=host, target="/")))
        while not self._agreed:
            if self._ended:
                raise ConnectionLost(f"{self.remote} closed the connection in the middle of the handshake")
            self._take(await self._tcp.receive_some())

    def try_send(self, data: Bytes) -> int:
        sent = 0
        with memoryview(data) as view:
            while self._finish_frame():
                sent += self._piece_size
                self._piece_size = 0
                if self._pongs:
                    pongs, self._pongs = self._pongs, b""
                    self._push(pongs)
                elif sent < len(view):
                    piece = bytes(view[sent : sent + _PIECE])
                    self._piece_size = len(piece)
                    self._push(self._protocol.send(BytesMessage(piece)))
                else:
                    break
        return sent

    async def send_all(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = self.try_send(view)
            while sent < len(view):
                await self._tcp.wait_writable()
                sent += self.try_send(view[sent:])

    async def receive_some(self) -> bytes:
        if self._received:
            await trio.lowlevel.checkpoint()
        while not self._received and not self._ended:
            self._take(await self._tcp.receive_some())
        data, self._received = self._received, b""
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        if self._received:
            await trio.lowlevel.checkpoint()
        while not self._received and not self._ended:
            # No more than was asked for, which matters before a peer is accepted.
            chunk = bytearray(min(len(buffer), _PIECE))
            count = await self._tcp.receive_into(memoryview(chunk))
            self._take(bytes(chunk[:count]))
        data, self._received = self._received[: len(buffer)], self._received[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def has_input(self) -> bool:
        return bool(self._received) or self._ended or self._tcp.has_input()

    def abort(self) -> None:
        self._tcp.abort()

    async def aclose(self) -> None:
        with suppress(ConnectionLost, trio.ClosedResourceError, LocalProtocolError):
            # With input that nobody read, the close is a loss for the other side, as it is over TCP.
            if self._finish_frame() and not self.has_input():
                self._push(self._protocol.send(CloseConnection(CloseReason.NORMAL_CLOSURE)))
        await self._tcp.aclose()

    def _finish_frame(self) -> bool:
        """Whether the frame that was begun, if any, is out."""
        if self._rest:
            self._push(self._rest)
        return not self._rest

    def _push(self, data: Bytes) -> None:
        self._rest = memoryview(data)[self._tcp.try_send(data) :]

    def _take(self, data: bytes) -> None:
        """Make something of what TCP gave, whose end is ours as well."""
        if not data:
            self._ended = True
            return
        try:
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                self._handle(event)
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise ProtocolError(f"not a websocket peer: {error}") from error
        if self._pongs and not self._rest:
            self.try_send(b"")

    def _handle(self, event: Event) -> None:
        match event:
            case BytesMessage():
                self._received += event.data
            case CloseConnection():
                self._ended = True
            case Ping():
                self._pongs += self._protocol.send(event.response())
            case Request():
                self._push(self._protocol.send(AcceptConnection()))
            case AcceptConnection():
                self._agreed = True
            case Pong():
                pass
            case _:
                raise ProtocolError(f"not a websocket peer of ours: it sent a {type(event).__name__}")


class WebSocketListener:
    """`Listener` for websockets. The handshake is part of receiving what a peer says first."""

    def __init__(self, tcp: TcpListener) -> None:
        self.address = tcp.address
        self._tcp = tcp

    async def accept(self) -> WebSocketTransport:
        return WebSocketTransport(await self._tcp.accept(), WSConnection(ConnectionType.SERVER))

    def close(self) -> None:
        self._tcp.close()


async def connect_websocket(address: Address) -> WebSocketTransport:
    """Connect, and wait until the other side has agreed to speak websocket.

    Raises `OSError` when it cannot be reached, `ProtocolError` when it does not agree.
    """
    tcp = await connect_tcp(address)
    transport = WebSocketTransport(tcp, WSConnection(ConnectionType.CLIENT))
    try:
        await transport.ask_for_upgrade(str(address).removeprefix("ws://"))
    except BaseException:
        transport.abort()
        raise
    return transport
