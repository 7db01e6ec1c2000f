"""Frames: whatever the chunks, the same frames come out, and no promise is believed before it is kept."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.errors import ProtocolError
from trio_dask.protocol.frames import HEADER_SIZE, PING_FRAME, FrameDecoder, Kind, encode_frame, first_frame

KINDS = st.sampled_from(Kind)
FRAMES = st.lists(st.tuples(KINDS, st.binary(max_size=50)), max_size=5)


def frames_from(decoder: FrameDecoder, chunks: list[bytes]) -> list[tuple[int, bytes]]:
    return [(kind, bytes(payload)) for chunk in chunks for kind, payload in decoder.feed(chunk)]


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(FRAMES, st.lists(st.integers(0, 1000), max_size=12))
def test_chunks_do_not_matter(frames: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    assert frames_from(decoder, split(stream, cuts)) == frames


@given(FRAMES)
def test_single_bytes_will_do(frames: list[tuple[Kind, bytes]]) -> None:
    stream = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    assert frames_from(FrameDecoder(), [bytes([byte]) for byte in stream]) == frames


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_random_bytes_give_frames_or_a_protocol_error(chunks: list[bytes]) -> None:
    try:
        frames_from(FrameDecoder(max_length=64), chunks)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"GET / HT", id="other magic"),
        pytest.param(b"\xda\x00\x00\x00\x00\x00\x00\x00", id="kind 0"),
        pytest.param(b"\xda\x77\x00\x00\x00\x00\x00\x00", id="unknown kind"),
        pytest.param(b"\xda\x01\x00\x01\x00\x00\x00\x00", id="not zero"),
        pytest.param(b"\xda\x01\x00\x00\x00\x00\x04\x01", id="one byte too long"),
        pytest.param(b"\xda\x01\x00\x00\xff\xff\xff\xff", id="absurdly long"),
    ],
)
@pytest.mark.parametrize("before", [b"", PING_FRAME], ids=["first", "second"])
@pytest.mark.parametrize("cut", range(HEADER_SIZE + 1))
def test_a_wrong_header_is_refused_when_it_is_complete(header: bytes, before: bytes, cut: int) -> None:
    decoder = FrameDecoder(max_length=1024)
    stream = before + header
    with pytest.raises(ProtocolError):
        frames_from(decoder, [stream[: len(before) + cut], stream[len(before) + cut :]])
    with pytest.raises(ProtocolError):
        first_frame(memoryview(header), 1024)


def test_the_longest_frame_is_allowed() -> None:
    payload = bytes(1024)
    assert frames_from(FrameDecoder(max_length=1024), [encode_frame(Kind.RECORDS, payload)]) == [(1, payload)]


def test_memory_grows_with_what_arrives_and_not_with_what_is_promised() -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(b"\xda\x01\x00\x00\x03\xff\xff\xff")
        decoder.feed(b"little")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_fills_its_room_is_not_overwritten_by_what_follows_it() -> None:
    one, other = (encode_frame(Kind.RECORDS, bytes([number]) * 300_000) for number in (1, 2))
    decoder = FrameDecoder()
    assert decoder.feed(one[:100]) == []
    frames = decoder.feed(one[100:] + other[:100])
    assert [bytes(frame.payload) for frame in frames] == [b"\1" * 300_000]


@given(st.tuples(KINDS, st.binary(max_size=50)), st.binary(max_size=20))
def test_the_first_frame_of_a_mixed_stream(frame: tuple[Kind, bytes], rest: bytes) -> None:
    encoded = encode_frame(*frame)
    stream = memoryview(encoded + rest)
    found = first_frame(stream, 64)
    assert found is not None
    (kind, payload), end = found
    assert (kind, bytes(payload), bytes(stream[end:])) == (*frame, rest)
    for cut in range(len(encoded)):
        assert first_frame(stream[:cut], 64) is None


@given(
    sizes=st.lists(st.sampled_from([0, 5, 140_000, 300_000]), min_size=1, max_size=5),
    chunks=st.lists(st.integers(1000, 200_000), min_size=1, max_size=6),
)
def test_large_frames_may_be_received_where_they_belong(sizes: list[int], chunks: list[int]) -> None:
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = memoryview(b"".join(encode_frame(Kind.RECORDS, payload) for payload in payloads))
    decoder, found, in_room, number = FrameDecoder(), [], 0, 0
    while stream:
        size = chunks[number % len(chunks)]
        number += 1
        room = decoder.room
        if room is None:
            frames = decoder.feed(stream[:size])
        else:
            size = min(size, len(room))
            size = len(room[:size]) if len(stream) >= size else len(stream)
            room[:size] = stream[:size]
            in_room += size
            frames = decoder.filled(size)
        found += [bytes(frame.payload) for frame in frames]
        stream = stream[size:]
    assert found == payloads
    assert in_room or max(sizes) < 300_000 or max(chunks) > 100_000
