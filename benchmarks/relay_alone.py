"""What a hand-over between two processes takes at the least, over loopback, with nothing of ours: a byte and a relay.

The byte goes from one process to the relay, which passes it on to the other process, and so on, back and forth. Each of
the three is a Trio loop that does nothing else, with `TCP_NODELAY`. With threads, the loops of both ends wake a thread
for each byte, which sends the next one, as a worker wakes the thread of a task.

`python -m benchmarks.relay_alone PORT COUNT KIND` is one end; it prints the median time from byte to byte.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress

import trio

from .programs import environment


async def relay(ends: list[socket.socket]) -> None:
    first, second = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # an end that has had all its bytes leaves
            async for data in source:
                await target.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on, first, second)
        nursery.start_soon(pass_on, second, first)
        await first.send_all(b"x")


async def in_loop(end: socket.socket, count: int) -> list[float]:
    """When each byte came."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    times: list[float] = []
    for _ in range(count):
        await stream.receive_some(1)
        times.append(time.perf_counter())
        await stream.send_all(b"x")
    return times


async def in_thread(end: socket.socket, count: int) -> list[float]:
    """The same, where a thread sends."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    came = threading.Lock()
    came.acquire()
    times: list[float] = []

    def answer() -> None:
        for _ in range(count):
            came.acquire()
            times.append(time.perf_counter())
            end.send(b"x")

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(count):
        await stream.receive_some(1)
        came.release()
    thread.join()
    return times


KINDS = {"loop": in_loop, "thread": in_thread}


def figures(count: int) -> dict[str, float]:
    """For each kind of ends, the median time of a hand-over, which is half of that between two bytes at one end."""
    found: dict[str, float] = {}
    for kind in KINDS:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            command = [sys.executable, "-m", "benchmarks.relay_alone", str(port), str(count), kind]
            ends = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
            connections = [server.accept()[0] for _ in ends]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trio.run(relay, connections)
        found[kind] = statistics.mean(float(end.communicate()[0]) for end in ends) / 2
    return found


def main() -> None:
    port, count, kind = sys.argv[1:]
    with socket.create_connection(("127.0.0.1", int(port))) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = trio.run(KINDS[kind], end, int(count))
        print(statistics.median(later - earlier for earlier, later in itertools.pairwise(times)), flush=True)
        os._exit(0)  # the socket belongs to the loop that has ended


if __name__ == "__main__":
    main()
