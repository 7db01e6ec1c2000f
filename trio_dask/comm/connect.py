"""Call a peer: connect, say hello, and understand in words why it did not work."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import cast

import trio

from trio_dask.comm.addresses import Address
from trio_dask.comm.connection import Connection, LinkSettings
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.inproc import connect_memory
from trio_dask.comm.shared_blobs import memory_domain
from trio_dask.comm.tcp import connect_tcp
from trio_dask.comm.transport import ConnectionLost, PeerSilent, Transport
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError
from trio_dask.protocol.codec import TO_CLIENT, TO_CONTROL, TO_NANNY, TO_WORKER, Allowed
from trio_dask.protocol.hello import EnvelopeReader, Hello, Refusal, Role, Welcome, decode_answer, encode_hello

__all__ = ["limit_of_call", "open_connection", "open_data_channel"]

_ALLOWED: dict[Role, Allowed] = {"client": TO_CLIENT, "worker": TO_WORKER, "nanny": TO_NANNY, "control": TO_CONTROL}

DIAL_SHARE = 0.9
"""The share of the time left to find a scheduler that one call may take: its end says why there is none."""

SHORT_DIAL_S = 1.0


def limit_of_call(limit_s: float, left_s: float) -> float:
    """How long a call may take: `limit_s`, or less if only `left_s` are left to find a scheduler."""
    return min(limit_s, max(SHORT_DIAL_S, DIAL_SHARE * left_s))


async def open_connection(
    address: Address, hello: Hello, *, timeout_s: float = 10.0, settings: LinkSettings | None = None
) -> Connection:
    """Connect to a scheduler, as the client or worker that `hello` says.

    Raises `NoScheduler`, saying what is wrong there, and `RefusedError` with the scheduler's own words.
    """
    allowed = _ALLOWED[hello.role]
    try:
        transport, welcome, rest = await _call(address, hello._replace(memory=memory_domain()), timeout_s)
    except _CannotReachError as error:
        missing = "nothing to ask" if hello.role == "control" else "no scheduler"
        raise NoScheduler(f"{missing} at {address}: {error}") from error.__cause__
    return Connection(transport, welcome, allowed=allowed, settings=settings, received=rest)


async def open_data_channel(
    address: Address,
    hello: Hello,
    *,
    timeout_s: float = 10.0,
    max_bytes: int | None = None,
    settings: LinkSettings | None = None,
) -> DataChannel:
    """Connect to the data plane of a peer; `hello` has the role `data`.

    Raises `ConnectionLost`, saying what is wrong there (`PeerSilent` if it does not answer), and `RefusedError` with
    the peer's own words.
    """
    try:
        transport, welcome, rest = await _call(address, hello, timeout_s)
    except _CannotReachError as error:
        kind = PeerSilent if isinstance(error.__cause__, trio.TooSlowError) else ConnectionLost
        raise kind(f"cannot reach {address}: {error}") from error.__cause__
    return DataChannel(transport, welcome, max_bytes=max_bytes, settings=settings, received=rest)


class _CannotReachError(Exception):
    """In words."""


async def _call(address: Address, hello: Hello, timeout_s: float) -> tuple[Transport, Welcome, bytes]:
    connected = False
    try:
        with trio.fail_after(timeout_s):
            transport = await _connect(address)
            connected = True
            answer, rest = await _greet(transport, hello)
    except (OSError, ProtocolError, trio.TooSlowError) as error:
        raise _CannotReachError(_reason(error, timeout_s, connected=connected)) from error
    if isinstance(answer, Refusal):
        await transport.aclose()
        raise RefusedError(answer.reason)
    return transport, answer, rest


async def _connect(address: Address) -> Transport:
    if address.scheme == "inproc":
        return await connect_memory(address)
    if address.scheme == "ws":
        # Imported here, because wsproto takes 20 ms to load and few programs need it.
        from trio_dask.comm.websocket import connect_websocket

        return await connect_websocket(address)
    return await connect_tcp(address)


async def _greet(transport: Transport, hello: Hello) -> tuple[Welcome | Refusal, bytes]:
    reader = EnvelopeReader()
    try:
        await transport.send_all(encode_hello(hello))
        while True:
            data = await transport.receive_some()
            if not data:
                raise ConnectionLost("it closed the connection without an answer")
            body = reader.feed(data)
            if body is not None:
                return decode_answer(body), reader.rest
    except BaseException:
        transport.abort()
        raise


def _reason(error: OSError | ProtocolError | trio.TooSlowError, timeout_s: float, *, connected: bool) -> str:
    match error:
        case ProtocolError():
            return f"what listens there is {error}"
        case ConnectionLost():
            return f"what listens there does not answer a hello: {error}"
        case trio.TooSlowError() if connected:
            return f"what listens there did not answer within {timeout_s:.3g} s"
        case trio.TooSlowError():
            return f"no answer within {timeout_s:.3g} s; the machine may be off, or a firewall in between"
        case socket.gaierror():
            return "unknown host name"
        case _:
            return _reason_of_system(error)


def _reason_of_system(error: OSError | ProtocolError | trio.TooSlowError) -> str:
    causes = list(_system_errors(error))
    numbers = {cause.errno for cause in causes}
    if errno.ECONNREFUSED in numbers or any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refused: nothing listens there"
    if errno.ETIMEDOUT in numbers:
        return "no answer; the machine may be off, or a firewall in between"
    if numbers & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return "there is no route to that host"
    return ", ".join(dict.fromkeys(cause.strerror or str(cause) for cause in causes)) or str(error)


def _system_errors(error: BaseException | None) -> Iterator[OSError]:
    """What the system said about each address that was tried; Trio hangs it below the error it raises."""
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _system_errors(part)
    elif error and error.__cause__:
        yield from _system_errors(error.__cause__)
    elif isinstance(error, OSError):
        yield error
