"""Our TLS transport beside a bare `trio.SSLStream`, over loopback: `python -m benchmarks.tls_alone`.

Prints what each moves in MB/s, and for how long at most the event loop, which holds both ends, did not turn because it
computed. They take turns, because the speed of a shared machine changes; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
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

LEAST_SHARE = 0.8
MOST_STALL_S = 0.020

Step = Callable[[], Awaitable[None]]


class Figure(NamedTuple):
    """How fast bytes moved, and the longest that the loop computed without a turn meanwhile."""

    mb_per_s: float
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
    return Figure(nbytes / seconds / 1e6, longest)


async def together(steps: tuple[Step, ...]) -> None:
    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(step)


async def compare(nbytes: int, rounds: int) -> bool:
    """Print both; whether ours is fast enough."""
    data, tls = memoryview(bytes(nbytes)), Tls()
    figures: dict[str, list[Figure]] = {"trio.SSLStream": [], "trio_dask": []}
    for _ in range(rounds):
        figures["trio.SSLStream"].append(await stream(data, tls))
        figures["trio_dask"].append(await transport(data, tls))
    speeds = {}
    for name, found in figures.items():
        speeds[name] = statistics.median(figure.mb_per_s for figure in found)
        stall_s = statistics.median(figure.stall_s for figure in found)
        print(f"{name:15} {speeds[name]:7.0f} MB/s, computes without a turn for up to {1e3 * stall_s:.1f} ms")
    share = speeds["trio_dask"] / speeds["trio.SSLStream"]
    print(f"share           {share:7.2f} (at least {LEAST_SHARE})")
    return share >= LEAST_SHARE and stall_s <= MOST_STALL_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="how much moves in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not trio.run(compare, arguments.mib * 2**20, arguments.rounds):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
