"""Registers `wss://`: websockets inside TLS. Its code, `websocket.py`, is loaded at the first use."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Listener, Transport, TransportKind, register

SCHEME = "wss"


async def _connect(endpoint: Endpoint, nursery: trio.Nursery) -> Transport:
    from trio_dask.comm.tls import connect_tls
    from trio_dask.comm.websocket import connect_websocket

    return await connect_websocket(endpoint, nursery, connect_tls)


def _listen(endpoint: Endpoint, sock: socket.socket | None) -> Sequence[Listener]:
    from trio_dask.comm.tls import secure_listener
    from trio_dask.comm.websocket import bind_websocket

    return bind_websocket(endpoint, sock, secure_listener(endpoint))


register(TransportKind(SCHEME, _connect, _listen, is_encrypted=True))
