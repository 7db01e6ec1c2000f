"""Registers `ws://`. Its code, `websocket.py`, is loaded at the first use: trio-websocket takes 40 ms to load."""

from __future__ import annotations

from trio_dask.comm.transport import Connect, Listen, register_late

SCHEME = "ws"


def _load() -> tuple[Connect, Listen]:
    from trio_dask.comm.websocket import bind_websocket, connect_websocket

    return connect_websocket, bind_websocket


register_late(SCHEME, _load)
