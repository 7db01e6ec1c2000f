"""Registers `wss://`: websockets inside TLS. Its code, `websocket.py`, is loaded at the first use."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from trio_dask.comm.transport import Connect, Listen, Listener, register_late

if TYPE_CHECKING:
    from trio_dask.comm.endpoint import Endpoint

SCHEME = "wss"


def _load() -> tuple[Connect, Listen]:
    from trio_dask.comm.tls import connect_tls, secure_listener
    from trio_dask.comm.websocket import bind_websocket, connect_websocket

    def listen(endpoint: Endpoint, sock: socket.socket | None) -> Sequence[Listener]:
        return bind_websocket(endpoint, sock, secure_listener(endpoint))

    return partial(connect_websocket, connect=connect_tls), listen


register_late(SCHEME, _load, is_encrypted=True)
