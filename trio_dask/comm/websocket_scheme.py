"""Registers `ws://`. Its code, `websocket.py`, is loaded at the first use: trio-websocket takes 40 ms to load."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Listener, Transport, TransportKind, register

SCHEME = "ws"


async def _connect(endpoint: Endpoint, nursery: trio.Nursery) -> Transport:
    from trio_dask.comm.websocket import connect_websocket

    return await connect_websocket(endpoint, nursery)


def _listen(endpoint: Endpoint, sock: socket.socket | None) -> Sequence[Listener]:
    from trio_dask.comm.websocket import bind_websocket

    return bind_websocket(endpoint, sock)


register(TransportKind(SCHEME, _connect, _listen))
