"""Pairs of transports, connections and channels for the tests of this folder."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, cast

import trio

from trio_dask.comm.addresses import Address
from trio_dask.comm.captured_error import CapturedError
from trio_dask.comm.connect import connect_data, open_connection
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.listen import serve
from trio_dask.comm.tcp import TcpTransport
from trio_dask.comm.tls import TlsTransport
from trio_dask.comm.transport import TRANSPORTS, Transport
from trio_dask.comm.websocket import Carrier, WebSocketTransport, agree_as_client, agree_as_server
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import FROM_CLIENT, TO_CLIENT, encode
from trio_dask.protocol.frames import Kind, encode_frame
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.protocol.messages import Fetch, Message, Query, Reply, Value
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.security.tls_contexts import Tls

HELLO = Hello(role="client", name="tester")
WELCOME = Welcome(incarnation=Incarnation("here"))

Pair = tuple[Transport, Transport]
MakePair = Callable[[], Awaitable[Pair]]


def tcp_pair(scheme: str = "tcp") -> tuple[TcpTransport, TcpTransport]:
    """Two ends, which carry a transport of this scheme."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    peer = Address(scheme, "127.0.0.1")
    return TcpTransport(near, peer), TcpTransport(far, peer)


async def tls_pair(calling: Tls | None = None, listening: Tls | None = None) -> tuple[TlsTransport, TlsTransport]:
    """By default without certificates that anybody vouches for: the bytes take the same way."""
    tcp, far_tcp = tcp_pair()
    near = TlsTransport(tcp, (calling or TLS).context(listening=False), server_name="here")
    far = TlsTransport(far_tcp, (listening or calling or TLS).context(listening=True))
    async with trio.open_nursery() as agreeing:
        agreeing.start_soon(near.agree)
        agreeing.start_soon(far.agree)
    return near, far


async def websocket_pair(
    nursery: trio.Nursery, carriers: tuple[Carrier, Carrier] | None = None
) -> tuple[WebSocketTransport, WebSocketTransport]:
    near, far = (WebSocketTransport(carrier, cleanup_s=0.05) for carrier in carriers or tcp_pair())
    nursery.start_soon(near.run, agree_as_client("here"))
    nursery.start_soon(far.run, agree_as_server)
    async with trio.open_nursery() as agreeing:
        agreeing.start_soon(near.wait_agreed)
        agreeing.start_soon(far.wait_agreed)
    return near, far


async def pair_of(kind: str, nursery: trio.Nursery) -> Pair:
    """Two connected ends of this kind of transport; they must be closed before the nursery can end."""
    if kind == "websocket":
        return await websocket_pair(nursery)
    if kind == "tls":
        return await tls_pair()
    if kind == "tls-websocket":
        return await websocket_pair(nursery, await tls_pair())
    return memory_pair() if kind == "memory" else tcp_pair()


KINDS = ["memory", "tcp", "tls", "websocket", "tls-websocket"]
TLS = Tls()


def connections(
    pair: Pair | None = None, limits: LinkLimits = DEFAULT_LIMITS, far_limits: LinkLimits | None = None
) -> tuple[Connection, Connection]:
    """A client's end and a scheduler's end; not yet entered."""
    near, far = pair or memory_pair()
    return (
        Connection(near, WELCOME, allowed=TO_CLIENT, limits=limits),
        Connection(far, HELLO, allowed=FROM_CLIENT, limits=far_limits or limits),
    )


def channels(pair: Pair | None = None, **options: Any) -> tuple[DataChannel, DataChannel]:
    near, far = pair or memory_pair()
    return DataChannel(near, WELCOME, **options), DataChannel(far, HELLO, **options)


@asynccontextmanager
async def background(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[trio.Nursery]:
    """Tasks that run as long as the block, which waits for them at its end only as long as a test may take."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            yield nursery


async def collect(connection: Connection) -> list[object]:
    """Every message until the end."""
    return [message async for batch in connection.batches() for message in batch]


async def until(condition: Callable[[], bool]) -> None:
    """Give the system a moment to carry bytes from one socket of this process to another."""
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError


def stop_at(transport: Transport, limit: int = 2**26) -> int:
    """Fill the transport until it takes no more; returns how much it took."""
    total = 0
    while total < limit and (sent := transport.try_send(bytes(65536))):
        total += sent
    return total


def frame(*messages: Message) -> bytes:
    return encode_frame(Kind.RECORDS, encode(messages))


async def read_to_end(transport: Transport) -> None:
    while await transport.receive_some():
        pass


def question(number: int) -> Query:
    return Query(number, "who_has", ())


LOOPBACK = Address("tcp", "127.0.0.1", 0)
INPROC = Address("inproc", "place")
SCHEDULER = Hello(role="scheduler")
CLIENT = Hello(role="client", name="c1")
WEBSOCKET = Address("ws", "127.0.0.1", 0)


async def echo(connection: Connection) -> None:
    """A scheduler that answers every question with the question's number."""
    async for batch in connection.batches():
        for question in batch:
            assert isinstance(question, Query)
            connection.send_nowait(Reply(question.request, question.what))
        connection.flush_nowait()


async def give_zeroes(channel: DataChannel) -> None:
    while True:
        try:
            request, _ = await channel.receive()
        except trio.EndOfChannel:
            return
        assert isinstance(request, Fetch)
        for key in request.keys:
            await channel.send(Value(key, (int(key),)), [bytes(int(key))])


@asynccontextmanager
async def serving(
    where: Address = LOOPBACK,
    handler: Callable[[Any], Awaitable[None]] | None = echo,
    *,
    credentials: Credentials = NO_CREDENTIALS,
    **options: Any,
) -> AsyncIterator[Address]:
    """A running listener; gives its address. Leaves nothing running."""
    options = {"identity": SCHEDULER, **options}
    endpoint = Endpoint(where, LinkLimits(cleanup_s=0.5), credentials)
    async with trio.open_nursery() as nursery:
        [address] = await nursery.start(partial(serve, endpoint, handler, **options))
        yield address
        nursery.cancel_scope.cancel()


async def ask(connection: Connection, number: int = 1) -> list[Message]:
    connection.send_nowait(Query(number, "who_has", ()), flush=True)
    return await anext(connection.batches())


async def call(address: Address, nursery: trio.Nursery | None = None) -> Transport:
    """Only connect, and say nothing. A websocket needs the nursery."""
    return await TRANSPORTS[address.scheme].connect(Endpoint(address), cast("trio.Nursery", nursery))


def connection_to(address: Address, hello: Hello = CLIENT, **options: Any) -> AbstractAsyncContextManager[Connection]:
    return open_connection(Endpoint(address), hello, **options)


async def try_connection(address: Address, hello: Hello = CLIENT, **options: Any) -> None:
    """Connect and leave, for a test of how that fails."""
    async with connection_to(address, hello, **options):
        pass


@asynccontextmanager
async def channel_to(address: Address, hello: Hello, **options: Any) -> AsyncIterator[DataChannel]:
    body = CapturedError()
    async with trio.open_nursery() as nursery:
        with body:
            async with await connect_data(Endpoint(address), hello, nursery=nursery, **options) as channel:
                yield channel
    body.raise_it()


async def try_channel(address: Address, hello: Hello, **options: Any) -> None:
    """Connect and leave, for a test of how that fails."""
    async with channel_to(address, hello, **options):
        pass
