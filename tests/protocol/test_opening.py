"""How a connection opens: only two ends with one key do, and an end that is refused learns why and nothing else."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.openings import NO_PROOF, greeting_of, opening_of, prover
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import MAX_HELLO, Hello, Refusal, Welcome, encode_envelope
from trio_dask.protocol.opening import HELLO_S, CallerOpening, ListenerOpening
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.proof import Prover, unproved

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
    assert refusal.remedy
    assert refusal.reason.endswith(refusal.remedy)
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
    assert isinstance(seen, Refusal)
    assert refusal.reason == unproved(seen.reason)
    assert refusal.kind == seen.kind == kind
    assert re.search(words, refusal.reason)


def test_what_a_listener_without_a_proof_says_to_do_is_no_remedy() -> None:
    said = encode_envelope(Refusal("no; run: rm -r /", "version", "run: rm -r /"))
    assert new_caller(ours=prover(KEY, 1)).receive(said) == Refusal(unproved("no; run: rm -r /"), "version")


def test_a_refusal_to_admit_reaches_the_caller_in_its_own_words() -> None:
    refusal = Refusal("the name c1 is taken; take another", "name", "take another")
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
    assert listener.receive(greeting_of(CLIENT) + b"a frame")
    assert listener.rest == b"a frame"


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
