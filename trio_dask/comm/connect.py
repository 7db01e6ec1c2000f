"""Connect to a peer and say hello; where that fails, say why in words."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import trio

from trio_dask.comm.captured_error import CapturedError
from trio_dask.comm.certificate_roles import refusal_of_listener
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.shared_blobs import probe
from trio_dask.comm.transport import TRANSPORTS, ConnectionLost, PeerSilent, Transport
from trio_dask.errors import NoScheduler, ProtocolError, ProvenRefusal, RefusedError
from trio_dask.protocol.codec import TO_CALLER
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.opening import CallerOpening

TRY_SHARE = 0.9
"""One try may take this share of the time left to find a scheduler: when it ends in time, it says what is wrong."""

SHORT_TRY_S = 1.0


def connect_limit_s(limit_s: float, left_s: float) -> float:
    """How long one try to connect may take: `limit_s`, or less if only `left_s` are left to find a scheduler."""
    return min(limit_s, max(SHORT_TRY_S, TRY_SHARE * left_s))


async def connect(endpoint: Endpoint, hello: Hello, *, nursery: trio.Nursery, timeout_s: float = 10.0) -> Connection:
    """Connect to a scheduler, in the role that `hello` names.

    The transport may run tasks in `nursery` until the connection is closed. Raises `NoScheduler`, saying what is wrong
    there, and `RefusedError` with the scheduler's own words (`ProvenRefusal` if these are surely the scheduler's).
    """
    try:
        hello = hello._replace(memory=probe())
        transport, welcome, rest = await _call(endpoint, hello, nursery, timeout_s)
    except _CannotReachError as error:
        missing = "nothing to ask" if hello.role == "control" else "no scheduler"
        raise NoScheduler(f"{missing} at {endpoint}: {error}") from error.__cause__
    return Connection(transport, welcome, allowed=TO_CALLER[hello.role], limits=endpoint.limits, received=rest)


@asynccontextmanager
async def open_connection(endpoint: Endpoint, hello: Hello, *, timeout_s: float = 10.0) -> AsyncGenerator[Connection]:
    """`connect`, for the length of a block; leaving it without `aclose` is a loss for the peer."""
    block = CapturedError()
    async with trio.open_nursery() as nursery:
        with block:
            async with await connect(endpoint, hello, nursery=nursery, timeout_s=timeout_s) as connection:
                yield connection
    block.raise_it()


async def connect_data(
    endpoint: Endpoint, hello: Hello, *, nursery: trio.Nursery, timeout_s: float = 10.0, max_bytes: int | None = None
) -> DataChannel:
    """Connect to the data plane of a peer; `hello` has the role `data`.

    The transport may run tasks in `nursery` until the channel is closed. Raises `ConnectionLost`, saying what is wrong
    there (`PeerSilent` if it does not answer), and `RefusedError` with the peer's own words.
    """
    try:
        transport, welcome, rest = await _call(endpoint, hello, nursery, timeout_s)
    except _CannotReachError as error:
        kind = PeerSilent if isinstance(error.__cause__, trio.TooSlowError) else ConnectionLost
        raise kind(f"cannot reach {endpoint}: {error}") from error.__cause__
    return DataChannel(transport, welcome, max_bytes=max_bytes, limits=endpoint.limits, received=rest)


class _CannotReachError(Exception):
    """Why a peer cannot be reached, in words."""


async def _call(
    endpoint: Endpoint, hello: Hello, nursery: trio.Nursery, timeout_s: float
) -> tuple[Transport, Welcome, bytes]:
    endpoint.check()
    connected = False
    try:
        with trio.fail_after(timeout_s):
            transport = await TRANSPORTS[endpoint.address.scheme].connect(endpoint, nursery)
            connected = True
            if reason := refusal_of_listener(endpoint, transport, hello):
                transport.abort()
                raise RefusedError(reason, "encryption")
            opening = CallerOpening(hello, endpoint.prover(endpoint.credentials.key, transport.channel_binding))
            answer = await _greet(transport, opening)
    except RefusedError:  # an `OSError` as well
        raise
    except (OSError, ProtocolError, trio.TooSlowError) as error:
        raise _CannotReachError(_reason(error, timeout_s, connected=connected)) from error
    if isinstance(answer, Refusal):
        await transport.aclose()
        raise (ProvenRefusal if opening.is_proven else RefusedError)(answer.reason, answer.kind, remedy=answer.remedy)
    return transport, answer, opening.rest


async def _greet(transport: Transport, opening: CallerOpening) -> Welcome | Refusal:
    try:
        await transport.send_all(opening.take_to_send())
        while data := await transport.receive_some():
            answer = opening.receive(data)
            if said := opening.take_to_send():
                await transport.send_all(said)
            if answer is not None:
                return answer
        raise ConnectionLost("it closed the connection without an answer")
    except BaseException:  # no answer, whatever the reason
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


def _reason_of_system(error: OSError) -> str:
    # Trio puts what the system said about each address below the error that it raises.
    below = error.__cause__
    found = (
        cast("ExceptionGroup[Exception]", below).exceptions if isinstance(below, ExceptionGroup) else (below or error,)
    )
    causes = [cause for cause in found if isinstance(cause, OSError)]
    numbers = {cause.errno for cause in causes}
    if errno.ECONNREFUSED in numbers or any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refused: nothing listens there"
    if errno.ETIMEDOUT in numbers:
        return "no answer; the machine may be off, or a firewall in between"
    if numbers & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return "there is no route to that host"
    return ", ".join(dict.fromkeys(cause.strerror or str(cause) for cause in causes)) or str(error)
