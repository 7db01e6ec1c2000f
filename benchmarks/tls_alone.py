"""Our TLS transport beside a bare `trio.SSLStream`, over loopback: the case `tls-alone`.

Measures what each moves, and for how long at most the event loop, which holds both ends, did not turn because it
computed. They take turns, because the speed of a shared machine changes; the share is that of the medians.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from trio_dask.comm.tcp import TcpTransport
from trio_dask.comm.tls import TlsTransport
from trio_dask.security.tls_contexts import Tls

PIECE_BYTES = 2**20
"""A stream that is given more at once makes its loop stand still."""

Step = Callable[[], Awaitable[None]]


class Figure(NamedTuple):
    """How fast bytes moved, and the longest that the loop computed without a turn meanwhile."""

    rate: float
    stall_s: float


def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


async def stream(data: memoryview, tls: Tls) -> Figure:
    """A bare stream, as fast as it can be."""
    near_tcp, far_tcp = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in sockets())
    near = trio.SSLStream(near_tcp, tls.context(listening=False).ssl, server_hostname="here")
    far = trio.SSLStream(far_tcp, tls.context(listening=True).ssl, server_side=True)

    async def send() -> None:
        for start in range(0, len(data), PIECE_BYTES):
            await near.send_all(data[start : start + PIECE_BYTES])

    async def receive() -> None:
        received = 0
        while received < len(data):
            received += len(await far.receive_some())

    figure = await measured(len(data), (near.do_handshake, far.do_handshake), (send, receive))
    await near_tcp.aclose()
    await far_tcp.aclose()
    return figure


async def transport(data: memoryview, tls: Tls) -> Figure:
    """Ours, from one buffer into one buffer."""
    near_tcp, far_tcp = map(TcpTransport, sockets())
    near = TlsTransport(near_tcp, tls.context(listening=False), server_name="here")
    far = TlsTransport(far_tcp, tls.context(listening=True))
    buffer = memoryview(bytearray(len(data)))

    async def send() -> None:
        await near.send_all(data[near.try_send(data) :])

    async def receive() -> None:
        rest = buffer
        while rest:
            rest = rest[await far.receive_into(rest) :]

    figure = await measured(len(data), (near.agree, far.agree), (send, receive))
    near.abort()
    far.abort()
    return figure


async def measured(nbytes: int, before: tuple[Step, ...], steps: tuple[Step, ...]) -> Figure:
    """The figure of these steps, run side by side after those before."""
    await together(before)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            # The time of the thread, without the one that other processes of the machine take.
            start = time.thread_time()
            await trio.lowlevel.checkpoint()
            longest = max(longest, time.thread_time() - start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        start = time.perf_counter()
        await together(steps)
        seconds = time.perf_counter() - start
        nursery.cancel_scope.cancel()
    return Figure(nbytes / seconds, longest)


async def together(steps: tuple[Step, ...]) -> None:
    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(step)


async def compare(nbytes: int, rounds: int) -> tuple[list[Figure], list[Figure]]:
    """The figures of the bare stream and ours, of each round."""
    data, tls = memoryview(bytes(nbytes)), Tls()
    bare, ours = list[Figure](), list[Figure]()
    for _ in range(rounds):
        bare.append(await stream(data, tls))
        ours.append(await transport(data, tls))
    return bare, ours


def figures(nbytes: int, rounds: int = 5) -> dict[str, float]:
    """What the case shows."""
    bare, ours = trio.run(compare, nbytes, rounds)
    rate = statistics.median(figure.rate for figure in ours)
    return {
        "rate": rate,
        "share": rate / statistics.median(figure.rate for figure in bare),
        "stall": statistics.median(figure.stall_s for figure in ours),
    }
