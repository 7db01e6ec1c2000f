"""Nobody without the cluster's key is let in, whatever of other connections it has seen, cut, changed or repeated.

The ends are the real ones of `protocol.opening`; an attacker is between them, and has everything but the key.
"""

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from tests.openings import prover
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import (
    Challenge,
    EnvelopeReader,
    Hello,
    Opening,
    Proved,
    Refusal,
    Said,
    Welcome,
    decode_challenge,
    decode_opening,
    decode_proved,
    encode_envelope,
)
from trio_dask.protocol.opening import CallerOpening, ListenerOpening
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.proof import Side, Transcript

KEY = ClusterKey(b"k" * 32)
OTHER = ClusterKey(b"o" * 32)
WORKER = Hello(role="worker", incarnation=Incarnation("w"), name="private")
SCHEDULER = Hello(role="scheduler", incarnation=Incarnation("s"))

CHANGES: dict[str, Callable[[Transcript], Transcript]] = {
    "another protocol": lambda t: t._replace(protocol=t.protocol + 1),
    "another role": lambda t: t._replace(role="client"),
    "another caller": lambda t: t._replace(caller="x"),
    "another listener": lambda t: t._replace(listener="x"),
    "the incarnations exchanged": lambda t: t._replace(caller=t.listener, listener=t.caller),
    "another nonce of the caller": lambda t: t._replace(caller_nonce=b"x" * 32),
    "another nonce of the listener": lambda t: t._replace(listener_nonce=b"x" * 32),
    "the nonces exchanged": lambda t: t._replace(caller_nonce=t.listener_nonce, listener_nonce=t.caller_nonce),
    "a field moved": lambda t: t._replace(role=t.role + t.caller[:1], caller=t.caller[1:]),
    "another certificate": lambda t: t._replace(channel_binding=b"x" * 32),
    "no certificate": lambda t: t._replace(channel_binding=b""),
}
TRANSCRIPT = Transcript(2, "worker", "w", "s", b"c" * 32, b"l" * 32, b"b" * 32)


@pytest.mark.parametrize("side", Side)
def test_a_proof_is_that_of_its_side_its_key_and_its_connection(side: Side) -> None:
    proof = TRANSCRIPT.proof(KEY, side)
    assert TRANSCRIPT.proves(KEY, side, proof)
    assert not any(TRANSCRIPT.proves(KEY, other, proof) for other in Side if other is not side)
    assert not TRANSCRIPT.proves(OTHER, side, proof)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("change", CHANGES)
def test_a_proof_for_another_connection_proves_nothing(side: Side, change: str) -> None:
    assert not CHANGES[change](TRANSCRIPT).proves(KEY, side, TRANSCRIPT.proof(KEY, side))


@given(st.integers(0, 255), st.sampled_from(Side))
def test_one_flipped_bit_or_a_missing_end_makes_a_proof_worthless(bit: int, side: Side) -> None:
    proof = bytearray(TRANSCRIPT.proof(KEY, side))
    proof[bit // 8] ^= 1 << bit % 8
    assert not TRANSCRIPT.proves(KEY, side, bytes(proof))
    assert not TRANSCRIPT.proves(KEY, side, bytes(proof[: bit // 8]))


# ------------------------------------------------------------------------------------------------------ one connection


def body_of(envelope: bytes) -> bytes:
    body = EnvelopeReader().feed(envelope)
    assert body is not None
    return body


def caller(number: int = 1, hello: Hello = WORKER, binding: bytes = b"") -> CallerOpening:
    return CallerOpening(hello, prover(KEY, number, binding))


def listener(number: int = 2, binding: bytes = b"", identity: Hello = SCHEDULER) -> ListenerOpening:
    def admit(hello: Hello) -> Welcome:
        return Welcome(identity.incarnation)

    return ListenerOpening(identity, prover(KEY, number, binding), ("worker", "client", "data"), admit, 0.0)


def test_a_hello_that_is_played_back_is_refused() -> None:
    near, far = caller(), listener()
    opening = near.take_to_send()
    far.receive(opening)
    near.receive(far.take_to_send())
    hello = near.take_to_send()
    assert isinstance(far.receive(hello), Welcome)
    again = listener(3)
    assert again.receive(opening) is None
    assert isinstance(again.receive(hello), Refusal)


def test_a_challenge_that_is_played_back_is_refused_before_the_caller_has_said_its_name() -> None:
    near, far = caller(), listener()
    far.receive(near.take_to_send())
    challenge = far.take_to_send()
    again = caller(9)
    again.take_to_send()
    assert isinstance(again.receive(challenge), Refusal)
    assert b"private" not in again.take_to_send()


def test_what_an_end_says_is_of_no_use_against_itself() -> None:
    """An attacker gives a listener's proof back to it, as that of a caller."""
    far = listener()
    opening = Opening("worker", Incarnation("w"), bytes(32), "key")
    far.receive(encode_envelope(opening))
    challenge = decode_challenge(body_of(far.take_to_send()))
    assert isinstance(challenge, Challenge)
    assert isinstance(far.receive(encode_envelope(Proved("", {}, "", challenge.proof))), Refusal)


def test_the_hellos_of_two_connections_cannot_be_exchanged() -> None:
    pairs = [(caller(1), listener(2)), (caller(3), listener(4))]
    for near, far in pairs:
        far.receive(near.take_to_send())
        near.receive(far.take_to_send())
    first, second = (near.take_to_send() for near, _ in pairs)
    assert isinstance(pairs[0][1].receive(second), Refusal)
    assert isinstance(pairs[1][1].receive(first), Refusal)


def test_whoever_stands_between_two_ends_with_a_certificate_of_its_own_is_refused_by_both() -> None:
    near, far = caller(binding=b"that of the attacker"), listener(binding=b"that of the scheduler")
    far.receive(near.take_to_send())
    refusal = near.receive(far.take_to_send())
    assert isinstance(refusal, Refusal)
    assert isinstance(far.receive(near.take_to_send()), Refusal)


@given(st.data())
def test_a_hello_that_was_cut_or_changed_is_refused(data: st.DataObject) -> None:
    near, far = caller(), listener()
    far.receive(near.take_to_send())
    near.receive(far.take_to_send())
    hello = bytearray(near.take_to_send())
    at = data.draw(st.integers(0, len(hello) - 1))
    if data.draw(st.booleans()):
        assert far.receive(bytes(hello[:at])) is None
        return
    proof = hello.index(b'"proof":"') + 9
    at = proof + at % 64
    hello[at] = data.draw(st.sampled_from(b"0123456789abcdef").filter(lambda digit: digit != hello[at]))
    assert isinstance(far.receive(bytes(hello)), Refusal)


# ------------------------------------------------------------------------------------------------ an attacker between


class Ends(NamedTuple):
    """An honest end, its number, and what it has said so far."""

    number: int
    end: CallerOpening | ListenerOpening


NONCES = st.sampled_from([number.to_bytes(32, "big") for number in range(6)])
INCARNATIONS = st.sampled_from([Incarnation(""), Incarnation("w"), Incarnation("s")])


class Between(RuleBasedStateMachine):
    """Honest ends that speak with an attacker only, which has heard everything that was ever said.

    It may carry words from one to another unchanged, as a network does. So an end may accept another honest end; it
    never accepts anything else, and each of its words is accepted by one end at most.
    """

    ends = Bundle("ends")
    heard = Bundle("heard")
    proofs = Bundle("proofs")
    nonces = Bundle("nonces")

    def __init__(self) -> None:
        super().__init__()
        self._numbers = count(1)
        self._over: set[int] = set()
        self._accepted: list[tuple[str, bytes]] = []
        self._said: dict[bytes, int] = {}

    def _hear(self, number: int, said: bytes) -> None:
        if b'"proof"' in said:
            assert said not in self._said, "two ends gave one proof"
            self._said[said] = number

    @rule(target=ends, hello=st.sampled_from([WORKER, WORKER._replace(role="client")]))
    def call(self, hello: Hello) -> Ends:
        number = next(self._numbers)
        return Ends(number, caller(number, hello))

    @rule(target=ends)
    def listen(self) -> Ends:
        number = next(self._numbers)
        return Ends(number, listener(number))

    @rule(target=heard, ends=ends)
    def listen_to(self, ends: Ends) -> bytes:
        said = ends.end.take_to_send()
        self._hear(ends.number, said)
        return said

    @rule(target=nonces, said=heard)
    def take_nonce(self, said: bytes) -> bytes:
        for decode in (decode_opening, decode_challenge):
            try:
                found = decode(body_of(said)) if said else None
            except ProtocolError:
                continue
            if isinstance(found, Opening | Challenge):
                return found.nonce
        return bytes(32)

    @rule(target=proofs, said=heard)
    def take_proof(self, said: bytes) -> bytes:
        for decode in (decode_challenge, decode_proved):
            try:
                found = decode(body_of(said)) if said else None
            except ProtocolError:
                continue
            if isinstance(found, Challenge | Proved):
                return found.proof
        return b""

    @rule(target=heard, nonce=nonces | NONCES, role=st.sampled_from(["worker", "client"]), incarnation=INCARNATIONS)
    def make_opening(self, nonce: bytes, role: str, incarnation: Incarnation) -> bytes:
        return encode_envelope(Opening("worker" if role == "worker" else "client", incarnation, nonce, "key"))

    @rule(
        target=heard,
        proof=proofs | st.binary(max_size=32),
        nonce=nonces | NONCES,
        incarnation=INCARNATIONS,
        auth=st.sampled_from(["key", "none", ""]),
    )
    def make_challenge(self, proof: bytes, nonce: bytes, incarnation: Incarnation, auth: str) -> bytes:
        return encode_envelope(Challenge(incarnation, nonce, auth, proof))

    @rule(target=heard, proof=proofs | st.binary(max_size=32), name=st.sampled_from(["", "mallory"]))
    def make_hello(self, proof: bytes, name: str) -> bytes:
        return encode_envelope(Proved(name, {}, "", proof))

    @rule(target=heard, ends=ends, said=heard)
    def say(self, ends: Ends, said: bytes) -> bytes:
        """Let one end hear something; gives what it answers."""
        end = ends.end
        if ends.number in self._over:
            return b""
        self._hear(ends.number, end.take_to_send())
        try:
            answer = end.receive(said)
        except ProtocolError:
            self._over.add(ends.number)
            return b""
        if isinstance(end, ListenerOpening) and isinstance(answer, Welcome):
            self._check_origin(said, decode_proved)
        reply = end.take_to_send()
        self._hear(ends.number, reply)
        if isinstance(end, CallerOpening) and b"private" in reply:
            self._check_origin(said, decode_challenge)
        if answer is not None:
            self._over.add(ends.number)
        return reply

    def _check_origin(self, said: bytes, decode: Callable[[bytes], Said]) -> None:
        """The proof that was accepted comes from an honest end, and was accepted by nobody before."""
        accepted = decode(body_of(said))
        assert isinstance(accepted, Challenge | Proved)
        proof = accepted.proof
        kind = decode.__name__
        origins = [said for said in self._said if proof and proof.hex().encode() in said]
        assert origins
        assert (kind, proof) not in self._accepted
        self._accepted.append((kind, proof))

    @invariant()
    def nothing_private_is_said_to_a_stranger(self) -> None:
        private = sum(b"private" in said for said in self._said)
        assert private <= sum(kind == "decode_challenge" for kind, _ in self._accepted)


TestBetween = Between.TestCase
TestBetween.settings = settings(max_examples=60, stateful_step_count=40)


def test_the_attacker_can_carry_words_so_that_two_ends_accept_each_other() -> None:
    """The machine above is of no use if nothing is ever accepted in it."""
    machine = Between()
    near, far = machine.call(WORKER), machine.listen()
    challenge = machine.say(far, machine.listen_to(near))
    machine.say(far, machine.say(near, challenge))
    assert [kind for kind, _ in machine._accepted] == ["decode_challenge", "decode_proved"]
