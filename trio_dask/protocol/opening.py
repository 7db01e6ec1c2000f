"""The hello of one end of a connection, without a socket or a clock: what it says and hears, and how it ends.

Both ends prove that they have the cluster's key: `CallerOpening` and `ListenerOpening`, each in one of two phases.
Until a listener has accepted a caller, it gives it little time and little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.protocol.hello import (
    Challenge,
    EnvelopeReader,
    Hello,
    Opening,
    Proved,
    Refusal,
    Said,
    Welcome,
    check_hello,
    decode_answer,
    decode_challenge,
    decode_opening,
    decode_proved,
    encode_envelope,
)
from trio_dask.security.proof import (
    ASKS_FOR_KEY,
    CALLER_WITHOUT_KEY,
    LISTENER_ASKS_NOTHING,
    NO_PROOF,
    OTHER_KEY,
    WITHOUT_KEY,
    Prover,
    Reason,
    Side,
    Transcript,
    key_is_missing,
    unproved,
)

HELLO_S: Final = 10.0
"""How long a peer may take to say hello."""


class _Exchange:
    """What both ends of an opening share: envelopes come one after the other, and answers wait to be sent."""

    def __init__(self) -> None:
        self._reader = EnvelopeReader()
        self._to_send = b""

    def take_to_send(self) -> bytes:
        """What is to be sent now; empty if there is nothing."""
        data, self._to_send = self._to_send, b""
        return data

    @property
    def room(self) -> int:
        """How many more bytes may be read for the envelope that is awaited."""
        return self._reader.room

    @property
    def rest(self) -> bytes:
        """What came behind the last envelope, once it is over."""
        return self._reader.rest

    def receive(self, data: bytes) -> Welcome | Refusal | None:
        """How it ends, or None while it goes on. Raises `ProtocolError` for what the other end may not send.

        At most `room` bytes may be read before. A refusal may be this end's own; then it is to be sent.
        """
        while (body := self._reader.feed(data)) is not None:
            end = self._take(body)
            if end is not None:
                return end
            data, self._reader = self._reader.rest, EnvelopeReader()
        return None

    def _take(self, body: bytes) -> Welcome | Refusal | None:
        raise NotImplementedError

    def _say(self, said: Said) -> None:
        self._to_send += encode_envelope(said)

    def _refuse(self, reason: Reason, kind: str, for_us: str = "") -> Refusal:
        """Refuse the other end; `for_us` is what this end says of that to its own user, in other words."""
        refusal = Refusal(reason.text, kind, reason.remedy)
        self._say(refusal)
        return Refusal(for_us, kind) if for_us else refusal


class AwaitsChallenge(NamedTuple):
    """The caller has said its role and its versions, and nothing else."""


class AwaitsWelcome(NamedTuple):
    """The listener has proved itself, and the caller has said everything."""


class CallerOpening(_Exchange):
    """The calling end until it is welcome or refused."""

    def __init__(self, hello: Hello, prover: Prover) -> None:
        super().__init__()
        self._hello = hello
        self._prover = prover
        self._phase: AwaitsChallenge | AwaitsWelcome = AwaitsChallenge()
        encode_envelope(self._proved(b""))  # raises now if the details cannot be sent
        self._say(
            Opening(
                hello.role,
                hello.incarnation,
                prover.nonce,
                prover.auth,
                protocol=hello.protocol,
                package=hello.package,
                python=hello.python,
            )
        )

    @property
    def is_proven(self) -> bool:
        """Whether the listener has proved that it has our key, or nobody has one."""
        return self._prover.key is None or isinstance(self._phase, AwaitsWelcome)

    def _take(self, body: bytes) -> Welcome | Refusal | None:
        match self._phase:
            case AwaitsChallenge():
                said = decode_challenge(body)
                if isinstance(said, Refusal):
                    # What it says to do is no remedy of ours: it may be anybody.
                    return said if self._prover.key is None else Refusal(unproved(said.reason), said.kind)
                return self._meet(said)
            case AwaitsWelcome():
                return decode_answer(body)

    def _meet(self, challenge: Challenge) -> Refusal | None:
        """Check the listener's proof, then send our own and all the rest."""
        key, proof = self._prover.key, b""
        if key is not None:
            if challenge.auth != self._prover.auth:
                return self._refuse(LISTENER_ASKS_NOTHING, "key")
            transcript = Transcript(
                protocol=self._hello.protocol,
                role=self._hello.role,
                caller=self._hello.incarnation,
                listener=challenge.incarnation,
                caller_nonce=self._prover.nonce,
                listener_nonce=challenge.nonce,
                channel_binding=self._prover.channel_binding,
            )
            if not transcript.proves(key, Side.LISTENER, challenge.proof):
                return self._refuse(key_is_missing(challenge.place, key.source), "key")
            proof = transcript.proof(key, Side.CALLER)
        self._say(self._proved(proof))
        self._phase = AwaitsWelcome()
        return None

    def _proved(self, proof: bytes) -> Proved:
        return Proved(self._hello.name, self._hello.details, self._hello.memory, proof)


class AwaitsOpening(NamedTuple):
    """The caller has said nothing yet."""


class AwaitsHello(NamedTuple):
    """The listener has answered an opening with its proof."""

    opening: Opening
    transcript: Transcript


class ListenerOpening(_Exchange):
    """The listening end until it has welcomed or refused the caller.

    `identity` is the hello that this process would send itself. `admit` decides about a caller that has one of the
    roles in `served`, versions that match, and the key.
    """

    def __init__(
        self,
        identity: Hello,
        prover: Prover,
        served: Container[str],
        admit: Callable[[Hello], Welcome | Refusal],
        now: float,
    ) -> None:
        super().__init__()
        self._identity = identity
        self._prover = prover
        self._served = served
        self._admit = admit
        self._deadline = now + HELLO_S
        self._phase: AwaitsOpening | AwaitsHello = AwaitsOpening()
        self.hello: Hello | None = None
        """What the caller has said of itself, as far as it has."""

    def _take(self, body: bytes) -> Welcome | Refusal | None:
        match self._phase:
            case AwaitsOpening():
                return self._challenge(decode_opening(body))
            case AwaitsHello(opening, transcript):
                said = decode_proved(body)
                if isinstance(said, Refusal):  # in our own words: nobody has proved that its words are harmless
                    return Refusal(ASKS_FOR_KEY if self._prover.key is None else OTHER_KEY, "key")
                return self._greet(opening, transcript, said)

    def _challenge(self, opening: Opening) -> Refusal | None:
        """Check what concerns everybody, then prove that we have the key."""
        mine, prover = self._identity, self._prover
        self.hello = hello = opening.to_hello()
        mismatch = check_hello(hello, mine)
        if mismatch:
            return self._refuse(Reason(mismatch), "version")
        if opening.role not in self._served:
            return self._refuse(Reason(f"this {mine} does not serve the role {opening.role!r}"), "role")
        key = prover.key
        if key is not None and opening.auth != prover.auth:
            return self._refuse(CALLER_WITHOUT_KEY, "key", WITHOUT_KEY)
        transcript = Transcript(
            protocol=opening.protocol,
            role=opening.role,
            caller=opening.incarnation,
            listener=mine.incarnation,
            caller_nonce=opening.nonce,
            listener_nonce=prover.nonce,
            channel_binding=prover.channel_binding,
        )
        proof, place = (b"", "") if key is None else (transcript.proof(key, Side.LISTENER), key.place)
        self._say(Challenge(mine.incarnation, prover.nonce, prover.auth, proof, place))
        self._phase = AwaitsHello(opening, transcript)
        return None

    def _greet(self, opening: Opening, transcript: Transcript, said: Proved) -> Welcome | Refusal:
        key = self._prover.key
        if key is not None and not transcript.proves(key, Side.CALLER, said.proof):
            return self._refuse(Reason("the caller gave no proof of this cluster's key"), "key", NO_PROOF)
        self.hello = opening.to_hello()._replace(name=said.name, details=said.details, memory=said.memory)
        answer = self._admit(self.hello)
        self._say(answer)
        return answer

    def next_deadline(self) -> float:
        """When to `tick`, unless the caller has its answer by then."""
        return self._deadline

    def tick(self, now: float) -> None:
        """Raises `ProtocolError` once the caller has had its time."""
        if now >= self._deadline:
            raise ProtocolError(f"no hello came within {HELLO_S:g} s")
