"""Registers `tls://`. Its code, `tls.py`, is loaded at the first use."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Listener, Transport, TransportKind, register

SCHEME = "tls"


async def _connect(endpoint: Endpoint, nursery: trio.Nursery) -> Transport:
    from trio_dask.comm.tls import connect_tls

    return await connect_tls(endpoint, nursery)


def _listen(endpoint: Endpoint, sock: socket.socket | None) -> Sequence[Listener]:
    from trio_dask.comm.tls import bind_tls

    return bind_tls(endpoint, sock)


register(TransportKind(SCHEME, _connect, _listen, is_encrypted=True))
