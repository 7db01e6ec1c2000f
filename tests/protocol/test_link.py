"""One end of a connection, without a socket or a clock: what it says and hears, what is due, and how it ends."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.openings import NO_PROOF, greeting_of, opening_of, prover
from trio_dask.errors import ProtocolError, SerializationError
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import BLOB_ROW_BYTES, FROM_CLIENT, decode, encode
from trio_dask.protocol.frames import PING_FRAME, FrameDecoder, Kind, encode_frame
from trio_dask.protocol.hello import MAX_HELLO, Hello, Refusal, Welcome, encode_envelope
from trio_dask.protocol.link import (
    FRAME_BYTES,
    HELLO_S,
    STEPS,
    CallerOpening,
    Event,
    Link,
    LinkLimits,
    ListenerOpening,
    Phase,
)
from trio_dask.protocol.messages import Blob, Goodbye, Message, Query
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.proof import Prover

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


# -------------------------------------------------------------------------------------------------------- how it opens

SCHEDULER = Hello(role="scheduler", incarnation=Incarnation("s"))
CLIENT = Hello(role="client", name="c1")


def welcome(hello: Hello) -> Welcome | Refusal:
    return Welcome(SCHEDULER.incarnation, {"name": hello.name})


KEY = ClusterKey(bytes(range(32)), "alice@host-a:~/.config/trio_dask/cluster.key")
OTHER_KEY = ClusterKey(bytes(32), "bob@host-b:/k")
PROVERS = [(prover(KEY, 1), prover(KEY, 2)), (NO_PROOF, NO_PROOF)]


def new_caller(hello: Hello = CLIENT, ours: Prover = NO_PROOF) -> CallerOpening:
    return CallerOpening(hello, ours)


def new_opening(
    served: tuple[str, ...] = ("client", "worker"),
    admit: Callable[[Hello], Welcome | Refusal] = welcome,
    ours: Prover = NO_PROOF,
) -> ListenerOpening:
    return ListenerOpening(SCHEDULER, ours, served, admit, 100.0)


Ends = tuple[Welcome | Refusal | None, Welcome | Refusal | None]


def meet(caller: CallerOpening, listener: ListenerOpening, cuts: Sequence[int] = ()) -> Ends:
    """Carry what the two say to each other, in pieces, until neither says anything; gives how it ended for each."""
    ends: dict[object, Welcome | Refusal | None] = {caller: None, listener: None}
    silent = 0
    for sender, receiver in cycle(((caller, listener), (listener, caller))):
        said = sender.take_to_send()
        silent = 0 if said else silent + 1
        if silent == 2:
            return ends[caller], ends[listener]
        edges = [0, *sorted(cut % (len(said) + 1) for cut in cuts), len(said)]
        for start, end in pairwise(edges):
            ends[receiver] = ends[receiver] or receiver.receive(said[start:end])
    raise AssertionError


@pytest.mark.parametrize("provers", PROVERS, ids=["with a key", "without"])
@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_two_ends_that_match_open_however_the_bytes_come(provers: tuple[Prover, Prover], cuts: list[int]) -> None:
    caller, listener = new_caller(CLIENT, provers[0]), new_opening(ours=provers[1])
    answer = Welcome(SCHEDULER.incarnation, {"name": "c1"})
    assert meet(caller, listener, cuts) == (answer, answer)
    assert listener.hello == CLIENT


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (
            prover(OTHER_KEY, 1),
            prover(KEY, 2),
            r"copy ~/\.config/trio_dask/cluster\.key from alice@host-a to this mach",
        ),
        (prover(ClusterKey(bytes(32)), 1), prover(ClusterKey(bytes(range(32))), 2), "key: use --scheduler-file, or"),
        (NO_PROOF, prover(KEY, 2), "--no-auth .* was given here: leave it out"),
        (prover(KEY, 1), NO_PROOF, "does not ask for the cluster's key, so anybody may have started it"),
        (prover(KEY, 1, b"seen"), prover(KEY, 2, b"own"), "this cluster asks for its key"),
    ],
    ids=["another key", "another key without a file", "no key", "a listener without a key", "another certificate"],
)
def test_two_ends_whose_keys_differ_part_before_the_caller_has_said_anything(
    ours: Prover, theirs: Prover, words: str
) -> None:
    caller = new_caller(CLIENT._replace(name="private"), ours)
    listener = new_opening(admit=lambda _: pytest.fail("it was asked to admit the caller"), ours=theirs)
    refusal, seen = meet(caller, listener)
    assert isinstance(refusal, Refusal)
    assert isinstance(seen, Refusal)
    assert (refusal.kind, seen.kind) == ("key", "key")
    assert re.search(words, refusal.reason)
    assert listener.hello is not None
    assert listener.hello.name == ""


@pytest.mark.parametrize(
    ("hello", "kind", "words"),
    [
        (CLIENT._replace(protocol=99), "version", "this scheduler has protocol 2 .* the client has protocol 99"),
        (CLIENT._replace(python="2.7"), "version", r"this scheduler has Python 3.* the client has Python 2\.7"),
        (Hello(role="data"), "role", "this scheduler does not serve the role 'data'"),
    ],
)
def test_a_caller_that_cannot_be_served_is_refused_before_it_is_admitted(hello: Hello, kind: str, words: str) -> None:
    listener = new_opening(admit=lambda _: pytest.fail("it was asked to admit the caller"), ours=prover(KEY, 2))
    refusal, seen = meet(new_caller(hello, prover(KEY, 1)), listener)
    assert isinstance(refusal, Refusal)
    assert refusal == seen
    assert refusal.kind == kind
    assert re.search(words, refusal.reason)


def test_a_refusal_to_admit_reaches_the_caller_in_its_own_words() -> None:
    refusal = Refusal("the name c1 is taken", "name")
    assert meet(new_caller(), new_opening(admit=lambda _: refusal)) == (refusal, refusal)


@given(
    st.booleans(),
    st.binary(max_size=100)
    | st.binary(max_size=100).map(lambda body: b"trio_dask\n" + len(body).to_bytes(4, "big") + body)
    | strategies.JSON.map(
        lambda value: b"trio_dask\n" + len(body := json.dumps(value).encode()).to_bytes(4, "big") + body
    ),
    st.lists(st.integers(0, 100), max_size=4),
)
def test_a_hostile_hello_gives_a_refusal_or_a_protocol_error(opened: bool, said: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    for opening in (new_caller(ours=prover(KEY, 1)), new_opening(ours=prover(KEY, 2))):
        if opened and isinstance(opening, ListenerOpening):
            opening.receive(new_caller(ours=prover(KEY, 1)).take_to_send())
        try:
            answers = [opening.receive(said[start:end]) for start, end in pairwise(edges)]
        except ProtocolError:
            continue
        assert not any(isinstance(answer, Welcome) for answer in answers)


def test_a_peer_that_is_not_accepted_gets_little_memory_and_little_time() -> None:
    listener = new_opening()
    assert listener.room == MAX_HELLO
    listener.receive(opening_of(CLIENT)[:-1])
    assert listener.room < MAX_HELLO
    listener.receive(opening_of(CLIENT)[-1:])
    assert listener.room == MAX_HELLO
    assert listener.next_deadline() == 100 + HELLO_S
    listener.tick(100 + HELLO_S - 0.1)
    with pytest.raises(ProtocolError, match="no hello came within 10 s"):
        listener.tick(100 + HELLO_S)


def test_what_comes_behind_a_hello_is_kept() -> None:
    listener = new_opening()
    assert listener.receive(greeting_of(CLIENT) + frame(Query(1, "x", ())))
    link = new_link()
    assert link.receive(listener.rest, 1.0) == [Query(1, "x", ())]


def test_what_comes_behind_a_welcome_is_kept() -> None:
    caller = new_caller()
    listener = new_opening()
    listener.receive(caller.take_to_send())
    caller.receive(listener.take_to_send())
    listener.receive(caller.take_to_send())
    assert isinstance(caller.receive(listener.take_to_send() + b"more"), Welcome)
    assert caller.rest == b"more"


def test_an_answer_that_is_no_answer_is_a_protocol_error() -> None:
    for said in (opening_of(CLIENT), encode_envelope(Refusal("no"))[:10] + b"\xff\xff\xff\xff", b"HTTP/1.1 400"):
        with pytest.raises(ProtocolError):
            new_caller().receive(said)


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
