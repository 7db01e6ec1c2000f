"""Values: every size and shape arrives whole, in memory of its own, and nobody waits for ever for the rest."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.comm.kit import MakePair, background, channels, frame
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.transport import ConnectionLost, PeerSilent
from trio_dask.errors import ProtocolError
from trio_dask.protocol.frames import PING_FRAME, Kind, encode_frame
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import (
    Absent,
    ActorAnswer,
    ActorCall,
    Call,
    CallResult,
    Fetch,
    Goodbye,
    MemoryOffered,
    MemoryRead,
    Message,
    OnDataPlane,
    Put,
    PutDone,
    Value,
)
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.wire_constants import MAX_DATA_MESSAGE, MAX_KEY_LENGTH, MAX_KEYS_PER_FETCH

MIB = 2**20


def value(*buffers: Buffer) -> Value:
    return Value("key", tuple(memoryview(buffer).nbytes for buffer in buffers))


async def exchange(
    sender: DataChannel, receiver: DataChannel, message: OnDataPlane, buffers: Sequence[Buffer] = ()
) -> tuple[Message, Sequence[Buffer]]:
    received = []

    async def receive() -> None:
        received.append(await receiver.receive())

    async with background(receive):
        await sender.send(message, buffers)
    return received[0]


@given(st.lists(st.tuples(st.sampled_from([0, 1, 50, 40_000, 70_000, 300_000]), st.booleans()), max_size=12))
def test_messages_that_wait_for_others_arrive_in_order(sizes: list[tuple[int, bool]]) -> None:
    sizes = [*sizes, (5, False)]

    async def main() -> list[tuple[Message, bytes]]:
        near, far = channels(memory_pair())
        taken: list[tuple[Message, bytes]] = []

        async def receive() -> None:
            while len(taken) < len(sizes):
                message, buffers = far.receive_nowait() or await far.receive()
                taken.append((message, b"".join(buffers)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for size, more in sizes:
                await near.send(value(bytes(size)), [bytes(size)], more=more)
        near.abort()
        far.abort()
        return taken

    assert trio.run(main) == [(value(bytes(size)), bytes(size)) for size, _ in sizes]


async def test_small_messages_wait_for_the_next_and_leave_with_it_or_a_flush() -> None:
    near, far = channels(memory_pair())
    await near.send(value(b"one"), [b"one"], more=True)
    with trio.move_on_after(0.01):
        await far.receive()
        raise AssertionError("it was sent alone")
    near, far = channels(memory_pair())
    await near.send(value(b"one"), [b"one"], more=True)
    await near.send(value(b"two"), [b"two"], more=True)
    await near.flush()
    assert far.receive_nowait() is None
    assert bytes((await far.receive())[1][0]) == b"one"
    answer = far.receive_nowait()
    assert answer is not None
    assert bytes(answer[1][0]) == b"two"
    assert far.receive_nowait() is None


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (1,),
        (65_535, 65_536, 65_537),
        (0, 5, 0, 300_000, 0, 0, 3),
        (*range(0, 2000, 7),),
        (4 * MIB - 1, 4 * MIB, 4 * MIB + 1),
        (100, 100_000_000),
    ],
    ids=lambda sizes: f"{len(sizes)} of {sum(sizes)} bytes",
)
async def test_values_of_every_size_arrive(make_pair: MakePair, sizes: tuple[int, ...]) -> None:
    near, far = channels(await make_pair())
    buffers = [random.Random(size).randbytes(size) for size in sizes]
    message, received = await exchange(near, far, value(*buffers), buffers)
    assert message == value(*buffers)
    assert [bytes(buffer) for buffer in received] == buffers
    # The channel stands between two messages again.
    assert await exchange(far, near, PutDone("key", 1)) == (PutDone("key", 1), [])
    near.abort()
    far.abort()


async def test_the_longest_keys_can_be_asked_for_all_at_once(make_pair: MakePair) -> None:
    near, far = channels(await make_pair())
    fetch = Fetch(("\N{CLAPPING HANDS SIGN}" * MAX_KEY_LENGTH,) * MAX_KEYS_PER_FETCH)
    assert await exchange(near, far, fetch) == (fetch, [])
    near.abort()
    far.abort()


@pytest.mark.parametrize("count", [10, 3_000_000])
async def test_arrays_made_of_what_was_received_are_writeable(make_pair: MakePair, count: int) -> None:
    near, far = channels(await make_pair())
    array = np.arange(count, dtype="i8")
    _, [buffer] = await exchange(near, far, value(array.data), [array.data])
    received = np.frombuffer(buffer, dtype="i8")
    assert received.flags.writeable
    received += 1
    assert (received == np.arange(1, count + 1)).all()
    assert (array == np.arange(count)).all()
    near.abort()
    far.abort()


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(b"abc"),
        memoryview(b"abc"),
        np.arange(6, dtype="f4").reshape(2, 3),
        np.zeros((0, 3)),
        np.zeros((2, 0)),
    ],
    ids=lambda buffer: f"{type(buffer).__name__} {getattr(buffer, 'shape', '')}",
)
async def test_whatever_has_contiguous_bytes_can_be_sent(buffer: Buffer) -> None:
    near, far = channels()
    _, [received] = await exchange(near, far, value(buffer), [buffer])
    assert received == memoryview(buffer).tobytes()


async def test_many_small_answers_to_one_request() -> None:
    near, far = channels(memory_pair(capacity=5000))
    keys = tuple(map(str, range(500)))

    async def answer() -> None:
        request, _ = await far.receive()
        assert isinstance(request, Fetch)
        for key in request.keys:
            if key.endswith("7"):
                await far.send(Absent(key, "gone"))
            else:
                await far.send(Value(key, (3, len(key))), [b"abc", key.encode()])

    async with background(answer):
        await near.send(Fetch(keys))
        for key in keys:
            message, buffers = await near.receive()
            assert isinstance(message, Absent | Value)
            assert message.key == key
            assert [*map(bytes, buffers)] == ([] if key.endswith("7") else [b"abc", key.encode()])


@given(st.lists(st.tuples(strategies.ON_DATA_PLANE, st.lists(st.binary(max_size=20), max_size=3)), max_size=5))
def test_any_sequence_of_messages_arrives_in_any_chunks(sent: list[tuple[OnDataPlane, list[bytes]]]) -> None:
    sent = [
        (message._replace(sizes=tuple(map(len, buffers))), buffers)
        if isinstance(message, Value | Put | Call | CallResult | ActorCall | ActorAnswer)
        else (message, [])
        for message, buffers in sent
        if not isinstance(message, Goodbye | MemoryOffered | MemoryRead)  # of which the channel itself makes something
    ]

    async def main() -> None:
        near, far = channels(memory_pair(capacity=9))

        async def send() -> None:
            for message, buffers in sent:
                await near.send(message, buffers)
            await near.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for message, buffers in sent:
                received, parts = await far.receive()
                assert (received, [*map(bytes, parts)]) == (message, buffers)
            with pytest.raises(trio.EndOfChannel):
                await far.receive()

    trio.run(main)


# ------------------------------------------------------------------------------------------------------ ends, limits


async def test_an_end_between_two_messages_is_an_end_and_in_the_middle_a_loss(make_pair: MakePair) -> None:
    near, far = await make_pair()
    _, receiver = channels((near, far))
    await near.send_all(frame(PutDone("key", 1)))
    await near.aclose()
    assert (await receiver.receive())[0] == PutDone("key", 1)
    with pytest.raises(trio.EndOfChannel):
        await receiver.receive()
    near.abort()
    for cut in (1, 7, 8, 12, len(frame(value(b"abc"))), len(frame(value(b"abc"))) + 2):
        near, far = await make_pair()
        _, receiver = channels((near, far))
        await near.send_all((frame(value(b"abc")) + b"abc")[:cut])
        await near.aclose()
        with pytest.raises(ConnectionLost, match="middle of a message"):
            await receiver.receive()
        near.abort()


async def test_goodbye_is_an_end() -> None:
    near, far = channels()
    await near.send(Goodbye("done"))
    with pytest.raises(trio.EndOfChannel):
        await far.receive()


async def test_pings_are_passed_over() -> None:
    near, far = memory_pair()
    _, receiver = channels((near, far))
    near.try_send(PING_FRAME + PING_FRAME + frame(PutDone("key", 1)))
    assert (await receiver.receive())[0] == PutDone("key", 1)


async def test_a_sender_announces_what_it_sends() -> None:
    near, far = channels()
    wrong: list[tuple[OnDataPlane, list[bytes]]] = [
        (Value("key", (3,)), [b"ab"]),
        (Value("key", (3,)), []),
        (Value("key", ()), [b"ab"]),
        (Fetch(("key",)), [b"ab"]),
        (Call((1, 2)), [b"ab", b"a"]),
    ]
    for message, buffers in wrong:
        with pytest.raises(ValueError, match="announces"):
            await near.send(message, buffers)
    assert await exchange(near, far, Fetch(("key",))) == (Fetch(("key",)), [])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "no frame"),
        (frame(Value("key", (600, 401))), "announced 1001 bytes; 1000 is the limit"),
        (frame(Put("key", "me", "bytes", (2**62,))), "limit"),
        (frame(CallResult(True, "", (5, -1))), "impossible sizes"),
        (frame(Value("key", (0,) * 100_000)), "impossible sizes"),
        (frame(PutDone("a", 1), PutDone("b", 1)), "several messages"),
        (encode_frame(Kind.RECORDS, b"\xc1"), "not msgpack"),
        (b"\xda\x01\x00\x00" + (MAX_DATA_MESSAGE + 1).to_bytes(4, "big"), "limit"),
    ],
)
async def test_wrong_input_is_a_protocol_error_and_closes(data: bytes, complaint: str) -> None:
    near, far = memory_pair()
    _, receiver = channels((near, far), max_bytes=1000)

    async def send() -> None:
        await near.send_all(data)

    async with background(send):
        with pytest.raises(ProtocolError, match=complaint):
            await receiver.receive()
    with pytest.raises(ConnectionLost):
        await near.receive_some()


async def test_the_largest_value_is_allowed() -> None:
    near, far = channels(max_bytes=1000)
    assert (await exchange(near, far, Value("key", (600, 400)), [bytes(600), bytes(400)]))[1] == [
        bytes(600),
        bytes(400),
    ]


PATIENCE = LinkLimits(silence_s=30)


@pytest.mark.parametrize("cut", [3, len(frame(value(bytes(100_000)))), 300])
async def test_a_pause_in_the_middle_of_a_message_is_a_loss_after_its_limit(
    autojump_clock: trio.testing.MockClock, cut: int
) -> None:
    near, far = memory_pair()
    _, receiver = channels((near, far), limits=PATIENCE)

    async def send_slowly_and_stop() -> None:
        await trio.sleep(1000)  # nobody minds before a message has begun
        for byte in (frame(value(bytes(100_000))) + bytes(100_000))[:cut]:
            near.try_send(bytes([byte]))
            await trio.sleep(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_slowly_and_stop)
        with pytest.raises(PeerSilent, match="paused in the middle of a message for 30 s"):
            await receiver.receive()
    assert trio.current_time() >= 1000 + 20 * (cut - 1) + 30
    with pytest.raises(ConnectionLost):
        await near.receive_some()


async def test_a_peer_that_takes_nothing_is_lost_after_its_limit(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair()
    sender, _ = channels((near, far), limits=PATIENCE)
    started = trio.current_time()
    with pytest.raises(PeerSilent, match="took nothing for 30 s"):
        await sender.send(value(bytes(2 * MIB)), [bytes(2 * MIB)])
    assert trio.current_time() - started == 30


@pytest.mark.parametrize("what", ["send", "receive"])
async def test_a_cancelled_exchange_closes_the_channel(what: str) -> None:
    near, far = channels()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            if what == "send":
                nursery.start_soon(near.send, value(bytes(2 * MIB)), [bytes(2 * MIB)])
            else:
                nursery.start_soon(near.receive)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await near.send(Fetch(("key",)))
    with pytest.raises(ConnectionLost):
        await far.receive()
