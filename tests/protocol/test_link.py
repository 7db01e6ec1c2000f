"""One end of a connection, without a socket or a clock: what it hears, what is due, and how it ends."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import FROM_CLIENT, encode
from trio_dask.protocol.frames import PING_FRAME, Kind, encode_frame
from trio_dask.protocol.link import STEPS, Event, GiveUp, Link, LinkLimits, Phase, Ping
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

ACTIONS: dict[Event, Callable[[Link], object]] = {
    Event.SAY_GOODBYE: lambda link: link.say_goodbye(),
    Event.HEAR_GOODBYE: lambda link: link.receive(frame(Goodbye("theirs")), 1.0),
    Event.GIVE_UP: lambda link: link.give_up("given up"),
    Event.STREAM_ENDS: lambda link: link.stream_ends("the stream ended"),
}


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


def tick(link: Link, now: float, *, has_input: bool = False, backlog_bytes: int = 0) -> Ping | GiveUp | None:
    return link.tick(now, has_input=lambda: has_input, backlog_bytes=backlog_bytes)


def test_a_side_that_sent_nothing_for_long_speaks_up() -> None:
    link = new_link()
    assert link.next_deadline() == 5
    assert tick(link, 4.9) is None
    assert tick(link, 5) == Ping()
    assert tick(link, 5) is None
    link.sent_at = 7
    assert link.next_deadline() == 12


def test_a_peer_that_says_nothing_for_long_is_given_up() -> None:
    link = new_link()
    link.sent_at = 29
    link.receive(PING_FRAME, 1.0)
    assert link.next_deadline() == 31
    assert tick(link, 31) == GiveUp("tcp://peer:1 was silent for 30 s")


def test_a_peer_is_not_given_up_for_what_was_not_received_yet() -> None:
    link = new_link()
    link.sent_at = 29
    link.next_deadline()
    assert tick(link, 30, has_input=True) is None
    assert link.heard_at == 30


def test_a_process_that_was_stopped_itself_waits_once_more() -> None:
    link = new_link()
    link.sent_at = 99
    link.next_deadline()
    assert tick(link, 100) is None
    link.sent_at = 129
    link.next_deadline()
    assert tick(link, 130) == GiveUp("tcp://peer:1 was silent for 30 s")


def test_a_peer_that_lets_too_much_wait_for_too_long_is_given_up() -> None:
    link = new_link()
    link.bearable_at = 10
    link.heard_at = link.sent_at = 39
    assert tick(link, 39.9, backlog_bytes=1001) is None
    assert tick(link, 40, backlog_bytes=1000) is None
    assert tick(link, 40, backlog_bytes=1001) == GiveUp(
        "tcp://peer:1 has stopped reading: 1001 bytes are waiting for it"
    )
