"""Websockets: what other programs may do on one that ours never do."""

import random

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, RejectConnection, Request, TextMessage

from tests.comm.kit import background, tcp_pair
from trio_dask.comm.transport import ConnectionLost
from trio_dask.comm.websocket import WebSocketTransport
from trio_dask.errors import ProtocolError


@pytest.fixture
async def ends():
    """A bare client and our server, neither of which has said anything."""
    near, far = tcp_pair()
    await trio.lowlevel.checkpoint()
    with trio.fail_after(20):
        yield near, WSConnection(ConnectionType.CLIENT), WebSocketTransport(far, WSConnection(ConnectionType.SERVER))
    near.abort()
    far.abort()


ASK = Request(host="here", target="/any/path")


async def test_the_handshake_may_come_in_pieces_and_with_the_first_message(ends):
    tcp, client, server = ends
    handshake = client.send(ASK)
    peer = WSConnection(ConnectionType.SERVER)
    peer.receive_data(handshake)

    async def dribble():
        for byte in handshake:
            await tcp.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        while not [*client.events()]:
            client.receive_data(await tcp.receive_some())
        await tcp.send_all(client.send(BytesMessage(b"hello ")) + client.send(BytesMessage(b"there")))

    async with background(dribble):
        received = await server.receive_some()
        while len(received) < 11:
            received += await server.receive_some()
    assert received == b"hello there"


async def test_pings_are_answered_between_frames(ends):
    tcp, client, server = ends
    data = random.Random(0).randbytes(2**24)
    received, pongs = bytearray(), []

    async def read():
        client.receive_data(await tcp.receive_some())
        for event in client.events():
            if isinstance(event, BytesMessage):
                received.extend(event.data)
            elif isinstance(event, Pong):
                pongs.append(bytes(event.payload))

    async def ping(payload):
        await tcp.send_all(client.send(Ping(payload)) + client.send(BytesMessage(payload)))
        assert await server.receive_some() == payload

    await tcp.send_all(client.send(ASK))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)  # the handshake, and nothing behind it
        await read()
        nursery.cancel_scope.cancel()
    await ping(b"while nothing is under way")
    await read()
    assert pongs == [b"while nothing is under way"]
    taken = server.try_send(data)
    assert server.try_send(data[taken:]) == 0
    await read()  # makes room for the rest of the frame
    await ping(b"while half a frame is")

    async def read_everything():
        while len(received) < len(data):
            await read()

    async with background(read_everything):
        await server.send_all(data[taken:])
    assert received == data
    assert pongs[1:] == [b"while half a frame is"]


async def test_a_close_is_an_end_though_tcp_goes_on(ends):
    tcp, client, server = ends
    await tcp.send_all(client.send(ASK))

    async def close():
        while not [*client.events()]:
            client.receive_data(await tcp.receive_some())
        await tcp.send_all(client.send(BytesMessage(b"bye")) + client.send(CloseConnection(1000)))

    async with background(close):
        assert await server.receive_some() == b"bye"
        assert await server.receive_some() == b""
        assert await server.receive_into(memoryview(bytearray(1))) == 0


async def test_no_more_is_read_than_was_asked_for(ends):
    """What may be read from a stranger is counted by the caller."""
    tcp, client, server = ends
    await tcp.send_all(client.send(ASK))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        client.receive_data(await tcp.receive_some())
        nursery.cancel_scope.cancel()
    assert [*client.events()]
    message = client.send(BytesMessage(bytes(100_000)))
    await tcp.send_all(message)
    assert 0 < await server.receive_into(memoryview(bytearray(1000))) <= 1000
    assert len(await server._tcp.receive_some()) >= len(message) - 1000


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 100_000,
    ],
)
async def test_what_is_no_websocket_is_refused(ends, said):
    tcp, _, server = ends
    tcp.try_send(said)
    with pytest.raises(ProtocolError, match="not a websocket peer"):
        await server.receive_some()


async def test_text_is_refused(ends):
    tcp, client, server = ends
    tcp.try_send(client.send(ASK))

    async def talk():
        while not [*client.events()]:
            client.receive_data(await tcp.receive_some())
        tcp.try_send(client.send(TextMessage("hello")))

    async with background(talk):
        with pytest.raises(ProtocolError, match="it sent a TextMessage"):
            await server.receive_some()


async def test_a_server_that_does_not_agree():
    near, far = tcp_pair()
    client = WebSocketTransport(near, WSConnection(ConnectionType.CLIENT))

    async def refuse():
        server = WSConnection(ConnectionType.SERVER)
        while not [*server.events()]:
            server.receive_data(await far.receive_some())
        far.try_send(server.send(RejectConnection(status_code=403)))

    async with background(refuse):
        with pytest.raises(ProtocolError, match="it sent a RejectConnection"):
            await client.ask_for_upgrade("here")
    client.abort()
    await far.aclose()


async def test_a_server_that_hangs_up():
    near, far = tcp_pair()
    await far.aclose()
    client = WebSocketTransport(near, WSConnection(ConnectionType.CLIENT))
    with pytest.raises(ConnectionLost):
        await client.ask_for_upgrade("here")
    client.abort()
