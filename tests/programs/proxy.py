"""A wire between two programs that a test can cut: a TCP forwarder in a thread of the test."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

RESET_AT_CLOSE = struct.pack("ii", 1, 0)
LINGER_AT_CLOSE = struct.pack("ii", 0, 0)
PIECE = 65536


class Proxy:
    """Forwards what connects to `address` to another address.

    `reset` breaks all connections and refuses new ones; `stall` lets them stand, but nothing passes, and who connects
    gets no answer; `restore` ends both. What was under way in a stall arrives after it, as with a network that loses
    packets; what was under way at a reset is lost.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._flowing = trio.Event()
        self._flowing.set()
        self._bind(0)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.connections = 0
        """How many there have been."""

    def _bind(self, port: int) -> None:
        self._listener = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", port)))

    async def run(self, started: Callable[[], None]) -> None:
        """Forward until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._all:
            self._open()
            started()
            await trio.sleep_forever()

    def _open(self) -> None:
        self._passing = trio.CancelScope()
        self._all.start_soon(self._accept, self._listener, self._passing)

    async def _accept(self, listener: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        with listener, scope:
            async with trio.open_nursery() as connections:
                while True:
                    near, _ = await listener.accept()
                    connections.start_soon(self._forward, near)

    async def _forward(self, near: trio.socket.SocketType) -> None:
        with near, trio.socket.socket() as far:
            for end in (near, far):
                # Whichever way this ends, save by the end of a stream: the other side hears a reset.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._flowing.wait()
                await far.connect(self._target)
                self.connections += 1
                async with trio.open_nursery() as directions:
                    directions.start_soon(self._carry, near, far)
                    directions.start_soon(self._carry, far, near)
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_AT_CLOSE)
            except* OSError:
                pass

    async def _carry(self, one: trio.socket.SocketType, other: trio.socket.SocketType) -> None:
        while True:
            # Not read before it may pass: a stalled network leaves what was sent with the sender.
            await trio.lowlevel.wait_readable(one)
            await self._flowing.wait()
            data = await one.recv(PIECE)
            if not data:
                other.shutdown(socket.SHUT_WR)
                return
            left = memoryview(data)
            while left:
                left = left[await other.send(left) :]

    def _do(self, change: Callable[[], object]) -> None:
        trio.from_thread.run_sync(change, trio_token=self._token)

    def reset(self) -> None:
        """Break all connections, both ends hear it, and refuse new ones."""

        def change() -> None:
            self._passing.cancel()
            self._listener.close()

        self._do(change)

    def stall(self) -> None:
        """Nothing passes any more, and nobody hears of it."""
        self._do(lambda: setattr(self, "_flowing", trio.Event()))

    def restore(self) -> None:
        """Forward again."""

        def change() -> None:
            self._flowing.set()
            if self._passing.cancel_called:
                self._bind(self.port)
                self._open()

        self._do(change)

    def close(self) -> None:
        """Break everything."""
        self._do(self._all.cancel_scope.cancel)


@contextmanager
def open_proxy(target: str) -> Iterator[Proxy]:
    """A proxy in front of this address."""
    proxy = Proxy(target)
    ready = threading.Event()
    thread = threading.Thread(target=trio.run, args=(proxy.run, ready.set), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(10)
