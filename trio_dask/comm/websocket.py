"""`ws://`: the same bytes inside WebSocket messages, for networks that let nothing else through.

The protocol is done by wsproto, without a task or a queue of its own: so a websocket keeps the manners of the TCP
connection below it. Messages have no meaning here; they are cut small, since a frame that was begun must be finished.
"""

from __future__ import annotations

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trio_dask.comm.addresses import Address
from trio_dask.comm.tcp import TcpTransport, connect_tcp
from trio_dask.comm.transport import Bytes, ConnectionLost
from trio_dask.errors import ProtocolError

__all__ = ["WebSocketTransport", "accept_websocket", "connect_websocket"]

_PIECE = 64 * 2**10


class WebSocketTransport:
    """`Transport` over a TCP connection on which the upgrade to WebSocket has been agreed."""

    def __init__(self, tcp: TcpTransport, protocol: WSConnection) -> None:
        self.remote = tcp.remote.replace("tcp:", "ws:", 1)
        self._tcp = tcp
        self._protocol = protocol
        self._received = b""
        self._ended = False
        # Bytes that must go out next, whatever happens: the rest of a frame. If it is the frame of a piece, that piece
        # has not been reported as sent, and the caller will offer it again, as whoever continues a send does.
        self._rest: Bytes = b""
        self._piece_size = 0
        self._pongs = b""

    def __repr__(self) -> str:
        return f"<WebSocketTransport to {self.remote}>"

    def try_send(self, data: Bytes) -> int:
        sent = 0
        with memoryview(data) as view:
            while self._finish_frame():
                sent += self._piece_size
                self._piece_size = 0
                piece = view[sent : sent + _PIECE]
                if not piece:
                    break
                self._begin_frame(self._protocol.send(BytesMessage(bytes(piece))))
                self._piece_size = len(piece)
        return sent

    async def send_all(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += self.try_send(view[sent:])
                if self._rest:
                    await self._tcp.wait_writable()

    async def receive_some(self) -> bytes:
        while not self._received and not self._ended:
            await self._receive_more()
        if self._received:
            await trio.lowlevel.checkpoint_if_cancelled()
        data, self._received = self._received, b""
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        data = await self.receive_some()
        count = min(len(data), len(buffer))
        buffer[:count] = data[:count]
        self._received = data[count:]
        return count

    def has_input(self) -> bool:
        return bool(self._received) or self._tcp.has_input()

    def abort(self) -> None:
        self._tcp.abort()

    async def aclose(self) -> None:
        try:
            if self._finish_frame():
                self._begin_frame(self._protocol.send(CloseConnection(CloseReason.NORMAL_CLOSURE)))
        except (ConnectionLost, trio.ClosedResourceError, LocalProtocolError):
            pass
        await self._tcp.aclose()
