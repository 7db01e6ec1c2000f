"""A connection: order, batches, patience, and the difference between a goodbye and a loss."""

import random
from contextlib import AsyncExitStack, suppress

import pytest
import trio
import trio.testing

from tests.comm.kit import HELLO, MakePair, background, collect, connections, frame, question, read_to_end
from trio_dask.comm.connection import Connection
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError, SerializationError
from trio_dask.protocol.codec import FROM_CLIENT, encode
from trio_dask.protocol.frames import PING_FRAME, FrameDecoder, Kind, encode_frame
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import Blob, Cancel, Goodbye, KeyPending, Query, Release, Retry, Want


async def test_messages_arrive_in_order_whatever_their_sizes(make_pair: MakePair) -> None:
    client, scheduler = connections(await make_pair())
    dice = random.Random(0)
    sent = [
        Blob(b"", number, bytes(dice.choice([0, 10, 1000, 300_000]))) if dice.random() < 0.05 else question(number)
        for number in range(3000)
    ]

    async def send() -> None:
        left = list(sent)
        while left:
            count = dice.randrange(1, 200)
            client.send_many_nowait(left[:count])
            del left[:count]
            client.flush_nowait()
            if dice.random() < 0.5:
                await trio.lowlevel.checkpoint()
        await client.aclose("all said")

    async with client, background(send), scheduler:
        received = await collect(scheduler)
    assert received == sent
    assert scheduler.goodbye == Goodbye("all said")


@pytest.mark.parametrize("make_pair", ["memory", "tcp"], indirect=True)
async def test_nothing_leaves_before_the_flush_and_all_of_it_leaves_with_it(make_pair: MakePair) -> None:
    near, far = await make_pair()
    client, _ = connections((near, far))
    async with client:
        client.send_nowait(Want(("a",)))
        client.send_many_nowait([Release(("b",)), Retry(("c",))])
        await trio.testing.wait_all_tasks_blocked()
        assert not far.has_input()
        client.flush_nowait()
        # No task had to run for it: the bytes are with the system already.
        assert await far.receive_some() == frame(Want(("a",)), Release(("b",)), Retry(("c",)))
        client.send_nowait(Want(("d",)), flush=True)
        assert await far.receive_some() == frame(Want(("d",)))
        client.flush_nowait()
        assert not far.has_input()
    far.abort()


async def test_all_frames_that_have_come_are_one_batch(make_pair: MakePair) -> None:
    near, far = await make_pair()
    _, scheduler = connections((near, far))
    async with scheduler:
        await near.send_all(
            frame(question(1), question(2)) + PING_FRAME + frame() + frame(question(3)) + frame(question(4))[:9]
        )
        batches = scheduler.batches()
        assert await anext(batches) == [question(1), question(2), question(3)]
        await near.send_all(frame(question(4))[9:])
        assert await anext(batches) == [question(4)]
    near.abort()


async def test_frames_without_messages_give_no_empty_batches(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair()
    client, scheduler = connections((near, far))
    async with scheduler, client:
        await near.send_all(PING_FRAME + frame())
        with trio.move_on_after(1) as scope:
            await anext(scheduler.batches())
        assert scope.cancelled_caught


async def test_what_came_with_the_hello_is_the_first_batch() -> None:
    near, far = memory_pair()
    scheduler = Connection(far, HELLO, allowed=FROM_CLIENT, received=frame(question(1))[:10])
    async with scheduler:
        await near.send_all(frame(question(1))[10:])
        assert await anext(scheduler.batches()) == [question(1)]
    near.abort()


# ------------------------------------------------------------------------------------------------- slow peers


async def test_what_gathers_while_a_peer_is_slow_arrives_as_few_large_frames(make_pair: MakePair) -> None:
    near, far = await make_pair()
    client, _ = connections((near, far))
    async with client:
        client.send_nowait(Blob(b"", 0, bytes(2**23)), flush=True)
        assert client.backlog_bytes
        for number in range(1000):
            client.send_nowait(question(number), flush=True)
        decoder = FrameDecoder()
        frames: list[tuple[int, bytes]] = []
        while len(frames) < 2:
            frames += [(kind, bytes(payload)) for kind, payload in decoder.feed(await far.receive_some())]
        assert frames[1] == (Kind.RECORDS, encode([question(number) for number in range(1000)]))
        await client.wait_backlog()
        assert client.backlog_bytes == 0
    far.abort()


async def test_cancellation_never_cuts_a_frame_in_half(make_pair: MakePair) -> None:
    """The block is cancelled while half a frame is out; its own cleanup still says goodbye in good order."""
    client, scheduler = connections(await make_pair())
    big = Blob(b"", 1, random.Random(2).randbytes(2**23))

    async def be_cancelled() -> None:
        with trio.CancelScope() as scope:
            async with client, AsyncExitStack() as cleanup:
                cleanup.push_async_callback(client.aclose, "cancelled")
                client.send_nowait(big, flush=True)
                assert client.backlog_bytes
                scope.cancel()
                await trio.sleep_forever()

    async with background(be_cancelled), scheduler:
        assert await collect(scheduler) == [big]
        assert scheduler.goodbye == Goodbye("cancelled")


async def test_senders_of_much_can_wait_for_the_network(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair(capacity=1000)
    client, scheduler = connections((near, far))
    async with client, scheduler:
        client.send_nowait(Blob(b"", 1, bytes(10_000)), flush=True)
        with trio.move_on_after(1) as scope:
            await client.wait_backlog(at_most=5000)
        assert scope.cancelled_caught
        async with background(lambda: client.wait_backlog(at_most=5000)):
            await anext(scheduler.batches())


async def test_a_peer_that_lets_too_much_wait_for_too_long_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair(capacity=1000)
    client, _ = connections((near, far), LinkLimits(max_backlog_bytes=50_000, silence_s=30, keepalive_s=5))

    async def speak_but_never_read() -> None:
        with suppress(ConnectionLost):
            while True:
                await far.send_all(PING_FRAME)
                await trio.sleep(5)

    async def ask_on() -> None:
        while True:
            client.send_nowait(question(1), flush=True)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(speak_but_never_read)
        for _ in range(49):
            client.send_nowait(Blob(b"", 1, bytes(1000)), flush=True)
        with trio.move_on_after(1000):
            await collect(client)
        assert client.backlog_bytes > 48_000
        client.send_nowait(Blob(b"", 1, bytes(3000)), flush=True)
        started = trio.current_time()
        nursery.start_soon(ask_on)
        with pytest.raises(ConnectionLost, match="has stopped reading: 5"):
            await collect(client)
        assert 30 <= trio.current_time() - started <= 35
        assert client.backlog_bytes == 0
        client.send_nowait(question(1), flush=True)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_is_not_given_up_however_much_waits(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair(capacity=1000)
    settings = LinkLimits(max_backlog_bytes=50_000, silence_s=30)
    client, scheduler = connections((near, far), settings, LinkLimits())
    blobs = [Blob(b"", number, bytes(10_000)) for number in range(100)]
    received = []

    async def read_slowly() -> None:
        async for batch in scheduler.batches():
            received.extend(batch)
            await trio.sleep(0.2)

    async with scheduler, client, background(read_slowly):
        client.send_many_nowait(blobs[:90])
        client.flush_nowait()
        await trio.sleep(2)
        client.send_many_nowait(blobs[90:])
        client.flush_nowait()
        await client.wait_backlog()
        await client.aclose()
    assert received == blobs


# ----------------------------------------------------------------------------------------------- keepalive, silence

PATIENCE = LinkLimits(keepalive_s=5, silence_s=30)


async def test_idle_connections_stay_alive(autojump_clock: trio.testing.MockClock) -> None:
    client, scheduler = connections(limits=PATIENCE)
    async with client, scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(collect, client)
        nursery.start_soon(collect, scheduler)
        await trio.sleep(10_000)
        nursery.cancel_scope.cancel()


async def test_a_ping_goes_out_only_when_nothing_else_did(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair()
    client, _ = connections((near, far), PATIENCE)
    async with client:
        for _ in range(4):
            await trio.sleep(4)
            client.send_nowait(question(1), flush=True)
        assert await far.receive_some() == frame(question(1)) * 4
        await trio.sleep(4.9)
        assert not far.has_input()
        await trio.sleep(0.2)
        assert await far.receive_some() == PING_FRAME


async def test_no_ping_is_squeezed_into_a_frame_that_is_under_way(autojump_clock: trio.testing.MockClock) -> None:
    """Room appears at the very moment when a ping is due, and tasks run in any order: so it is tried often."""
    near, far = memory_pair(capacity=100)
    client, _ = connections((near, far), LinkLimits(keepalive_s=5, silence_s=1000))
    sent = frame(Blob(b"", 1, bytes(300)))
    async with client:
        for _ in range(20):
            client.send_nowait(Blob(b"", 1, bytes(300)), flush=True)
            await trio.sleep(5)
            received = far._incoming.take(1000)  # with no checkpoint that would let the writer go first
            while len(received) < len(sent):
                received += await far.receive_some()
            assert received == sent


@pytest.mark.parametrize("last_sign", [b"", PING_FRAME, frame(question(1)), PING_FRAME[:3]])
async def test_a_silent_peer_is_lost_after_its_limit_and_not_before(
    autojump_clock: trio.testing.MockClock, last_sign: bytes
) -> None:
    near, far = memory_pair()
    _, scheduler = connections((near, far), PATIENCE)
    async with scheduler:
        await trio.sleep(20)
        if last_sign:
            await near.send_all(last_sign)
        started = trio.current_time() if last_sign else trio.current_time() - 20
        with pytest.raises(ConnectionLost, match=r"inproc://far was silent for 30 s"):
            await collect(scheduler)
        assert trio.current_time() - started == pytest.approx(30)
    with pytest.raises(ConnectionLost):
        await read_to_end(near)


async def test_whoever_is_slow_to_read_does_not_blame_the_peer(autojump_clock: trio.testing.MockClock) -> None:
    """What has come but was not yet looked at counts: this process may have been stopped, or its handler slow."""
    client, scheduler = connections(limits=PATIENCE)
    async with client, scheduler:
        batches = scheduler.batches()
        client.send_nowait(question(1), flush=True)
        assert await anext(batches) == [question(1)]
        client.send_nowait(question(2), flush=True)
        await trio.sleep(500)
        assert await anext(batches) == [question(2)]


# ------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1", id="no frame"),
        pytest.param(encode_frame(Kind.RECORDS, b"\xc1"), id="no msgpack"),
        pytest.param(frame(KeyPending("k")), id="another role's message"),
        pytest.param(frame(question(1)) + b"\xda\x01\x00\x00\xff\xff\xff\xff", id="absurd length"),
    ],
)
async def test_wrong_input_is_a_protocol_error(data: bytes) -> None:
    near, far = memory_pair()
    _, scheduler = connections((near, far))
    await near.send_all(data)
    with pytest.raises(ProtocolError):
        async with scheduler:
            await collect(scheduler)
    with pytest.raises(ConnectionLost):
        await near.receive_some()


async def test_a_message_that_cannot_be_sent_takes_no_other_along() -> None:
    client, scheduler = connections()
    async with client, scheduler:
        client.send_many_nowait([question(1), Query(2, "\ud800", ()), question(3)])
        with pytest.raises(SerializationError, match="a Query cannot be sent"):
            client.flush_nowait()
        client.send_nowait(Cancel(("k",), force=True), flush=True)
        assert await anext(scheduler.batches()) == [question(1), question(3), Cancel(("k",), force=True)]


async def test_a_peer_can_be_told_what_it_did_wrong(make_pair: MakePair) -> None:
    near, far = await make_pair()
    client, _ = connections((near, far))
    _, scheduler = connections((near, far))

    async def do_wrong() -> None:
        async with client:
            await near.send_all(encode_frame(Kind.RECORDS, b"\xc1") + bytes(700_000))
            assert await collect(client) == []

    async with background(do_wrong), scheduler:
        with pytest.raises(ProtocolError) as caught:
            await collect(scheduler)
        await scheduler.aclose(str(caught.value))
    assert client.goodbye == Goodbye(str(caught.value))
