"""One end of a connection, without a socket or a clock: what it says and hears, what is due, and how it ends."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from trio_dask.errors import ProtocolError, SerializationError
from trio_dask.protocol.codec import BLOB_ROW_BYTES, FROM_CLIENT, decode, encode
from trio_dask.protocol.frames import PING_FRAME, FrameDecoder, Kind, encode_frame
from trio_dask.protocol.link import (
    FRAME_BYTES,
    STEPS,
    Event,
    Link,
    LinkLimits,
    Phase,
)
from trio_dask.protocol.messages import Blob, Goodbye, Message, Query

LIMITS = LinkLimits(keepalive_s=5, silence_s=30, max_backlog_bytes=1000)


def no_extra(kind: int, payload: memoryview) -> list[Message]:
    raise ProtocolError(f"no frame of kind {kind} was agreed on")


def new_link(now: float = 0.0) -> Link:
    return Link("tcp://peer:1", FROM_CLIENT, LIMITS, now, no_extra)


def frame(*messages: Message) -> bytes:
    return encode_frame(Kind.RECORDS, encode(messages))


def feed(link: Link, data: bytes, cuts: list[int]) -> list[Message]:
    """Bring these bytes in pieces, into the room that there is or as they come."""
    received: list[Message] = []
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    start = 0
    for end in ends:
        while start < end:
            room = link.decoder.room
            count = end - start if room is None else min(end - start, len(room))
            if room is None:
                received += link.receive(data[start : start + count], 1.0)
            else:
                room[:count] = data[start : start + count]
                received += link.receive(b"", 1.0, filled=count)
            start += count
    return received


ACTIONS: dict[Event, Callable[[Link], object]] = {
    Event.SAY_GOODBYE: lambda link: link.say_goodbye("ours", 1.0),
    Event.HEAR_GOODBYE: lambda link: link.receive(frame(Goodbye("theirs")), 1.0),
    Event.GIVE_UP: lambda link: link.give_up("given up"),
    Event.STREAM_ENDS: lambda link: link.stream_ends("the stream ended"),
}


# --------------------------------------------------------------------------------------------------------- what it says


def frames(link: Link, now: float = 0.0) -> list[bytes]:
    """What goes out if the network takes everything."""
    taken: list[bytes] = []
    while data := link.next_frame(now):
        taken.append(data)
    return taken


def share_small(blob: Blob) -> bytes | None:
    """The sender shares the blobs of odd numbers."""
    return b"place" if blob.total % 2 else None


@given(st.lists(st.lists(st.sampled_from([0, 10, 1000, 100_000, 300_000, 600_000]), max_size=20), max_size=4))
def test_frames_are_bounded_and_keep_the_order(flushes: list[list[int]]) -> None:
    link = new_link()
    sent: list[Message] = []
    for sizes in flushes:
        blobs = [Blob(b"", number, bytes(size)) for number, size in enumerate(sizes)]
        before = link.backlog_bytes
        link.send(blobs, 0.0)
        assert sum(sizes) <= link.backlog_bytes - before <= sum(sizes) + 20 * len(sizes)
        sent += blobs
    received: list[Message] = []
    for data in frames(link):
        [(_, payload)] = FrameDecoder().feed(data)
        messages = decode(payload, FROM_CLIENT)
        # Only the last row may exceed the size of a frame.
        assert sum(len(blob.data) for blob in messages[:-1] if isinstance(blob, Blob)) < FRAME_BYTES
        received += messages
    assert received == sent
    assert link.backlog_bytes == 0


@given(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=30))
def test_what_has_a_frame_to_itself_stays_in_order_and_alone(totals: list[int]) -> None:
    """A blob of an odd number is shared, one of 2 is large; the others share frames of records."""
    link = new_link()
    blobs = [Blob(b"", total, bytes(BLOB_ROW_BYTES if total == 2 else 3)) for total in totals]
    link.share_blobs(share_small)
    link.send(blobs, 0.0)
    received: list[int] = []
    for data in frames(link):
        [(kind, payload)] = FrameDecoder().feed(data)
        if kind == Kind.SHARED:
            assert bytes(payload) == b"place"
            received.append(1)
        else:
            messages = decode(payload, FROM_CLIENT)
            assert messages
            received += [message.total for message in messages if isinstance(message, Blob)]
    assert received == [total % 2 or total for total in totals]


def test_a_small_frame_of_its_own_counts_for_what_it_takes() -> None:
    """Where a blob is shared, this side keeps no copy of it for the network: thousands of them are no backlog."""
    link = new_link()
    link.share_blobs(share_small)
    link.send([Blob(b"", 1, bytes(1000))] * 100, 0.0)
    assert link.backlog_bytes == 100 * len(b"place")
    link.send([Blob(b"", 2, bytes(BLOB_ROW_BYTES))], 0.0)
    assert BLOB_ROW_BYTES < link.backlog_bytes - 100 * len(b"place") < BLOB_ROW_BYTES + 100
    frames(link)
    assert link.backlog_bytes == 0


def test_no_frame_begins_while_another_is_under_way() -> None:
    link = new_link()
    link.send([Query(1, "x", ())], 0.0)
    first = link.next_frame(1.0)
    assert link.sent_at == 1
    link.unsent = memoryview(first)[5:]
    link.send([Query(2, "x", ())], 2.0)
    assert link.next_frame(2.0) == b""
    assert tick(link, 10) == ""
    assert link.next_frame(2.0) == b""
    link.unsent = None
    assert first + link.next_frame(3.0) == frame(Query(1, "x", ())) + frame(Query(2, "x", ()))
    assert link.next_frame(3.0) == b""


def test_a_message_that_cannot_be_sent_takes_no_other_along() -> None:
    link = new_link()
    with pytest.raises(SerializationError, match="a Query cannot be sent"):
        link.send([Query(1, "x", ()), Query(2, "\ud800", ()), Query(3, "x", ())], 0.0)
    assert frames(link) == [frame(Query(1, "x", ()), Query(3, "x", ()))]


def test_a_goodbye_is_the_last_word_and_comes_behind_what_waits() -> None:
    link = new_link()
    link.send([Query(1, "x", ())], 0.0)
    link.say_goodbye("done", 0.0)
    assert frames(link) == [frame(Query(1, "x", ()), Goodbye("done"))]
    assert link.phase is Phase.LEAVING


@pytest.mark.parametrize("end", [Link.stop_sending, ACTIONS[Event.GIVE_UP]])
def test_nothing_goes_out_once_nothing_can(end: Callable[[Link], object]) -> None:
    link = new_link()
    link.send([Query(1, "x", ())], 0.0)
    end(link)
    link.send([Query(2, "x", ())], 0.0)
    link.say_goodbye("done", 0.0)
    assert tick(link, 5) == ""
    assert (link.next_frame(0.0), link.backlog_bytes) == (b"", 0)


# -------------------------------------------------------------------------------------------------------- what it hears


@given(st.lists(st.lists(strategies.FROM_CLIENT, max_size=3) | st.none(), max_size=5), st.lists(st.integers(0, 3000)))
def test_any_chunking_gives_the_same_messages(frames: list[list[Message] | None], cuts: list[int]) -> None:
    data = b"".join(PING_FRAME if messages is None else frame(*messages) for messages in frames)
    expected: list[Message] = [message for messages in frames if messages for message in messages]
    ends = [position for position, message in enumerate(expected) if isinstance(message, Goodbye)]
    link = new_link()
    assert feed(link, data, cuts) == (expected[: ends[0]] if ends else expected)
    assert link.goodbye == (expected[ends[0]] if ends else None)


@pytest.mark.parametrize("step", [1000, 70_000, 2**20])
def test_a_large_frame_is_received_where_it_belongs(step: int) -> None:
    sent: list[Message] = [Blob(b"d", 1, bytes(1_000_000)), Query(1, "who_has", ())]
    data = frame(sent[0]) + frame(sent[1])
    assert feed(new_link(), data, list(range(0, len(data), step))) == sent


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_hostile_input_raises_nothing_but_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    for said in (data, encode_frame(Kind.RECORDS, data), frame(Query(1, "x", ())) + data):
        try:
            received = feed(new_link(), said, cuts)
        except ProtocolError:
            continue
        assert len(received) < 200


def test_nothing_counts_after_a_goodbye() -> None:
    link = new_link()
    done = Goodbye("done")
    assert link.receive(frame(Query(1, "x", ()), done, Query(2, "x", ())), 1.0) == [Query(1, "x", ())]
    assert link.receive(frame(Query(3, "x", ()), Goodbye("again")), 2.0) == []
    assert (link.goodbye, link.phase) == (done, Phase.PEER_LEFT)


# ---------------------------------------------------------------------------------------------------------- how it ends


@given(st.lists(st.sampled_from(Event), max_size=6))
def test_whatever_happens_the_phase_follows_the_table_and_a_loss_has_a_reason(events: list[Event]) -> None:
    link = new_link()
    phase = Phase.OPEN
    for number, event in enumerate(events):
        ACTIONS[event](link)
        if event is not Event.HEAR_GOODBYE or event not in events[:number]:  # of goodbyes the first one counts
            phase = STEPS.get((phase, event), phase)
        assert link.phase is phase
        assert link.phase is not Phase.LOST or link.loss


@pytest.mark.parametrize(
    ("before", "announced"),
    [
        ([], False),
        ([Event.SAY_GOODBYE], True),
        ([Event.HEAR_GOODBYE], True),
        ([Event.GIVE_UP], False),
        ([Event.GIVE_UP, Event.SAY_GOODBYE], True),
        ([Event.SAY_GOODBYE, Event.GIVE_UP], True),
    ],
)
def test_an_end_that_either_side_announced_is_no_loss(before: list[Event], announced: bool) -> None:
    link = new_link()
    for event in before:
        ACTIONS[event](link)
    assert link.stream_ends("the stream ended") == announced
    if not announced:
        assert link.loss == ("given up" if before else "the stream ended")


# ---------------------------------------------------------------------------------------------------------- what is due


def tick(link: Link, now: float, *, has_input: bool = False) -> str:
    return link.tick(now, has_input=lambda: has_input)


def test_a_side_that_sent_nothing_for_long_speaks_up() -> None:
    link = new_link()
    assert link.next_deadline() == 5
    assert tick(link, 4.9) == ""
    assert frames(link) == []
    assert tick(link, 5) == ""
    assert frames(link, 5) == [PING_FRAME]
    assert tick(link, 5) == ""
    assert frames(link, 5) == []
    link.send([Query(1, "x", ())], 7)
    assert frames(link, 7) == [frame(Query(1, "x", ()))]
    assert link.next_deadline() == 12


def test_a_peer_that_says_nothing_for_long_is_given_up() -> None:
    link = new_link()
    link.sent_at = 29
    link.receive(PING_FRAME, 1.0)
    assert link.next_deadline() == 31
    assert tick(link, 31) == "tcp://peer:1 was silent for 30 s"


def test_a_peer_is_not_given_up_for_what_was_not_received_yet() -> None:
    link = new_link()
    link.sent_at = 29
    link.next_deadline()
    assert tick(link, 30, has_input=True) == ""
    assert link.heard_at == 30


def test_a_process_that_was_stopped_itself_waits_once_more() -> None:
    link = new_link()
    link.sent_at = 99
    link.next_deadline()
    assert tick(link, 100) == ""
    link.sent_at = 129
    link.next_deadline()
    assert tick(link, 130) == "tcp://peer:1 was silent for 30 s"


@pytest.mark.parametrize("nbytes", [1000, 1001])
def test_a_peer_that_lets_too_much_wait_for_too_long_is_given_up(nbytes: int) -> None:
    link = new_link()
    link.send([Query(1, "x", ())], 10)
    link.unsent = memoryview(bytes(nbytes - link.backlog_bytes))
    link.send_own(Kind.MAPPED, b"", 11)
    link.heard_at = link.sent_at = 39
    assert tick(link, 39.9) == ""
    given_up = "tcp://peer:1 has stopped reading: 1001 bytes are waiting for it"
    assert tick(link, 41) == (given_up if nbytes > 1000 else "")
