"""Pairs of transports, connections and channels for the tests of this folder."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from trio_dask.comm.connection import Connection, LinkSettings
from trio_dask.comm.data import DataChannel
from trio_dask.comm.memory import memory_pair
from trio_dask.comm.tcp import TcpTransport
from trio_dask.comm.transport import Transport
from trio_dask.identity import Incarnation
from trio_dask.protocol.codec import FROM_CLIENT, TO_CLIENT
from trio_dask.protocol.hello import Hello, Welcome

HELLO = Hello(role="client", name="tester")
WELCOME = Welcome(incarnation=Incarnation("here"))

Pair = tuple[Transport, Transport]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return TcpTransport(near), TcpTransport(far)


PAIRS: dict[str, Callable[[], Pair]] = {"memory": memory_pair, "tcp": tcp_pair}


def connections(
    pair: Pair | None = None, settings: LinkSettings | None = None, far_settings: LinkSettings | None = None
) -> tuple[Connection, Connection]:
    """A client's end and a scheduler's end; not yet entered."""
    near, far = pair or memory_pair()
    return (
        Connection(near, WELCOME, allowed=TO_CLIENT, settings=settings),
        Connection(far, HELLO, allowed=FROM_CLIENT, settings=far_settings or settings),
    )


def channels(pair: Pair | None = None, **options: object) -> tuple[DataChannel, DataChannel]:
    near, far = pair or memory_pair()
    return DataChannel(near, WELCOME, **options), DataChannel(far, HELLO, **options)


@asynccontextmanager
async def background(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[trio.Nursery]:
    """Tasks that run as long as the block, which waits for them at its end only as long as a test may take."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            yield nursery


async def collect(connection: Connection) -> list[object]:
    """Every message until the end."""
    return [message async for batch in connection.batches() for message in batch]


async def stop_at(transport: Transport, limit: int = 2**26) -> int:
    """Fill the transport until it takes no more; returns how much it took."""
    total = 0
    while total < limit and (sent := transport.try_send(bytes(65536))):
        total += sent
    return total
