"""A bare hand-over between two processes through a third, over loopback: `python -m benchmarks.relay_alone`.

What a lock that goes from one worker to another costs at the least: a byte goes from one process to a relay, which
passes it on to the other one, and so on back and forth. Each process is a Trio loop and does nothing else; with
`--threads`, each end wakes another thread for each byte, as a worker wakes the thread of a task.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress

import trio


async def relay(ends: list[socket.socket]) -> None:
    first, second = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # an end that has had all its bytes leaves
            async for data in source:
                await target.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on, first, second)
        nursery.start_soon(pass_on, second, first)


async def in_loop(end: socket.socket, count: int, *, begins: bool) -> list[float]:
    """When each byte came here."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    if begins:
        await stream.send_all(b"x")
    times: list[float] = []
    for _ in range(count):
        assert await stream.receive_some(1) == b"x"
        times.append(time.perf_counter())
        await stream.send_all(b"x")
    return times


async def in_threads(end: socket.socket, count: int, *, begins: bool) -> list[float]:
    """The same; the loop receives and wakes a thread, which sends."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    came = threading.Lock()
    came.acquire()
    times: list[float] = []

    def answer() -> None:
        if begins:
            end.send(b"x")
        for _ in range(count):
            came.acquire()
            times.append(time.perf_counter())
            end.send(b"x")

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(count):
        assert await stream.receive_some(1) == b"x"
        came.release()
    thread.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_alone", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--end", choices=("first", "second"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end is None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            more = ["--threads"] if options.threads else []
            command = [
                sys.executable,
                "-m",
                "benchmarks.relay_alone",
                "--port",
                str(port),
                "--count",
                str(options.count),
            ]
            ends = [subprocess.Popen([*command, *more, "--end", name]) for name in ("first", "second")]
            connections = [server.accept()[0] for _ in ends]
            for connection in connections:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trio.run(relay, connections)
            for end in ends:
                end.wait()
        return
    connection = socket.create_connection(("127.0.0.1", options.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    begins = options.end == "first"
    measure = in_threads if options.threads else in_loop
    times = trio.run(lambda: measure(connection, options.count, begins=begins))
    if begins:
        tenths = statistics.quantiles([(later - time) / 2 * 1e6 for time, later in itertools.pairwise(times)], n=10)
        print(f"{tenths[4]:.0f} µs for each hand-over, half of a round trip; a tenth of them within {tenths[0]:.0f} µs")


if __name__ == "__main__":
    main()
