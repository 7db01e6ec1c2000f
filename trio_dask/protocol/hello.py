"""The first exchange on every connection, in a form that stays readable for ever.

    caller     b"trio_dask\n" + length (4 bytes, big-endian) + JSON object      an `Opening`: role, versions, a nonce
    listener   the same envelope                                   a `Challenge`, with its proof; or a `Refusal`
    caller     the same envelope                                   a `Hello`, with its proof; or a `Refusal`
    listener   the same envelope                                   a `Welcome` or a `Refusal`

The proofs show that both ends have the cluster's key (`security.proof`). Before the listener has proved that, the
caller says nothing of itself but its role and its versions; before the caller has, the listener reads nothing else.

The envelope never changes, and neither do the meanings of `protocol`, `package`, `role` and `reason`: whatever else two
versions disagree about, they can tell each other who they are. Unknown members are ignored, missing ones have defaults.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from trio_dask._version import __version__
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import is_plain
from trio_dask.protocol.wire_constants import MAX_DEPTH, PROTOCOL_VERSION

MAX_HELLO = 64 * 2**10
"""The longest hello or answer, and all that is read from a peer before it is accepted, in bytes."""

_MAGIC = b"trio_dask\n"
_PREFIX = len(_MAGIC) + 4
_MAX_TEXT = 255

_NONE = Incarnation("")

Role = Literal["client", "worker", "data", "nanny", "control", "scheduler"]

_WORDS: Mapping[str, str] = {"control": "rpc", "data": "channel"}

_RUNS_USER_CODE: frozenset[Role] = frozenset(("client", "worker", "data"))


_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def in_words(role: str) -> str:
    """What people call a caller that has this role."""
    return _WORDS.get(role, role)


class Hello(NamedTuple):
    """Who speaks, and as what. `details` belongs to the role.

    Its wire form leaves out what the `Opening` of the same caller has said.
    """

    role: Role
    incarnation: Incarnation = _NONE
    name: str = ""
    details: Mapping[str, Any] = {}
    protocol: int = PROTOCOL_VERSION
    package: str = __version__
    python: str = _PYTHON
    memory: str = ""
    """Where a peer finds a piece of this process's memory, to see whether it can map it; empty if none is shared."""

    def __str__(self) -> str:
        return f"{in_words(self.role)} {self.name!r}" if self.name else in_words(self.role)

    def __repr__(self) -> str:
        return f"<Hello of {self}, {self.incarnation}>"


class Opening(NamedTuple):
    """What a caller says before the listener has proved anything. `auth` is "key", or "none" for no proof."""

    role: Role
    incarnation: Incarnation
    nonce: bytes
    auth: str
    protocol: int = PROTOCOL_VERSION
    package: str = __version__
    python: str = _PYTHON

    def to_hello(self) -> Hello:
        """A hello with everything that this says, and nothing else."""
        return Hello(self.role, self.incarnation, protocol=self.protocol, package=self.package, python=self.python)


class Challenge(NamedTuple):
    """The listener's proof, and what the caller needs for its own. `place` says where the key lies, for a remedy."""

    incarnation: Incarnation
    nonce: bytes
    auth: str
    proof: bytes = b""
    place: str = ""


class Proved(NamedTuple):
    """The rest of a caller's hello, with its proof."""

    name: str
    details: Mapping[str, Any]
    memory: str
    proof: bytes = b""


class Welcome(NamedTuple):
    """The caller is accepted, by the process that this describes."""

    incarnation: Incarnation
    details: Mapping[str, Any] = {}
    protocol: int = PROTOCOL_VERSION
    package: str = __version__
    python: str = _PYTHON
    memory: str = ""


class Refusal(NamedTuple):
    """The caller is not accepted; one sentence that says why, and a word for programs (`version`, `name`, ...).

    `remedy` is the end of the sentence, if that says what to do.
    """

    reason: str
    kind: str = "refused"
    remedy: str = ""


def check_hello(hello: Hello, mine: Hello) -> str | None:
    """Why these two cannot work together, in one sentence that names both, or None if they can.

    Processes that run or pickle user code must have the same minor version of Python: pickles and byte code cross
    between them, also by way of a scheduler, which never looks inside.
    """
    if hello.protocol != mine.protocol:
        what = f"protocol {mine.protocol}", f"protocol {hello.protocol}"
    elif hello.role in _RUNS_USER_CODE and hello.python != mine.python:
        what = f"Python {mine.python}", f"Python {hello.python}"
    else:
        return None
    return (
        f"versions do not match: this {mine} has {what[0]} (trio_dask {mine.package}), "
        f"the {hello} has {what[1]} (trio_dask {hello.package})"
    )


# ---------------------------------------------------------------------------------------------------------- wire form


Said = Opening | Challenge | Proved | Welcome | Refusal
"""What one envelope says."""

_KINDS: Mapping[type[Said], str] = {
    Challenge: "challenge",
    Proved: "hello",
    Welcome: "welcome",
    Refusal: "refusal",
}
"""The member `answer` of each; an opening has none."""


def encode_envelope(said: Said) -> bytes:
    """The bytes of an envelope. Raises `ValueError` if the details in it cannot be sent, or are too long."""
    kind = _KINDS.get(type(said))
    members = {} if kind is None else {"answer": kind}
    return _encode({**members, **_members_of(said)})


def decode_opening(body: bytes) -> Opening:
    """The opening in the body of an envelope, or `ProtocolError`."""
    members = _Members(body)
    role = members.text("role")
    if role not in get_args(Role):
        raise ProtocolError(f"a hello came with the unknown role {role[:60]!r}")
    return Opening(
        role=cast("Role", role),
        incarnation=Incarnation(members.text("incarnation")),
        nonce=members.octets("nonce"),
        auth=members.text("auth"),
        protocol=members.number("protocol"),
        package=members.text("package"),
        python=members.text("python"),
    )


def decode_challenge(body: bytes) -> Challenge | Refusal:
    """The answer to an opening in the body of an envelope, or `ProtocolError`."""
    members = _Members(body)
    match members.text("answer"):
        case "challenge":
            return Challenge(
                incarnation=Incarnation(members.text("incarnation")),
                nonce=members.octets("nonce"),
                auth=members.text("auth"),
                proof=members.octets("proof"),
                place=members.text("place"),
            )
        case "refusal":
            return members.refusal()
        case other:
            raise ProtocolError(f"a hello was answered with {other[:60]!r}")


def decode_proved(body: bytes) -> Proved | Refusal:
    """What a caller says to a challenge in the body of an envelope, or `ProtocolError`."""
    members = _Members(body)
    match members.text("answer"):
        case "hello":
            return Proved(
                name=members.text("name"),
                details=members.details(),
                memory=members.text("memory"),
                proof=members.octets("proof"),
            )
        case "refusal":
            return members.refusal()
        case other:
            raise ProtocolError(f"a challenge was answered with {other[:60]!r}")


def decode_answer(body: bytes) -> Welcome | Refusal:
    """The last answer in the body of an envelope, or `ProtocolError`."""
    members = _Members(body)
    match members.text("answer"):
        case "welcome":
            return Welcome(
                incarnation=Incarnation(members.text("incarnation")),
                details=members.details(),
                protocol=members.number("protocol"),
                package=members.text("package"),
                python=members.text("python"),
                memory=members.text("memory"),
            )
        case "refusal":
            return members.refusal()
        case other:
            raise ProtocolError(f"a hello was answered with {other[:60]!r}")


class EnvelopeReader:
    """Takes the first bytes of a connection and gives the body of the envelope once it is complete.

    A wrong byte is noticed at once, so that nobody waits for the rest of another protocol's message.
    """

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """The body, or None while it is incomplete. Raises `ProtocolError`, saying what the bytes look like."""
        received = self._received
        received += data
        if not received.startswith(_MAGIC[: len(received)]):
            raise ProtocolError(f"not a trio_dask peer: {_what_speaks(bytes(received[:64]))}")
        if len(received) < _PREFIX:
            return None
        length = int.from_bytes(received[len(_MAGIC) : _PREFIX], "big")
        if length > MAX_HELLO - _PREFIX:
            raise ProtocolError(f"a hello of {length} bytes was announced; {MAX_HELLO - _PREFIX} is the limit")
        if len(received) < _PREFIX + length:
            return None
        return bytes(received[_PREFIX : _PREFIX + length])

    @property
    def room(self) -> int:
        """How many more bytes may be read from a peer that is not yet accepted."""
        return MAX_HELLO - len(self._received)

    @property
    def rest(self) -> bytes:
        """What came behind the envelope, after `feed` has returned its body."""
        length = int.from_bytes(self._received[len(_MAGIC) : _PREFIX], "big")
        return bytes(self._received[_PREFIX + length :])


def _members_of(said: Said) -> Mapping[str, object]:
    members: dict[str, Any] = said._asdict()
    if isinstance(said, Refusal) and not said.remedy:
        del members["remedy"]  # the first release had none
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in members.items()}


def _encode(members: Mapping[str, object]) -> bytes:
    text = json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)
    body = text.encode()
    if len(body) > MAX_HELLO - _PREFIX:
        raise ValueError(f"a hello has at most {MAX_HELLO - _PREFIX} bytes, not {len(body)}")
    return _MAGIC + len(body).to_bytes(4, "big") + body


_T = TypeVar("_T", int, str)


class _Members:
    """The members of a JSON object that somebody else wrote."""

    def __init__(self, body: bytes) -> None:
        try:
            members: object = json.loads(body.decode(), parse_int=_whole_number)
            # What has no place in our messages passes the parser, and would fail wherever it goes from here: NaN and
            # the infinities, and lone surrogates.
            json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a hello came that is not JSON: {error}") from error
        if not isinstance(members, dict) or not is_plain(cast("object", members), MAX_DEPTH):
            raise ProtocolError("a hello came that is not a JSON object of moderate depth")
        self._members = cast("dict[str, object]", members)

    def text(self, name: str, limit: int = _MAX_TEXT) -> str:
        """A text that can stand in a log line."""
        value = self._member(name, "")
        if len(value) > limit or not value.isprintable():
            raise ProtocolError(f"a hello came with a {name} that is longer than {limit} characters or not printable")
        return value

    def octets(self, name: str) -> bytes:
        """Bytes, which are written in hexadecimal."""
        try:
            return bytes.fromhex(self.text(name))
        except ValueError:
            raise ProtocolError(f"a hello came with a {name} that is not hexadecimal") from None

    def refusal(self) -> Refusal:
        return Refusal(self.text("reason", MAX_HELLO), self.text("kind"), self.text("remedy", MAX_HELLO))

    def number(self, name: str) -> int:
        return self._member(name, 0)

    def details(self) -> Mapping[str, Any]:
        details = self._members.get("details", {})
        if not isinstance(details, dict):
            raise ProtocolError("a hello came whose details are no object")
        return cast("dict[str, Any]", details)

    def _member(self, name: str, default: _T) -> _T:
        value = self._members.get(name, default)
        if type(value) is not type(default):
            raise ProtocolError(f"a hello came with {name} of type {type(value).__name__}")
        return value


def _whole_number(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("a number has more than 64 bits")
    return number


def is_hello(start: bytes) -> bool:
    """Whether the first bytes of a peer are those of a hello, as far as they have come."""
    return bool(start) and _MAGIC.startswith(start[: len(_MAGIC)])


_HTTP = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI * HTTP", b"HTTP/")


def _what_speaks(start: bytes) -> str:
    """A guess, for the log, at what sends this."""
    if start.startswith(_HTTP):
        return "it speaks HTTP"
    if start[:2] == b"\x16\x03":
        return "it speaks TLS"
    if start.startswith(b"SSH-"):
        return "it speaks SSH"
    if len(start) >= 8 and start[4:8] == bytes(4) and any(start[:4]):
        return "it seems to speak the protocol of dask.distributed"
    return f"it began with {start[:16]!r}"
