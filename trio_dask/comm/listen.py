"""Accept peers: bind, greet, hand over.

A peer gets `HELLO_S` seconds and 64 KiB to say who it is; until then it costs a task and nothing else, and the number
of such peers is limited. What goes wrong with one peer closes its connection and leaves one line in the log.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Awaitable, Callable

import trio

from trio_dask.comm.addresses import Address
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.shared_blobs import probe
from trio_dask.comm.transport import TRANSPORTS, ConnectionLost, Listener, Transport, first_error
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import FROM_CLIENT, FROM_CONTROL, FROM_NANNY, FROM_WORKER, Allowed
from trio_dask.protocol.hello import (
    EnvelopeReader,
    Hello,
    Refusal,
    Role,
    Welcome,
    check_hello,
    decode_hello,
    encode_answer,
)

HELLO_S = 10.0
"""How long a peer may take to say hello."""

_MAX_UNAUTHENTICATED = 256
_BACK_OFF_S = 0.2
_COMPLAINT_INTERVAL_S = 10.0

_ALLOWED: dict[Role, Allowed] = {
    "client": FROM_CLIENT,
    "worker": FROM_WORKER,
    "nanny": FROM_NANNY,
    "control": FROM_CONTROL,
}

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
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled; `task_status.started` gives the addresses with the ports that were chosen.

    If a socket is `listening` already, inherited perhaps, it takes the place of the endpoint's host and port; it is
    closed at the end.

    A hello is first compared with `identity`, the hello that this process would send itself. Then `admit` decides;
    without it, every peer with the right versions is welcome. `handler` receives clients, workers and others with a
    `Connection` that is already running, `data_handler` the role `data` with a `DataChannel` that takes values of up to
    `max_bytes`; a role without a handler is refused. The connection is closed when its handler returns.

    Handlers run in `handler_nursery` if there is one, and so can outlive the listener. `ProtocolError` and
    `ConnectionLost` from a handler end its connection and are logged; any other exception propagates.

    Raises `OSError`, with a reason in one line, when it cannot listen.
    """
    handshake = _Handshake(identity, admit, handler, data_handler, max_bytes, endpoint)
    listeners = TRANSPORTS[endpoint.address.scheme].listen(endpoint, listening)
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_accept, listener, handshake, handler_nursery or nursery)
            task_status.started([listener.address for listener in listeners])
    finally:
        for listener in listeners:
            listener.close()


async def _accept(listener: Listener, handshake: _Handshake, nursery: trio.Nursery) -> None:
    complain_at = -math.inf
    while True:
        await handshake.unauthenticated.acquire()
        try:
            transport = await listener.accept(nursery)
        except OSError as error:
            handshake.unauthenticated.release()
            if trio.current_time() >= complain_at:
                complain_at = trio.current_time() + _COMPLAINT_INTERVAL_S
                _log.warning("cannot accept connections at %s for now: %s", listener.address, error.strerror)
            await trio.sleep(_BACK_OFF_S)
        except BaseException:
            handshake.unauthenticated.release()
            raise
        else:
            nursery.start_soon(handshake.receive, transport)


class _Handshake:
    """What a listener asks of each peer before it hands it to a handler."""

    def __init__(
        self,
        identity: Hello,
        admit: Admit | None,
        handler: Callable[[Connection], Awaitable[None]] | None,
        data_handler: Callable[[DataChannel], Awaitable[None]] | None,
        max_bytes: int | None,
        endpoint: Endpoint,
    ) -> None:
        self.unauthenticated = trio.Semaphore(_MAX_UNAUTHENTICATED)
        self._identity = identity
        self._admit = admit or self._admit_all
        self._handler = handler
        self._data_handler = data_handler
        self._max_bytes = max_bytes
        self._limits = endpoint.limits

    async def receive(self, transport: Transport) -> None:
        """The whole life of one connection."""
        try:
            greeted = await self._greet(transport)
            if greeted:
                await self._hand_over(transport, *greeted)
        except* ProtocolError as group:
            _log.warning("connection from %s closed: %s", transport.remote, first_error(group))
        except* ConnectionLost as group:  # it changed its mind, or its process is gone: no fault of anybody
            _log.info("connection from %s closed: %s", transport.remote, first_error(group))
        finally:
            transport.abort()

    async def _greet(self, transport: Transport) -> tuple[Hello, bytes] | None:
        try:
            with trio.move_on_after(HELLO_S):
                hello, rest = await _read_hello(transport)
                answer = self._answer(hello, transport)
                await transport.send_all(encode_answer(answer))
                if isinstance(answer, Welcome):
                    return hello, rest
                _log.warning("connection from %s refused: %s", transport.remote, answer.reason)
                await transport.aclose()
                return None
        finally:
            self.unauthenticated.release()
        raise ProtocolError(f"no hello came within {HELLO_S:g} s")

    def _answer(self, hello: Hello, transport: Transport) -> Welcome | Refusal:
        refusal = check_hello(hello, self._identity)
        if refusal:
            return Refusal(refusal, "version")
        if not (self._data_handler if hello.role == "data" else self._handler and hello.role in _ALLOWED):
            return Refusal(f"this {self._identity} does not serve the role {hello.role!r} of the {hello}", "role")
        answer = self._admit(hello, transport)
        return answer._replace(memory=probe()) if isinstance(answer, Welcome) else answer

    def _admit_all(self, hello: Hello, transport: Transport) -> Welcome | Refusal:
        return Welcome(incarnation=self._identity.incarnation)

    async def _hand_over(self, transport: Transport, hello: Hello, rest: bytes) -> None:
        if hello.role == "data" and self._data_handler:
            async with DataChannel(
                transport, hello, max_bytes=self._max_bytes, limits=self._limits, received=rest
            ) as channel:
                try:
                    await self._data_handler(channel)
                except ConnectionLost as error:  # it has what it came for, or asks another
                    _log.debug("data channel of %s closed: %s", transport.remote, error)
        elif self._handler:
            async with Connection(
                transport, hello, allowed=_ALLOWED[hello.role], limits=self._limits, received=rest
            ) as connection:
                await self._handler(connection)


async def _read_hello(transport: Transport) -> tuple[Hello, bytes]:
    reader = EnvelopeReader()
    buffer = memoryview(bytearray(4096))
    while True:
        count = await transport.receive_into(buffer[: reader.room])
        if not count:
            raise ConnectionLost("it was closed before a hello came")
        body = reader.feed(bytes(buffer[:count]))
        if body is not None:
            return decode_hello(body), reader.rest
