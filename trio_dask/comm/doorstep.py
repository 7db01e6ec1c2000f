"""Where strangers wait: until they say something they cost a socket, and no task.

`security.strangers` decides who is heard and who has to go; this acts on it.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from trio_dask.comm.addresses import Address
from trio_dask.protocol.opening import HELLO_S
from trio_dask.security.strangers import Strangers

if TYPE_CHECKING:
    from trio_dask.comm.folded_log import FoldedLog
    from trio_dask.comm.transport import Stranger, Transport

_MOST_WAITING = 4096
_MOST_HEARD = 768  # each costs a task: 10 KB, or with websockets and TLS some 80 KB

_ACCEPTED_AT_ONCE = 256
_HEARD_AT_ONCE = 16

_BACK_OFF_S = 0.2

_LACKS_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Open = Callable[[socket.socket, Address, trio.Nursery], "Transport"]
"""Makes a transport of the socket of this peer; what that does in the background runs in the nursery."""


Hear = Callable[["Doorstep", "Stranger", float], Awaitable[None]]
"""Exchanges the hello with a stranger that came at this time, tells of its steps, and finally that it leaves."""


class Doorstep:
    """The strangers of one `serve`; `hear` runs in `nursery` for each whose turn it is.

    Leaving the block sends away those that still wait.
    """

    def __init__(self, hear: Hear, nursery: trio.Nursery, log: FoldedLog) -> None:
        most = _share_of_descriptors()
        self._strangers: Strangers[Stranger] = Strangers(min(_MOST_WAITING, most), min(_MOST_HEARD, most), HELLO_S)
        self._accepted_at_once = min(_ACCEPTED_AT_ONCE, most // 2)  # a newcomer is looked at before it may have to go
        self._selector = selectors.DefaultSelector()
        self._nap = trio.CancelScope()
        self._hear = hear
        self.nursery = nursery
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for stranger in self._strangers.waiting():
            self._strangers.leave(stranger)
            stranger.abort()
        self._selector.close()

    # ------------------------------------------------------------------------------------------------------ strangers

    def arrive(self, stranger: Stranger) -> None:
        """It has connected."""
        gives_way = self._strangers.arrive(stranger, stranger.host, trio.current_time())
        if gives_way is not None:
            self._turn_away(gives_way, "it gave way to others before it was heard")

    def speak(self, stranger: Stranger) -> None:
        """It has said something; `attend` to it."""
        self._strangers.speak(stranger)

    def attend(self, most: int = _HEARD_AT_ONCE) -> None:
        """Hear the next ones, as far as there are places."""
        for _ in range(most):
            turn = self._strangers.hear(trio.current_time(), _is_unread)
            if turn is None:
                break
            if turn.gives_way is not None:
                self._turn_away(turn.gives_way, "it gave way to others in the middle of its hello")
            self.nursery.start_soon(self._hear, self, turn.stranger, turn.since)
        self._nap.deadline = self._strangers.next_deadline()

    def step(self, stranger: Stranger) -> None:
        """It has said what was asked of it, and is asked for more."""
        self._strangers.step(stranger, trio.current_time())

    def leave(self, stranger: Stranger) -> None:
        """It is no stranger any more, or it is gone."""
        self._strangers.leave(stranger)
        self.attend(1)

    def _turn_away(self, stranger: Stranger, reason: str) -> None:
        stranger.abort()
        self._log.complain(
            logging.WARNING,
            stranger.host,
            f"connection from {stranger.remote}",
            f"closed: {reason}",
            trio.current_time(),
        )

    # -------------------------------------------------------------------------------------------------------- sockets

    def open(self, listening: socket.socket, address: Address, open_: Open) -> None:
        """Let in whoever connects to this socket, which has that address, while this runs."""
        accept = partial(self._accept, listening, address, open_)
        self._selector.register(listening, selectors.EVENT_READ, accept)

    async def run(self) -> None:
        """Accept, attend, and send away those whose time is over, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._strangers.next_deadline()) as self._nap:
                await trio.lowlevel.wait_readable(self._selector.fileno())
            accepts: list[Callable[[], str | None]] = []
            for key, _ in self._selector.select(0):
                if isinstance(key.data, _SocketStranger):
                    key.data.stop_watching()
                    self.speak(key.data)
                else:
                    accepts.append(key.data)
            self.attend()
            for stranger in self._strangers.due(trio.current_time()):
                self._turn_away(stranger, f"no hello came within {HELLO_S:g} s")
            for accept in accepts:  # last, since a newcomer may take the place of one that has just spoken
                lack = accept()
                if lack is not None and not self._make_room():
                    self._log.complain(logging.WARNING, "", "a listener", lack, trio.current_time())
                    await trio.sleep(_BACK_OFF_S)

    def _accept(self, listening: socket.socket, address: Address, open_: Open) -> str | None:
        """Take some that have connected; in words, what is lacking for that, if something is."""
        for number in range(self._accepted_at_once):
            try:
                sock, peer = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _LACKS_RESOURCES:
                    if number:  # the system says so even if nobody else has connected
                        break
                    return f"cannot accept connections at {address} for now: {error.strerror}"
                # Any other error is about one peer that left while it waited; the next may be fine.
                continue
            self.arrive(_SocketStranger(sock, Address(address.scheme, *peer[:2]), open_, self._selector))
        return None

    def _make_room(self) -> bool:
        gives_way = self._strangers.make_room(trio.current_time(), _is_unread)
        if gives_way is not None:
            self._turn_away(gives_way, "it gave way to others, since this process may open no more files")
        return gives_way is not None


class _SocketStranger:
    """`Stranger` at the other end of a socket, which belongs to its transport once that is open."""

    __slots__ = ("_address", "_open", "_selector", "_socket", "_transport")

    def __init__(self, sock: socket.socket, address: Address, open_: Open, selector: selectors.BaseSelector) -> None:
        self._socket = sock
        self._address = address
        self._open = open_
        self._selector: selectors.BaseSelector | None = selector
        self._transport: Transport | None = None
        selector.register(sock, selectors.EVENT_READ, self)

    @property
    def host(self) -> str:
        return _network_of(self._address.host)

    @property
    def remote(self) -> str:
        return str(self._address)

    def stop_watching(self) -> None:
        """It has spoken, or is gone."""
        if self._selector is not None:
            self._selector.unregister(self._socket)
            self._selector = None

    def open(self, nursery: trio.Nursery) -> Transport:
        self._transport = self._open(self._socket, self._address, nursery)
        return self._transport

    def has_input(self) -> bool:
        return self._transport is None or self._transport.has_input()

    def abort(self) -> None:
        self.stop_watching()
        if self._transport is not None:
            self._transport.abort()
        else:
            # Lingering for zero seconds makes the kernel forget the connection at once.
            with suppress(OSError):  # macOS: it was reset already
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()


def _is_unread(stranger: Stranger) -> bool:
    return stranger.has_input()


def _network_of(host: str) -> str:
    """What counts as one address: whoever has one IPv6 address has 2**64 of them."""
    if ":" not in host:
        return host
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    is_ipv4 = packed.startswith(bytes(10) + b"\xff\xff")
    return socket.inet_ntoa(packed[12:]) if is_ipv4 else socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))


def _share_of_descriptors() -> int:
    """How many strangers may wait, and how many be heard: each a quarter of what this process may open."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return _MOST_WAITING
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_WAITING if limit == resource.RLIM_INFINITY else max(8, limit // 4)
