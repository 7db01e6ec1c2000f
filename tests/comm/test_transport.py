"""Every transport has the same manners: what is written here about one holds for all."""

import errno
import random
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tests.comm.kit import MakePair, Pair, background, stop_at, until
from trio_dask.comm import inproc, tcp
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.tcp import TcpTransport
from trio_dask.comm.transport import ConnectionLost, Transport

direct = pytest.mark.parametrize("make_pair", ["memory", "tcp", "tls"], indirect=True)
"""Those that take what is sent at once; a websocket sends by a task."""


@pytest.fixture
async def pair(make_pair: MakePair) -> AsyncIterator[Pair]:
    near, far = await make_pair()
    with trio.fail_after(20):
        yield near, far
    near.abort()
    far.abort()


async def receive_exactly(transport: Transport, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await transport.receive_some()
        assert data
        received += data
    return bytes(received)


async def test_what_is_sent_arrives_in_order_both_ways(pair: Pair) -> None:
    near, far = pair
    data = random.Random(0).randbytes(3_000_000)

    async def send(transport: Transport) -> None:
        await transport.send_all(data)

    received = {}

    async def receive(transport: Transport, name: str) -> None:
        received[name] = await receive_exactly(transport, len(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, near)
        nursery.start_soon(send, far)
        nursery.start_soon(receive, near, "near")
        nursery.start_soon(receive, far, "far")
    assert received == {"near": data, "far": data}


async def test_receive_into_fills_what_there_is_and_no_more(pair: Pair) -> None:
    near, far = pair
    await near.send_all(b"hello")
    buffer = bytearray(10)
    assert await far.receive_into(memoryview(buffer)[:3]) == 3
    assert await far.receive_into(memoryview(buffer)[3:]) == 2
    assert buffer == b"hello\0\0\0\0\0"


@direct
async def test_one_receive_takes_all_that_has_come(pair: Pair) -> None:
    near, far = pair
    for _ in range(3):
        assert near.try_send(bytes(50_000)) == 50_000
    assert len(await far.receive_some()) == 150_000


@direct
async def test_one_receive_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_PASS", 2**17)
    monkeypatch.setattr(inproc, "_PASS", 2**17)
    near, far = pair
    total = stop_at(near)
    assert total > 2**19
    assert 0 < len(await far.receive_some()) <= 2**17


@direct
async def test_a_full_transport_takes_nothing_and_does_not_wait(pair: Pair) -> None:
    near, far = pair
    data = random.Random(0).randbytes(2**24)
    taken = 0
    # More than once: the kernel moves what it took on to the receiver's end when it gets to it, and has room again.
    while now := near.try_send(data[taken:]):
        taken += now
    assert 0 < taken < len(data)

    async def drain() -> None:
        assert await receive_exactly(far, len(data)) == data

    async with background(drain):
        await near.send_all(data[taken:])


async def test_close_delivers_what_was_sent(pair: Pair) -> None:
    near, far = pair
    await near.send_all(b"last words")
    await near.aclose()
    assert await far.receive_some() == b"last words"
    assert await far.receive_some() == b""
    assert await far.receive_into(memoryview(bytearray(1))) == 0


async def test_abort_is_a_loss_for_the_other_side(pair: Pair) -> None:
    near, far = pair
    near.abort()
    with pytest.raises(ConnectionLost, match=r"the connection to .* broke"):
        await far.receive_some()


async def test_close_with_unread_input_is_a_loss_for_the_other_side(pair: Pair) -> None:
    near, far = pair
    await far.send_all(b"never read")
    await until(near.has_input)
    await near.aclose()
    with pytest.raises(ConnectionLost):
        await far.receive_some()


async def test_sending_to_a_peer_that_is_gone_is_a_loss(pair: Pair) -> None:
    near, far = pair
    far.abort()

    async def send_for_ever() -> None:
        while True:
            await near.send_all(bytes(100))

    with pytest.raises(ConnectionLost):
        await send_for_ever()


@pytest.mark.parametrize("close", ["abort", "aclose"])
async def test_closing_wakes_whoever_waits_here(pair: Pair, close: str) -> None:
    near, _ = pair

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(bytes(2**26))

    async with background(receive, send):
        await trio.testing.wait_all_tasks_blocked()
        if close == "abort":
            near.abort()
        else:
            await near.aclose()
    near.abort()
    await near.aclose()
    for use in (near.receive_some, lambda: near.receive_into(memoryview(bytearray(1))), lambda: near.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            await use()
    with pytest.raises(trio.ClosedResourceError):
        near.try_send(b"x")


async def test_a_cancelled_receive_takes_nothing(pair: Pair) -> None:
    near, far = pair
    with trio.move_on_after(0):
        await far.receive_some()
    await near.send_all(b"still here")
    await until(far.has_input)
    with trio.CancelScope() as scope:
        scope.cancel()
        await far.receive_some()
    assert await far.receive_some() == b"still here"


async def test_input_shows_before_it_is_read(pair: Pair) -> None:
    near, far = pair
    assert not far.has_input()
    await near.send_all(b"x")
    await until(far.has_input)
    assert await far.receive_some() == b"x"
    await until(lambda: not far.has_input())
    await near.aclose()
    await until(far.has_input)


async def test_every_wait_is_a_checkpoint(pair: Pair) -> None:
    near, far = pair
    await far.send_all(b"xyz")
    with trio.testing.assert_checkpoints():
        await near.send_all(b"abc")
    with trio.testing.assert_checkpoints():
        await near.receive_some()
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await far.receive_into(memoryview(bytearray(1)))
    with trio.testing.assert_checkpoints():
        await far.receive_some()
    with trio.testing.assert_checkpoints():
        await near.aclose()


async def test_small_buffers_between_two_ends_lose_nothing() -> None:
    near, far = memory_pair(capacity=7)
    data = random.Random(1).randbytes(1000)

    async def send() -> None:
        await near.send_all(data)
        await near.aclose()

    received = bytearray()
    async with background(send):
        while piece := await far.receive_some():
            assert len(piece) <= 7
            received += piece
    assert received == data


class ResetOnMacos(socket.socket):
    """A socket that was reset, on a system where such a one takes no options."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


async def test_a_socket_that_was_reset_says_so_at_its_first_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    transport = TcpTransport(ResetOnMacos(fileno=ours.detach()))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(ConnectionLost):
        await transport.send_all(b"hello")
    transport.abort()
    assert transport.fd is None
