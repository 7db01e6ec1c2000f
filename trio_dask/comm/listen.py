"""Accept peers: bind, greet, hand over.

What a peer may do before it is accepted is decided by `protocol.opening.ListenerOpening`; where it waits until then, by
`doorstep`. What goes wrong with one peer closes its connection and leaves one line in the log, with others like it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from trio_dask.comm.addresses import Address
from trio_dask.comm.certificate_roles import refusal_of_caller
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.doorstep import Doorstep
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.folded_log import FoldedLog
from trio_dask.comm.shared_blobs import probe
from trio_dask.comm.transport import TRANSPORTS, ConnectionLost, Stranger, Transport, first_error
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import FROM_CALLER
from trio_dask.protocol.hello import Hello, Refusal, Welcome, in_words
from trio_dask.protocol.opening import ListenerOpening
from trio_dask.security.cluster_key import ClusterKey

_T = TypeVar("_T")

_log = logging.getLogger("trio_dask.comm")

Admit = Callable[[Hello, Transport], Welcome | Refusal]


async def serve(
    endpoint: Endpoint,
    handler: Callable[[Connection], Awaitable[None]] | None = None,
    *,
    identity: Hello,
    admit: Admit | None = None,
    data_handler: Callable[[DataChannel], Awaitable[None]] | None = None,
    max_bytes: int | None = None,
    listening: socket.socket | None = None,
    handler_nursery: trio.Nursery | None = None,
    key: Callable[[], ClusterKey | None] | None = None,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled; `task_status.started` gives the addresses with the ports that were chosen.

    If a socket is `listening` already, inherited perhaps, it takes the place of the endpoint's host and port; it is
    closed at the end.

    A peer has to prove that it has the key of the endpoint, or the one that `key` gives when the peer comes.

    A hello is first compared with `identity`, the hello that this process would send itself. Then `admit` decides;
    without it, every peer with the right versions is welcome. `handler` receives clients, workers and others with a
    `Connection` that is already running, `data_handler` the role `data` with a `DataChannel` that takes values of up to
    `max_bytes`; a role without a handler is refused. The connection is closed when its handler returns.

    Handlers run in `handler_nursery` if there is one, and so can outlive the listener. `ProtocolError` and
    `ConnectionLost` from a handler end its connection and are logged; any other exception propagates.

    Raises `OSError`, with a reason in one line, when it cannot listen, and `UsageError` when it may not, for want of
    TLS, or of certificates that can be used.
    """
    endpoint.check()
    log = FoldedLog(_log)
    own_key = key or (lambda: endpoint.credentials.key)
    handshake = _Handshake(identity, admit, handler, data_handler, max_bytes, endpoint, own_key, log)
    listeners = TRANSPORTS[endpoint.address.scheme].listen(endpoint, listening)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            with Doorstep(handshake.receive, handler_nursery or nursery, log) as doorstep:
                for listener in listeners:
                    listener.attach(doorstep)
                task_status.started([listener.address for listener in listeners])
                await doorstep.run()
    finally:
        for listener in listeners:
            listener.close()
        log.end(trio.current_time())


async def listen_in_range(
    scheme: str, host: str, ports: tuple[int, int], listen: Callable[[Address], Awaitable[_T]]
) -> _T:
    """What `listen` returns for the first port of the range, in order, that is free.

    Raises:
      OSError: all of them are in use, or it cannot listen for another reason.
    """
    first, last = ports
    for port in range(first, last + 1):
        try:
            return await listen(Address(scheme, host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or first == last:
                raise
    place = f"{scheme}://{host or '0.0.0.0'}"
    raise OSError(errno.EADDRINUSE, f"cannot listen at {place}: all ports from {first} to {last} are in use")


class _Handshake(NamedTuple):
    """What a listener asks of each peer before it hands it to a handler."""

    identity: Hello
    admit: Admit | None
    handler: Callable[[Connection], Awaitable[None]] | None
    data_handler: Callable[[DataChannel], Awaitable[None]] | None
    max_bytes: int | None
    endpoint: Endpoint
    key: Callable[[], ClusterKey | None]
    log: FoldedLog

    async def receive(self, doorstep: Doorstep, stranger: Stranger, since: float) -> None:
        """The whole life of a connection, from the first bytes on; it came at `since`."""
        transport = stranger.open(doorstep.nursery)
        served = {*(FROM_CALLER if self.handler else ()), *(("data",) if self.data_handler else ())}
        prover = self.endpoint.prover(self.key(), transport.channel_binding)
        opening = ListenerOpening(self.identity, prover, served, partial(self._decide, transport), since)
        try:
            try:
                hello = await self._greet(doorstep, stranger, transport, opening)
            finally:
                doorstep.leave(stranger)
            if hello is not None:
                await self._hand_over(transport, hello, opening.rest)
        except* ProtocolError as group:
            self._complain(logging.WARNING, stranger, f"closed: {first_error(group)}")
        except* ConnectionLost as group:  # it changed its mind, or its process is gone: no fault of anybody
            self._complain(logging.INFO, stranger, f"closed: {first_error(group)}")
        finally:
            transport.abort()

    def _complain(self, level: int, stranger: Stranger, what: str) -> None:
        self.log.complain(level, stranger.host, f"connection from {stranger.remote}", what, trio.current_time())

    async def _greet(
        self, doorstep: Doorstep, stranger: Stranger, transport: Transport, opening: ListenerOpening
    ) -> Hello | None:
        """The hello of a peer that is welcome; None after a refusal, and if it was sent away meanwhile."""
        buffer = memoryview(bytearray(4096))
        try:
            with trio.CancelScope(deadline=opening.next_deadline()):
                answer = None
                while answer is None:
                    count = await transport.receive_into(buffer[: opening.room])
                    if not count:
                        raise ConnectionLost("it was closed before a hello came")
                    answer = opening.receive(bytes(buffer[:count]))
                    if said := opening.take_to_send():
                        doorstep.step(stranger)
                        await transport.send_all(said)
                if isinstance(answer, Welcome):
                    return opening.hello
                role = "" if opening.hello is None else f"({in_words(opening.hello.role)}) "
                self._complain(logging.WARNING, stranger, f"{role}refused: {answer.reason}")
                await transport.aclose()
                return None
        except trio.ClosedResourceError:  # it had to give way
            return None
        opening.tick(trio.current_time())
        return None

    def _decide(self, transport: Transport, hello: Hello) -> Welcome | Refusal:
        if reason := refusal_of_caller(self.endpoint, transport, hello):
            return Refusal(reason, "encryption")
        answer = self.admit(hello, transport) if self.admit else Welcome(self.identity.incarnation)
        return answer._replace(memory=probe()) if isinstance(answer, Welcome) else answer

    async def _hand_over(self, transport: Transport, hello: Hello, rest: bytes) -> None:
        if hello.role == "data" and self.data_handler:
            async with DataChannel(
                transport, hello, max_bytes=self.max_bytes, limits=self.endpoint.limits, received=rest
            ) as channel:
                try:
                    await self.data_handler(channel)
                except ConnectionLost as error:  # it has what it came for, or asks another
                    _log.debug("data channel of %s closed: %s", transport.remote, error)
        elif self.handler:
            async with Connection(
                transport, hello, allowed=FROM_CALLER[hello.role], limits=self.endpoint.limits, received=rest
            ) as connection:
                await self.handler(connection)
