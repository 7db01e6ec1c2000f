"""Everything that reads what a peer sends, each as a function of the pieces that come. It may raise `ProtocolError`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.fuzz.sessions import CALLER_NONCE, KEY, LISTENER_NONCE, SCHEDULER
from tests.openings import NO_PROOF, prover
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import FROM_CALLER, TO_CALLER, Allowed
from trio_dask.protocol.data_link import DataLink
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, Link
from trio_dask.protocol.messages import Message
from trio_dask.protocol.opening import CallerOpening, ListenerOpening

Read = Callable[[str, Sequence[bytes]], None]
"""Takes the role of the caller, and pieces. Raises `WrongError`, and whatever else the protocol raises."""

_MAX_BYTES = 2**20


class WrongError(Exception):
    """A reader has taken what it must not take."""


def listen(role: str, pieces: Sequence[bytes]) -> None:
    """A listener; the proof in the pieces is not for this connection."""
    _listen(pieces, ListenerOpening(SCHEDULER, prover(KEY, LISTENER_NONCE + 1), (role,), _welcome, 0.0), is_open=False)


def listen_again(role: str, pieces: Sequence[bytes]) -> None:
    """A listener to which the proof in the pieces belongs, so that it may read all of them."""
    _listen(pieces, ListenerOpening(SCHEDULER, prover(KEY, LISTENER_NONCE), (role,), _welcome, 0.0), is_open=True)


def listen_openly(role: str, pieces: Sequence[bytes]) -> None:
    """A listener that asks for no proof."""
    _listen(pieces, ListenerOpening(SCHEDULER, NO_PROOF, (role,), _welcome, 0.0), is_open=True)


def _listen(pieces: Sequence[bytes], opening: ListenerOpening, *, is_open: bool) -> None:
    for piece in pieces:
        end = opening.receive(piece[: opening.room])
        if isinstance(end, Welcome) and not is_open:
            raise WrongError("a caller without a proof is welcome")
        if end is not None:
            _ = opening.take_to_send(), opening.rest
            return


def _welcome(hello: Hello) -> Welcome | Refusal:
    return Welcome(SCHEDULER.incarnation)


def call(role: str, pieces: Sequence[bytes]) -> None:
    """A caller; the proof in the pieces is not for this connection."""
    _call(role, pieces, CALLER_NONCE + 1, is_open=False)


def call_again(role: str, pieces: Sequence[bytes]) -> None:
    """A caller to which the proof in the pieces belongs."""
    _call(role, pieces, CALLER_NONCE, is_open=True)


def _call(role: str, pieces: Sequence[bytes], nonce: int, *, is_open: bool) -> None:
    hello = Hello(role=role, incarnation=Incarnation("c"), name="private")  # type: ignore[arg-type]
    opening = CallerOpening(hello, prover(KEY, nonce))
    opening.take_to_send()
    for piece in pieces:
        end = opening.receive(piece)
        if not is_open and (b"private" in opening.take_to_send() or isinstance(end, Welcome)):
            raise WrongError("a listener without a proof is trusted")
        if end is not None:
            return


def hear_caller(role: str, pieces: Sequence[bytes]) -> None:
    """A connection of a scheduler, after the hello."""
    _read_frames(FROM_CALLER[role], pieces)


def hear_listener(role: str, pieces: Sequence[bytes]) -> None:
    """A connection of a caller, after the hello."""
    _read_frames(TO_CALLER[role], pieces)


def _read_frames(allowed: Allowed, pieces: Sequence[bytes]) -> None:
    def no_other(kind: int, payload: memoryview) -> list[Message]:
        raise ProtocolError(f"no frame of kind {kind} was agreed on")

    link = Link("peer", allowed, DEFAULT_LIMITS, 0.0, no_other)
    for data in pieces:
        rest = data
        while rest:
            room = link.decoder.room
            if room is None:
                piece, rest, filled = rest, b"", 0
            else:
                filled = min(len(rest), len(room))
                room[:filled] = rest[:filled]
                piece, rest = b"", rest[filled:]
            for message in link.receive(piece, 1.0, filled=filled):
                if type(message) not in allowed.kinds.values():
                    raise WrongError(f"{message!r} came from {allowed.who}")


def read_values(role: str, pieces: Sequence[bytes]) -> None:
    """A channel of the data plane, after the hello."""
    link = DataLink(_MAX_BYTES)
    missing: list[memoryview] = []
    for piece in pieces:
        link.receive(piece)
        while True:
            while missing and not (missing[0]):
                del missing[0]
            if missing:
                missing[0] = link.fill(missing[0])
                if missing[0]:
                    break
                continue
            announced = link.next_announced()
            if announced is None:
                break
            if announced.offer is None:
                missing = [memoryview(bytearray(size)) for size in announced.sizes]
