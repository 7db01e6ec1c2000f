"""One end of a connection for values, without a socket: values come whole in any chunks, hostile ones not at all."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.errors import ProtocolError
from trio_dask.protocol.data_link import SMALL_BYTES, DataLink, check_announced, frame_of, pieces
from trio_dask.protocol.frames import PING_FRAME, Kind, encode_frame
from trio_dask.protocol.messages import Fetch, MemoryOffered, Message, Put, Value

OFFER = MemoryOffered(1, 1, bytes(16), (5, 6))


def received(link: DataLink, chunks: Iterator[bytes]) -> tuple[Message, list[bytes]] | None:
    """The next message and its buffers, if all of it comes."""
    while (announced := link.next_announced()) is None:
        if (chunk := next(chunks, None)) is None:
            return None
        link.receive(chunk)
    buffers = [bytearray(size) for size in announced.sizes]
    for buffer in buffers:
        missing = memoryview(buffer)
        while missing := link.fill(missing):
            if (chunk := next(chunks, None)) is None:
                return None
            link.receive(chunk)
    return announced.message, [*map(bytes, buffers)]


@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=4), st.integers(1, 100))
def test_values_come_whole_in_any_chunks(values: list[list[bytes]], step: int) -> None:
    sent = [(Value(str(number), tuple(map(len, parts))), parts) for number, parts in enumerate(values)]
    data = b"".join(PING_FRAME + frame_of(message) + b"".join(parts) for message, parts in sent)
    chunks = iter([data[start : start + step] for start in range(0, len(data), step)])
    link = DataLink()
    assert [received(link, chunks) for _ in sent] == sent
    assert not link.has_received


@given(st.lists(st.sampled_from([0, 1, SMALL_BYTES, SMALL_BYTES + 1, 9 * 2**20]), max_size=5))
def test_pieces_are_bounded_and_give_all_bytes_in_order(sizes: list[int]) -> None:
    views = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    sent = [*pieces(b"frame", views)]
    assert b"".join(sent) == b"frame" + b"".join(views)
    assert all(len(piece) <= 4 * 2**20 for piece in sent)


def test_an_offer_belongs_to_the_message_after_it() -> None:
    link = DataLink()
    link.receive(frame_of(OFFER))
    assert link.next_announced() is None
    link.receive(frame_of(Value("key", (10, 20))) + frame_of(Fetch(("key",))))
    assert link.next_announced() == (Value("key", (10, 20)), (10, 20), OFFER)
    assert link.next_announced() == (Fetch(("key",)), (), None)


def test_a_sender_announces_what_it_sends() -> None:
    check_announced(Value("key", (2,)), [memoryview(b"ab")])
    with pytest.raises(ValueError, match=r"a Value announces \(3,\) bytes, not \(2,\)"):
        check_announced(Value("key", (3,)), [memoryview(b"ab")])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (frame_of(Value("key", (600, 401))), "announced 1001 bytes; 1000 is the limit"),
        (frame_of(Put("key", "me", "bytes", (5, -1))), "impossible sizes"),
        (frame_of(Value("key", (0,) * 100_000)), "impossible sizes"),
        (frame_of(OFFER) + frame_of(Value("key", (1,))), "2 buffers were offered for the 1 of a message"),
        (frame_of(OFFER) + frame_of(OFFER), "2 buffers were offered for the 0 of a message"),
        (encode_frame(Kind.RECORDS, b"\xc1"), "not msgpack"),
        (b"GET / HTTP/1.1\r\n", "no frame"),
    ],
)
def test_an_announcement_that_is_wrong_is_a_protocol_error(data: bytes, complaint: str) -> None:
    link = DataLink(max_bytes=1000)
    link.receive(data)
    with pytest.raises(ProtocolError, match=complaint):
        link.next_announced()


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_hostile_input_raises_nothing_but_a_protocol_error(chunks: list[bytes]) -> None:
    for said in (chunks, [encode_frame(Kind.RECORDS, chunk) for chunk in chunks]):
        link = DataLink(max_bytes=1000)
        try:
            while received(link, iter(said)) is not None:
                pass
        except ProtocolError:
            pass
