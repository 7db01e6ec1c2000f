"""What is lent arrives whole or not at all, and where nothing can be lent, the bytes take the socket."""

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from tests.comm.kit import Pair, background, channels, frame, read_to_end, tcp_pair, until
from trio_dask import config
from trio_dask.comm import cross_memory_attach
from trio_dask.comm.cross_memory_attach import MemoryOffer, can_offer, read_remote
from trio_dask.comm.data_channel import DataChannel, Room
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.transport import ConnectionLost, PeerSilent
from trio_dask.errors import ProtocolError
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import Fetch, MemoryOffered, PutDone, Value
from trio_dask.protocol.picklers import Buffer

pytestmark = pytest.mark.skipif(not can_offer([memoryview(bytes(2**20))]), reason="this system has no such call")

MIB = 2**20


def views(*buffers: Buffer) -> list[memoryview]:
    return [memoryview(buffer).cast("B") for buffer in buffers]


def empty(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def is_permitted() -> bool:
    with MemoryOffer(views(b"abc")) as offer:
        return read_remote(offer.terms, empty(3))


@pytest.fixture
def permitted() -> None:
    """Some sandboxes let nobody look at anybody, not even at himself."""
    if not is_permitted():
        pytest.skip("the kernel does not permit it here")


# ------------------------------------------------------------------------------------------------ from memory to memory


@pytest.mark.usefixtures("permitted")
def test_every_buffer_arrives_in_its_place() -> None:
    lent = [random.Random(size).randbytes(size) for size in (0, 1, 4095, 4096, 4097, 3_000_000)]
    array = np.arange(70_000.0).reshape(700, 100)
    filled = empty(*map(len, lent), array.nbytes)
    with MemoryOffer(views(*lent, array.data)) as offer:
        assert read_remote(offer.terms, filled)
    assert [*map(bytes, filled[:-1])] == lent
    assert (np.frombuffer(filled[-1]).reshape(700, 100) == array).all()


@pytest.mark.usefixtures("permitted")
def test_a_buffer_is_read_in_as_many_calls_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_memory_attach, "PIECE_BYTES", 1000)
    lent, filled = random.Random(1).randbytes(12_345), empty(12_345)
    with MemoryOffer(views(lent)) as offer:
        assert read_remote(offer.terms, filled)
    assert bytes(filled[0]) == lent


@pytest.mark.usefixtures("permitted")
def test_what_a_file_backs_can_be_lent(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(2 * MIB)
    lent, filled = np.memmap(tmp_path / "file", dtype="u1", mode="w+", shape=len(content)), empty(len(content))
    lent[:] = np.frombuffer(content, dtype="u1")
    with MemoryOffer(views(lent.data)) as offer:
        assert read_remote(offer.terms, filled)
    assert bytes(filled[0]) == content


def test_nothing_is_borrowed_once_the_loan_is_over() -> None:
    lent = views(bytes(100))
    with MemoryOffer(lent) as offer:
        pass
    assert not read_remote(offer.terms, empty(100))


@pytest.mark.usefixtures("permitted")
def test_a_loan_that_ends_while_it_is_read_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = views(bytes(100))
    offer = MemoryOffer(lent)
    read = cross_memory_attach._read

    def read_and_end(pid: int, place: int, buffer: memoryview) -> bool:
        result = read(pid, place, buffer)
        if len(buffer) == 100:
            offer.__exit__()
        return result

    monkeypatch.setattr(cross_memory_attach, "_read", read_and_end)
    assert not read_remote(offer.terms, empty(100))


def changed(terms: MemoryOffered) -> Iterator[MemoryOffered]:
    yield terms._replace(pid=2**22 + 1)  # beyond what Linux gives out
    yield terms._replace(pid=-1)
    yield terms._replace(pid=1 if os.getpid() != 1 else 2)
    yield terms._replace(liveness_token=bytes(16))
    yield terms._replace(liveness_token=b"")
    yield terms._replace(liveness_token=terms.liveness_token * 1000)
    yield terms._replace(token_address=0)
    yield terms._replace(token_address=2**64 - 8)
    yield terms._replace(token_address=-5)
    yield terms._replace(places=(0,))
    yield terms._replace(places=(2**70,))


def test_wrong_terms_give_nothing() -> None:
    lent = views(bytes(100))
    with MemoryOffer(lent) as offer:
        for terms in changed(offer.terms):
            assert not read_remote(terms, empty(100)), terms


def test_another_process_that_is_gone_gives_nothing() -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    with MemoryOffer(views(bytes(100))) as offer:
        assert not read_remote(offer.terms._replace(pid=int(child.stdout)), empty(100))


@pytest.mark.parametrize(
    ("sizes", "worth"), [((MIB,), True), ((10, MIB), True), ((10,) * 16 + (MIB,), False), ((65_536,) * 16, True)]
)
def test_it_pays_for_large_buffers(sizes: tuple[int, ...], worth: bool) -> None:
    assert can_offer(empty(*sizes)) == worth


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.CROSS_MEMORY_VARIABLE, "0")
    assert not can_offer(empty(MIB))
    with MemoryOffer(views(bytes(10))) as offer:
        assert not read_remote(offer.terms, empty(10))


# ------------------------------------------------------------------------------------------------------- over a channel


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What was asked for, and with what success."""
    asked = []

    def count(terms: MemoryOffered, buffers: Sequence[memoryview]) -> bool:
        asked.append(read_remote(terms, buffers))
        return asked[-1]

    with monkeypatch.context() as patch:
        patch.setattr(cross_memory_attach, "read_remote", count)
        yield asked


async def exchange(sender: DataChannel, receiver: DataChannel, *buffers: Buffer) -> Sequence[Buffer]:
    received = []

    async def receive() -> None:
        received.append(await receiver.receive())

    message = Value("key", tuple(memoryview(buffer).nbytes for buffer in buffers))
    async with background(receive):
        await sender.send(message, buffers)
    [(arrived, parts)] = received
    assert arrived == message
    return parts


@pytest.mark.usefixtures("permitted")
async def test_large_values_are_read_by_the_receiver_and_small_ones_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = channels(tcp_pair())
    large, small = random.Random(3).randbytes(5 * MIB), random.Random(4).randbytes(MIB - 1)
    with counting(monkeypatch) as asked:
        assert [*map(bytes, await exchange(near, far, large, b"abc"))] == [large, b"abc"]
        assert asked == [True]
        assert [*map(bytes, await exchange(far, near, small))] == [small]
        assert [*map(bytes, await exchange(far, near, large))] == [large]
        assert asked == [True, True]
    near.abort()
    far.abort()


async def test_who_cannot_borrow_is_sent_the_bytes_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = channels(tcp_pair())
    large = random.Random(5).randbytes(5 * MIB)
    asked = []

    def refuse(*_: object) -> bool:
        asked.append(1)
        return False

    monkeypatch.setattr(cross_memory_attach, "read_remote", refuse)
    for _ in range(3):
        assert [*map(bytes, await exchange(near, far, large, b"abc"))] == [large, b"abc"]
    assert asked == [1]
    assert [*map(bytes, await exchange(far, near, large))] == [large]
    near.abort()
    far.abort()


@pytest.mark.parametrize("places", [(), (1,), (1, 2, 3)])
async def test_each_buffer_has_one_place(places: tuple[int, ...]) -> None:
    near, far = tcp_pair()
    _, receiver = channels((near, far))
    await near.send_all(frame(MemoryOffered(1, 1, bytes(16), places)) + frame(Value("key", (100, 100))))
    with pytest.raises(ProtocolError, match="buffers were offered"):
        await receiver.receive()
    near.abort()


async def test_an_answer_to_a_loan_says_whether_it_was_taken() -> None:
    near, far = tcp_pair()
    sender, _ = channels((near, far))
    large = bytes(MIB)
    await far.send_all(frame(PutDone("key", 1)))
    with pytest.raises(ProtocolError, match="PutDone came in answer to an offer"):
        await sender.send(Value("key", (MIB,)), [large])
    far.abort()


async def test_a_borrower_that_goes_away_is_a_loss() -> None:
    near, far = tcp_pair()
    sender, _ = channels((near, far))

    async def leave() -> None:
        await far.receive_some()
        far.abort()

    async with background(leave):
        with pytest.raises(ConnectionLost):
            await sender.send(Value("key", (MIB,)), [bytes(MIB)])


async def test_the_limit_of_a_channel_holds_for_what_is_lent_too() -> None:
    near, far = tcp_pair()
    _, receiver = channels((near, far), max_bytes=1000)
    await near.send_all(frame(MemoryOffered(1, 1, bytes(16), (1,))) + frame(Value("key", (1001,))))
    with pytest.raises(ProtocolError, match="1000 is the limit"):
        await receiver.receive()
    near.abort()


@pytest.mark.usefixtures("permitted")
async def test_who_gives_up_a_loan_has_lent_nothing() -> None:
    near, far = tcp_pair()
    sender, _ = channels((near, far))
    content = bytes(MIB)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, Value("key", (MIB,)), [content])
            await until(far.has_input)
            lender = DataChannel(far, sender.hello)
            terms = await lender._receive_until(lender._link.next_message)
            assert isinstance(terms, MemoryOffered)
            assert read_remote(terms, empty(MIB))
            scope.cancel()
    assert isinstance(terms, MemoryOffered)
    assert not read_remote(terms, empty(MIB))
    with pytest.raises(trio.ClosedResourceError):
        await sender.send(Fetch(("key",)))
    far.abort()


# ------------------------------------------------------------------------------------------------------ slow and silent


class SlowThread:
    """Stands for the thread that reads what lies on a slow disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, *, ok: bool = True) -> None:
        self.seconds = seconds
        self.ok = ok
        monkeypatch.setattr(trio.to_thread, "run_sync", self.run)

    async def run(
        self, read: Callable[..., bool], terms: MemoryOffered, buffers: Sequence[memoryview], **how: Any
    ) -> bool:
        await trio.sleep(self.seconds)
        return self.ok and read(terms, buffers)


@pytest.fixture
def near_and_far(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Both ends in one process, and in virtual time."""
    near, far = memory_pair()
    for end in (near, far):
        monkeypatch.setattr(end, "is_local", True)
    return near, far


SLOW = LinkLimits(keepalive_s=5, silence_s=30)


@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("ok", [True, False])
async def test_a_slow_borrower_is_waited_for(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, near_and_far: Pair, ok: bool
) -> None:
    near, far = channels(near_and_far, limits=SLOW)
    SlowThread(monkeypatch, 1000, ok=ok)
    large = random.Random(6).randbytes(MIB)
    for _ in range(2):
        assert [*map(bytes, await exchange_slowly(near, far, large))] == [large]
    near.abort()
    far.abort()


@pytest.mark.usefixtures("permitted")
async def test_a_borrower_may_wait_for_room(autojump_clock: trio.testing.MockClock, near_and_far: Pair) -> None:
    near, far = channels(near_and_far, limits=SLOW)
    large = random.Random(7).randbytes(MIB)
    held = []

    @asynccontextmanager
    async def room(size: int) -> AsyncIterator[None]:
        await trio.sleep(1000)
        held.append(size)
        yield
        held.append(-size)

    assert [*map(bytes, await exchange_slowly(near, far, large, room=room))] == [large]
    assert held == [MIB, -MIB]
    near.abort()
    far.abort()


async def test_a_borrower_that_says_nothing_is_silent(
    autojump_clock: trio.testing.MockClock, near_and_far: Pair
) -> None:
    sender, _ = channels(near_and_far, limits=SLOW)
    with pytest.raises(PeerSilent, match="for 30 s"):
        await sender.send(Value("key", (MIB,)), [bytes(MIB)])
    assert trio.current_time() >= 30


async def test_a_borrower_whose_lender_goes_away_hears_it_when_it_pings(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, near_and_far: Pair
) -> None:
    near, far = near_and_far
    _, receiver = channels((near, far), limits=SLOW)
    SlowThread(monkeypatch, 1000)

    async def lend_and_leave() -> None:
        await near.send_all(frame(MemoryOffered(1, 1, bytes(16), (1,))) + frame(Value("key", (MIB,))))
        await trio.sleep(17)
        near.abort()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lend_and_leave)
        with pytest.raises(ConnectionLost):
            await receiver.receive()
    assert trio.current_time() == pytest.approx(20, abs=1)


async def test_who_gives_up_borrowing_is_cancelled_and_nothing_else(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, near_and_far: Pair
) -> None:
    near, far = near_and_far
    _, receiver = channels((near, far), limits=SLOW)
    SlowThread(monkeypatch, 1000)
    await near.send_all(frame(MemoryOffered(1, 1, bytes(16), (1,))) + frame(Value("key", (MIB,))))
    with trio.move_on_after(17) as scope:
        await receiver.receive()
    assert scope.cancelled_caught
    with pytest.raises(ConnectionLost):
        await read_to_end(near)


async def exchange_slowly(
    sender: DataChannel, receiver: DataChannel, *buffers: Buffer, room: Room | None = None
) -> Sequence[Buffer]:
    received = []

    async def receive() -> None:
        received.append(await receiver.receive(room))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await sender.send(Value("key", tuple(map(len, buffers))), buffers)
    [(_, parts)] = received
    return parts
