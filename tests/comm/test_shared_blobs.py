"""Large blobs on one machine: mapped instead of sent, with the content itself as a way out."""

import os
import weakref
from typing import Any, cast

import msgpack
import pytest
import trio

from tests.comm.kit import HELLO, WELCOME, tcp_pair
from trio_dask.comm import shared_blobs
from trio_dask.comm.connection import Connection
from trio_dask.comm.shared_blobs import SharedBlobs, can_map_memory_of, probe
from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError
from trio_dask.protocol import raw_memory
from trio_dask.protocol.codec import FROM_CLIENT, TO_CLIENT
from trio_dask.protocol.frames import Kind, encode_frame
from trio_dask.protocol.messages import Blob, Reply
from trio_dask.protocol.raw_memory import MAPPED_BYTES, SharedPart, map_shared, shared_memory, shared_part, whole_of

pytestmark = pytest.mark.skipif(not probe(), reason="no memory is shared here: needs Linux and /proc")

PIECE = 1 << 20
NBYTES = MAPPED_BYTES + 12_345


def shared_content() -> memoryview:
    memory = shared_memory(NBYTES)
    memory[:] = os.urandom(1 << 16) * (NBYTES >> 16) + os.urandom(NBYTES % (1 << 16))
    return memory.toreadonly()


def pieces_of(content: memoryview) -> list[Blob]:
    return [
        Blob(b"digest", len(content), cast("bytes", content[start : start + PIECE]))
        for start in range(0, len(content), PIECE)
    ]


def local_pair() -> tuple[Connection, Connection]:
    """A client's end and a scheduler's end which can map each other's memory."""
    near, far = tcp_pair()
    return (
        Connection(near, WELCOME._replace(memory=probe()), allowed=TO_CLIENT),
        Connection(far, HELLO._replace(memory=probe()), allowed=FROM_CLIENT),
    )


def part_of(content: memoryview) -> SharedPart:
    """What is said of memory that can be shared."""
    part = shared_part(content)
    assert part is not None
    return part


def offered(blobs: SharedBlobs, blob: Blob) -> memoryview:
    """The offer of this blob as it arrives."""
    offer = blobs.offer(blob)
    assert offer is not None
    return memoryview(offer)


def memory_of(content: object) -> weakref.ref[Any]:
    """The map of which this is a part; None when nobody holds it any more."""
    assert isinstance(content, memoryview)
    return weakref.ref(content.obj)


async def agree(client: Connection, scheduler: Connection) -> None:
    """Have the client take what the scheduler said first: that it can map the client's memory."""
    scheduler.send_nowait(Reply(0, None), flush=True)
    await receive(client, 1)


async def receive(connection: Connection, count: int) -> list[Blob]:
    received: list[Blob] = []
    async for batch in connection.batches():
        received += cast("list[Blob]", batch)
        if len(received) >= count:
            return received
    raise AssertionError("the connection ended")


async def test_a_large_blob_is_mapped_and_not_sent() -> None:
    content = shared_content()
    client, scheduler = local_pair()
    async with client, scheduler:
        await agree(client, scheduler)
        sent = pieces_of(content)
        client.send_many_nowait(sent)
        client.flush_nowait()
        with trio.fail_after(10):
            received = await receive(scheduler, len(sent))
        assert [(blob.digest, blob.total, bytes(blob.data)) for blob in received] == [
            (blob.digest, blob.total, bytes(blob.data)) for blob in sent
        ]
        whole = whole_of(received[0].data, NBYTES)
        assert whole is not None
        assert whole.readonly
        assert part_of(whole).token == part_of(content).token
        assert part_of(whole).fd != part_of(content).fd
        await client.aclose()


async def test_memory_is_held_for_the_peer_until_it_has_mapped_it_all() -> None:
    client, scheduler = local_pair()
    async with client, scheduler:
        await agree(client, scheduler)
        content = shared_content()
        memory = memory_of(content)
        sent = pieces_of(content)
        del content
        client.send_many_nowait(sent)
        client.flush_nowait()
        del sent
        assert memory() is not None
        received = await receive(scheduler, 9)
        assert len(b"".join(blob.data for blob in received)) == NBYTES
        scheduler.send_nowait(Reply(1, "so that there is something to wait for"), flush=True)
        await receive(client, 1)
        assert memory() is None
        mapped = memory_of(received[0].data)
        del received
        assert mapped() is None
        await client.aclose()


def test_what_is_mapped_outlives_its_owner_and_can_be_shared_on() -> None:
    content = shared_content()
    expected = bytes(content)
    first, second = SharedBlobs("a client"), SharedBlobs("the scheduler")
    mapped = [second.take(offered(first, blob), FROM_CLIENT)[0] for blob in pieces_of(content)]
    content.release()
    first.clear()
    assert b"".join(blob.data for blob in mapped) == expected
    third = SharedBlobs("the scheduler")
    again = [third.take(offered(second, blob), FROM_CLIENT)[0] for blob in mapped]
    assert b"".join(blob.data for blob in again) == expected


async def test_between_machines_the_content_is_sent() -> None:
    near, far = tcp_pair()
    client = Connection(near, WELCOME, allowed=TO_CLIENT)
    scheduler = Connection(far, HELLO, allowed=FROM_CLIENT)
    content = shared_content()
    async with client, scheduler:
        client.send_many_nowait(pieces_of(content))
        client.flush_nowait()
        received = await receive(scheduler, 9)
        assert b"".join(blob.data for blob in received) == content
        assert {type(blob.data) for blob in received} == {bytes}
        await client.aclose()


def row(content: memoryview, **changes: Any) -> memoryview:
    part = part_of(content)._replace(**changes)
    return memoryview(msgpack.packb((b"digest", NBYTES, *part)))


@pytest.mark.parametrize(
    "changes",
    [{"fd": 0}, {"fd": 1 << 20}, {"token": bytes(16)}, {"nbytes": NBYTES - 1}, {"nbytes": 1 << 62}],
    ids=str,
)
def test_what_is_not_that_memory_is_not_mapped_and_this_process_maps_no_more(
    changes: dict[str, int | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_blobs, "_failed", False)
    own = probe()
    with pytest.raises(ConnectionLost, match="cannot map the memory that a client shares"):
        SharedBlobs("a client").take(row(shared_content(), **changes), FROM_CLIENT)
    assert probe() == ""
    assert not can_map_memory_of(own)


def test_a_peer_that_has_ended_is_no_reason_to_share_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_blobs, "_failed", False)
    with pytest.raises(ConnectionLost):
        SharedBlobs("a client").take(row(shared_content(), pid=1 << 30), FROM_CLIENT)
    assert can_map_memory_of(probe())


@pytest.mark.parametrize(
    "text", ["", "1", "1/2/3", "../../x/1/" + "0" * 32, f"{1 << 30}/1/{'0' * 32}", "1/0/" + "0" * 32]
)
def test_a_hello_that_names_no_memory_that_can_be_mapped_agrees_to_nothing(text: str) -> None:
    assert not can_map_memory_of(text)


def test_a_file_that_can_shrink_is_not_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_blobs, "_failed", False)
    token = bytes(16)
    fd = os.memfd_create(f"trio_dask blob {token.hex()}", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, NBYTES)
        part = (os.getpid(), fd, token, NBYTES, 0, PIECE)
        with pytest.raises(ConnectionLost, match="is not as it was said"):
            SharedBlobs("a client").take(memoryview(msgpack.packb((b"d", NBYTES, *part))), FROM_CLIENT)
    finally:
        os.close(fd)


def test_memory_that_is_offered_twice_is_held_until_both_are_mapped() -> None:
    first = shared_content()
    second = map_shared(part_of(first))  # the same file under another descriptor, as after an upload anew
    sender, receiver = SharedBlobs("a worker"), SharedBlobs("the scheduler")
    answers = []
    for content in (first, second, second):
        for blob in pieces_of(content):
            answers += receiver.take(offered(sender, blob), FROM_CLIENT)[1]
    assert len(answers) == 3
    memory = memory_of(first), memory_of(second)
    del first, second, content, blob
    held = []
    for answer in answers:
        sender.release(memoryview(answer))
        held.append([each() is not None for each in memory])
    assert held == [[False, True], [False, True], [False, False]]
    with pytest.raises(ProtocolError, match="not offered"):
        sender.release(memoryview(answers[0]))


def test_a_blob_that_is_left_in_the_middle_is_answered_when_the_next_one_begins() -> None:
    first, second = shared_content(), shared_content()
    sender, receiver = SharedBlobs("a worker"), SharedBlobs("the scheduler")
    pieces = [*pieces_of(first)[:3], *pieces_of(second)]
    answers = [receiver.take(offered(sender, blob), FROM_CLIENT)[1] for blob in pieces]
    assert [token for each in answers for token in each] == [part_of(first).token, part_of(second).token]
    assert receiver._mapping is None


def test_with_many_descriptors_held_the_content_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = shared_content()
    monkeypatch.setattr(raw_memory, "MOST_SHARED", 0)
    read = map_shared(part_of(content))
    assert (read.readonly, bytes(read) == bytes(content), shared_part(read)) == (True, True, None)
    assert shared_part(shared_memory(NBYTES)) is None


def test_a_connection_that_has_ended_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedBlobs("a client")
    content = shared_content()
    memory = memory_of(content)
    for blob in pieces_of(content)[:2]:
        shared.offer(blob)
    del content, blob
    assert memory() is not None
    shared.clear()
    assert memory() is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb((b"digest", 1, 2)),
        msgpack.packb(("text", 1, 2, 3, b"4", 5, 6, 7)),
        msgpack.packb((b"digest", 1, 2, True, b"4", 5, 6, 7)),
        msgpack.packb((b"digest", 1, 2, 3, b"4", 5, 6, -7)),
        msgpack.packb((b"digest", 1, 2, 3, b"4", 5, 6, 7, 8)),
    ],
    ids=repr,
)
def test_nonsense_is_an_error_of_the_peer(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        SharedBlobs("a client").take(memoryview(payload), FROM_CLIENT)


def test_pieces_outside_of_the_memory_and_blobs_of_those_who_send_none_are_refused() -> None:
    content = shared_content()
    with pytest.raises(ProtocolError, match="behind its memory"):
        SharedBlobs("a client").take(row(content, start=NBYTES - 10, length=11), FROM_CLIENT)
    with pytest.raises(ProtocolError, match="may not"):
        SharedBlobs("the scheduler").take(row(content), TO_CLIENT)


async def test_a_peer_that_shares_without_having_agreed_is_refused() -> None:
    near, far = tcp_pair()
    async with Connection(far, HELLO, allowed=FROM_CLIENT) as scheduler:
        near.try_send(encode_frame(Kind.SHARED, b"\x90"))
        with pytest.raises(ProtocolError, match="not agreed on"):
            await receive(scheduler, 1)
    near.abort()
