"""Websockets: what other programs may do on one that ours never do, and what becomes of the tasks behind one."""

import random
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import wrap_server_stream

from tests.comm.kit import background, pair_of, read_to_end, tcp_pair, until, websocket_pair
from trio_dask.comm import websocket
from trio_dask.comm.tcp import TcpTransport
from trio_dask.comm.transport import ConnectionLost, Transport
from trio_dask.comm.websocket import MESSAGE_BYTES, WebSocketTransport, agree_as_client, agree_as_server
from trio_dask.errors import ProtocolError

ASK = (
    b"GET /any/path HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AGREE = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # the answer to that key, by RFC 6455
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def sent_by_client(opcode: int, payload: bytes = b"") -> bytes:
    """A whole message; its mask is four zeroes, which changes nothing."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2) if size < 2**16 else b"\xff" + size.to_bytes(8)
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


async def read_frame(tcp: Transport) -> tuple[int, bytes]:
    """Opcode and payload of the next frame of a server."""
    first, short = await read_exactly(tcp, 2)
    size = int.from_bytes(await read_exactly(tcp, {126: 2, 127: 8}[short])) if short > 125 else short
    return first & 15, await read_exactly(tcp, size)


async def read_exactly(tcp: Transport, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        view = memoryview(bytearray(size - len(data)))
        count = await tcp.receive_into(view)
        assert count
        data += view[:count]
    return bytes(data)


async def read_agreement(tcp: Transport) -> None:
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await read_exactly(tcp, 1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(AGREE)


Ends = tuple[TcpTransport, WebSocketTransport]


@pytest.fixture
async def bare(nursery: trio.Nursery) -> AsyncIterator[Ends]:
    """The TCP connection of a client that has said nothing yet, and our server."""
    near, far = tcp_pair()
    server = WebSocketTransport(far, cleanup_s=0.05)
    nursery.start_soon(server.run, agree_as_server)
    with trio.fail_after(20):
        yield near, server
    near.abort()
    server.abort()


@pytest.fixture
async def agreed(bare: Ends) -> Ends:
    """The same after the handshake."""
    tcp, server = bare
    await tcp.send_all(ASK)
    async with trio.open_nursery() as receiving:
        receiving.start_soon(server.receive_into, memoryview(bytearray(len(ASK))))
        await read_agreement(tcp)
        await until(lambda: server._websocket is not None)
        receiving.cancel_scope.cancel()
    return tcp, server


# ------------------------------------------------------------------------------------------------------- other programs


async def test_the_handshake_may_come_in_pieces_and_with_the_first_message(bare: Ends) -> None:
    tcp, server = bare

    async def dribble() -> None:
        for byte in ASK:
            await tcp.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        await tcp.send_all(sent_by_client(BINARY, b"hello ") + sent_by_client(BINARY, b"there"))

    async with background(dribble):
        received = await server.receive_some()
        while len(received) < 11:
            received += await server.receive_some()
    assert received == b"hello there"


async def test_pings_are_answered_between_the_frames_of_a_large_send(agreed: Ends) -> None:
    tcp, server = agreed
    data = random.Random(0).randbytes(2**24)
    received, pongs = bytearray(), []

    async def read_everything() -> None:
        while len(received) < len(data):
            opcode, payload = await read_frame(tcp)
            if opcode == BINARY:
                received.extend(payload)
            else:
                assert opcode == PONG
                pongs.append(payload)

    async with background(partial(server.send_all, data)):
        await trio.testing.wait_all_tasks_blocked()
        await tcp.send_all(sent_by_client(PING, b"are you there?") + sent_by_client(BINARY, b"go on"))
        async with background(read_everything):
            assert await server.receive_some() == b"go on"
    assert received == data
    assert pongs == [b"are you there?"]


async def test_a_close_is_an_end_though_tcp_goes_on(agreed: Ends) -> None:
    tcp, server = agreed
    await tcp.send_all(sent_by_client(BINARY, b"bye") + sent_by_client(CLOSE, (1000).to_bytes(2)))
    assert await server.receive_some() == b"bye"
    assert await server.receive_some() == b""
    assert await server.receive_into(memoryview(bytearray(1))) == 0
    with pytest.raises(ConnectionLost):
        await server.send_all(b"too late")


async def test_no_more_than_a_read_and_a_message_is_taken_ahead_of_the_reader(agreed: Ends) -> None:
    """What may be read from a stranger is counted by the caller."""
    tcp, server = agreed
    message = sent_by_client(BINARY, bytes(MESSAGE_BYTES))
    async with background(partial(tcp.send_all, 10 * message)) as nursery:
        taken = 0
        while taken < 5000:
            taken += (count := await server.receive_into(memoryview(bytearray(1000))))
            assert 0 < count <= 1000
        left = 0
        with trio.move_on_after(1):
            while left < 9 * len(message) - 5000:
                left += len(await server._tcp.receive_some())
        nursery.cancel_scope.cancel()
    assert left >= 9 * len(message) - 5000


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 100_000,
    ],
)
async def test_what_is_no_websocket_is_refused(bare: Ends, said: bytes) -> None:
    tcp, server = bare
    tcp.try_send(said)
    with pytest.raises(ProtocolError, match="not a websocket peer"):
        await server.receive_some()


async def test_whoever_has_not_spoken_yet_costs_no_parser(bare: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stuck in its TLS handshake."""
    tcp, server = bare
    made = []

    async def make(*given: Any, **options: Any) -> Any:
        made.append(1)
        return await wrap_server_stream(*given, **options)

    monkeypatch.setattr(websocket, "wrap_server_stream", make)
    async with background(partial(read_to_end, server)) as nursery:
        await trio.testing.wait_all_tasks_blocked()
        assert not made
        await tcp.send_all(ASK)
        await read_agreement(tcp)
        assert made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("origin", [b"http://evil.example", b"http://here", b"null", b"\xff" * 200])
async def test_a_page_in_a_browser_is_refused_with_403(bare: Ends, origin: bytes) -> None:
    """Wherever it comes from: the name of its host may lead here."""
    tcp, server = bare
    await tcp.send_all(ASK.replace(b"\r\n\r\n", b"\r\nOrigin: " + origin + b"\r\n\r\n"))
    shown = re.escape(ascii(origin[:80].decode("latin-1")))
    with pytest.raises(ProtocolError, match=f"^a browser called, for a page of {shown}$"):
        await server.receive_some()
    server.abort()
    answer = b""
    while data := await tcp.receive_some():
        answer += data
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (sent_by_client(TEXT, b"hello"), "it sent text"),
        (sent_by_client(BINARY, bytes(MESSAGE_BYTES + 1)), f".*maximum message size: {MESSAGE_BYTES} bytes"),
        (bytes([0x80 | BINARY, 5]) + b"naked", ".*mask"),
        (b"\xff" * 100, ".*"),
    ],
    ids=["text", "too large", "not masked", "no frame"],
)
async def test_what_ours_never_send_is_refused(agreed: Ends, said: bytes, why: str) -> None:
    tcp, server = agreed
    await tcp.send_all(said)
    with pytest.raises(ProtocolError, match=f"not a websocket peer.*: {why}"):
        await server.receive_some()
    with pytest.raises(ConnectionLost):
        await server.send_all(b"x")


async def test_whatever_comes_is_data_an_end_or_a_protocol_error(nursery: trio.Nursery) -> None:
    """The nursery of whoever owns the connection is not ended by a peer."""
    dice = random.Random(0)
    frames = [sent_by_client(opcode, bytes(5)) for opcode in (0, TEXT, BINARY, CLOSE, PING, PONG, 3, 11)]
    for _ in range(100):
        tcp, far = tcp_pair()
        server = WebSocketTransport(far, cleanup_s=0.05)
        nursery.start_soon(server.run, agree_as_server)
        parts = [ASK, *dice.choices([*frames, ASK, dice.randbytes(20)], k=4)]
        said = b"".join(parts)
        await tcp.send_all(said[: dice.randrange(len(said) + 1)])
        await tcp.aclose()
        with trio.fail_after(5):
            with suppress(ProtocolError, ConnectionLost):
                await read_to_end(server)
        server.abort()


# -------------------------------------------------------------------------------------------------------- the handshake


async def call(tcp: TcpTransport, nursery: trio.Nursery) -> WebSocketTransport:
    client = WebSocketTransport(tcp, cleanup_s=0.05)
    nursery.start_soon(client.run, agree_as_client("here"))
    try:
        await client.wait_agreed()
    finally:
        client.abort()
    return client


async def test_a_server_that_does_not_agree(nursery: trio.Nursery) -> None:
    near, far = tcp_pair()

    async def refuse() -> None:
        await far.receive_some()
        far.try_send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with background(refuse):
        with pytest.raises(ProtocolError, match="it answered with the HTTP status 403"):
            await call(near, nursery)
    await far.aclose()


async def test_a_server_that_hangs_up(nursery: trio.Nursery) -> None:
    near, far = tcp_pair()
    await far.aclose()
    with pytest.raises(ConnectionLost):
        await call(near, nursery)


# ------------------------------------------------------------------------------------------------ what runs behind one


async def test_a_send_that_is_cut_short_closes_the_connection(nursery: trio.Nursery) -> None:
    near, far = await websocket_pair(nursery)
    with trio.move_on_after(0.05) as scope:
        await near.send_all(bytes(2**26))
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")
    with pytest.raises(ConnectionLost):
        await read_to_end(far)
    far.abort()


async def test_the_tasks_behind_one_end_with_its_close() -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            near, far = await websocket_pair(nursery)
            await near.aclose()
            assert await far.receive_some() == b""
            await far.aclose()


async def test_a_cancelled_owner_may_still_say_goodbye_but_not_stay() -> None:
    received = b""
    with trio.fail_after(5):
        async with trio.open_nursery() as owner:
            near, far = await pair_of("websocket", owner)
            owner.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await near.send_all(b"goodbye")
                received = await far.receive_some()
    assert received == b"goodbye"
    for end in (near, far):
        with pytest.raises(trio.ClosedResourceError):
            await end.send_all(b"x")


async def test_a_cancelled_owner_does_not_keep_one_whose_peer_has_gone() -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as owner:
            near, far = await pair_of("websocket", owner)
            far.abort()
            with pytest.raises(ConnectionLost):
                await read_to_end(near)
            owner.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")
