"""The hello: readable for ever, refused in words, and nothing that a stranger sends does harm."""

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import (
    MAX_HELLO,
    Challenge,
    EnvelopeReader,
    Hello,
    Opening,
    Proved,
    Refusal,
    Role,
    Said,
    Welcome,
    check_hello,
    decode_answer,
    decode_challenge,
    decode_opening,
    decode_proved,
    encode_envelope,
    in_words,
)
from trio_dask.protocol.wire_constants import PROTOCOL_VERSION

MINE = Hello(role="scheduler", package="0.1.0", python="3.11")


def body_of(envelope: bytes, rest: bytes = b"") -> bytes:
    reader = EnvelopeReader()
    body = reader.feed(envelope + rest)
    assert body is not None
    assert reader.rest == rest
    return body


NONCE = bytes(range(32))
SAID: dict[Callable[[bytes], Said], st.SearchStrategy[Said]] = {
    decode_opening: strategies.HELLOS.map(
        lambda hello: Opening(hello.role, hello.incarnation, NONCE, "key", hello.protocol, hello.package, hello.python)
    ),
    decode_challenge: st.sampled_from(
        [Challenge(Incarnation("abc"), NONCE, "key", NONCE, "alice@a:~/k"), Challenge(Incarnation(""), b"", "none")]
    ),
    decode_proved: strategies.HELLOS.map(lambda hello: Proved(hello.name, hello.details, hello.memory, NONCE)),
    decode_answer: st.sampled_from(
        [Welcome(incarnation=Incarnation("abc"), details={"id": 7}), Refusal("no", "name"), Refusal("why: ü")]
    ),
}


@pytest.mark.parametrize("decode", SAID)
@given(data=st.data(), rest=st.binary(max_size=20))
def test_what_is_said_arrives_as_it_was_sent(decode: Callable[[bytes], Said], data: st.DataObject, rest: bytes) -> None:
    said = data.draw(SAID[decode])
    assert decode(body_of(encode_envelope(said), rest)) == said


@pytest.mark.parametrize("decode", [decode_challenge, decode_proved, decode_answer])
def test_a_refusal_can_come_at_any_point(decode: Callable[[bytes], Said]) -> None:
    assert decode(body_of(encode_envelope(Refusal("no", "key")))) == Refusal("no", "key")


def test_the_envelope_and_the_lasting_members_are_as_they_were_in_the_first_release() -> None:
    """A literal, because two releases share no code: change nothing here."""
    wire = (
        b"trio_dask\n\x00\x00\x00\x8b"
        b'{"role":"worker","incarnation":"ab12","name":"w1","credentials":"","details":{"nthreads":2},'
        b'"protocol":1,"package":"0.1.0","python":"3.11"}'
    )
    first = decode_opening(body_of(wire))
    assert (first.role, first.protocol, first.package, first.python) == ("worker", 1, "0.1.0", "3.11")
    assert encode_envelope(Refusal("no", "name")) == (
        b'trio_dask\n\x00\x00\x00\x30{"answer":"refusal","reason":"no","kind":"name"}'
    )


def test_an_opening_is_as_it_was_in_the_first_release_that_had_one() -> None:
    """A literal as well."""
    opening = Opening("worker", Incarnation("ab12"), b"\x01\xff", "key", 2, "0.1.0", "3.11")
    assert encode_envelope(opening) == (
        b"trio_dask\n\x00\x00\x00\x71"
        b'{"role":"worker","incarnation":"ab12","nonce":"01ff","auth":"key","protocol":2,"package":"0.1.0",'
        b'"python":"3.11"}'
    )


def test_a_hello_from_the_future_can_be_read_and_refused() -> None:
    future = {"role": "worker", "protocol": 99, "package": "7.0", "quantum": [1, 2], "name": "w1"}
    hello = decode_opening(json.dumps(future).encode()).to_hello()
    assert (hello.protocol, hello.package, hello.python) == (99, "7.0", "")
    assert check_hello(hello, MINE) == (
        f"versions do not match: this scheduler has protocol {PROTOCOL_VERSION} (trio_dask 0.1.0), "
        "the worker has protocol 99 (trio_dask 7.0)"
    )


@pytest.mark.parametrize("role", ["client", "worker", "data"])
def test_pythons_that_exchange_pickles_must_match(role: Role) -> None:
    theirs = MINE._replace(role=role, python="3.12", package="0.2.0", name="x")
    assert check_hello(theirs, MINE) == (
        "versions do not match: this scheduler has Python 3.11 (trio_dask 0.1.0), "
        f"the {in_words(role)} 'x' has Python 3.12 (trio_dask 0.2.0)"
    )
    assert check_hello(theirs._replace(python="3.11"), MINE) is None


@pytest.mark.parametrize("role", ["nanny", "control"])
def test_other_roles_may_have_any_python(role: Role) -> None:
    assert check_hello(MINE._replace(role=role, python="3.14"), MINE) is None


# ------------------------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    ("start", "guess"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "speaks HTTP"),
        (b"POST /api", "speaks HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "speaks HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n", "speaks HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "speaks TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks SSH"),
        (b"\x5c\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", "dask.distributed"),
        (b"\x00" * 8, "it began with"),
        (b"trio_dash\n", "it began with"),
        (b"hello there", "it began with b'hello there'"),
    ],
)
def test_what_speaks_another_protocol_is_recognised(start: bytes, guess: str) -> None:
    with pytest.raises(ProtocolError, match=guess):
        EnvelopeReader().feed(start)


@given(st.binary(min_size=1, max_size=40))
def test_a_wrong_byte_is_noticed_when_it_comes(data: bytes) -> None:
    reader = EnvelopeReader()
    good = b"trio_dask\n"
    for position, byte in enumerate(data):
        if position < len(good) and byte != good[position]:
            with pytest.raises(ProtocolError):
                reader.feed(bytes([byte]))
            return
        reader.feed(bytes([byte]))


@given(strategies.HELLOS, st.lists(st.integers(0, 2000), max_size=5))
def test_an_envelope_may_come_in_pieces(hello: Hello, cuts: list[int]) -> None:
    said = Proved(hello.name, hello.details, hello.memory, NONCE)
    stream = encode_envelope(said)
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    reader = EnvelopeReader()
    *early, last = [reader.feed(stream[start:end]) for start, end in pairwise(edges)]
    assert early == [None] * len(early)
    assert last is not None
    assert decode_proved(last) == said


def test_an_envelope_is_bounded() -> None:
    with pytest.raises(ProtocolError, match="limit"):
        EnvelopeReader().feed(b"trio_dask\n" + MAX_HELLO.to_bytes(4, "big"))
    reader = EnvelopeReader()
    reader.feed(b"trio_dask\n" + (MAX_HELLO - 14).to_bytes(4, "big"))
    assert reader.room == MAX_HELLO - 14
    with pytest.raises(ValueError, match="at most"):
        encode_envelope(Proved("", {"x": "x" * MAX_HELLO}, ""))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"role": "king"}',
        b'{"role": ["client"]}',
        b'{"role": "client", "protocol": "1"}',
        b'{"role": "client", "protocol": true}',
        b'{"role": "client", "nonce": 7}',
        b'{"role": "client", "nonce": "no hexadecimal"}',
        b'{"role": "client", "x": NaN}',
        b'{"role": "client", "x": 1e999}',
        b'{"role": "client", "x": 18446744073709551616}',
        b'{"role": "client", "x": "\\ud800"}',
        b'{"role": "client", "package": "\\u001b[2J"}',
        b'{"role": "client", "x": ' + b"[" * 50 + b"]" * 50 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"role": "client", "protocol": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_bad_opening_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_opening(body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"answer": "welcome"}',
        b'{"answer": "hello", "details": []}',
        b'{"answer": "hello", "details": {"x": NaN}}',
        b'{"answer": "hello", "details": {"x": 18446744073709551616}}',
        b'{"answer": "hello", "details": {"x": ' + b"[" * 50 + b"]" * 50 + b"}}",
        b'{"answer": "hello", "name": "two\\nlines"}',
        b'{"answer": "hello", "name": "' + b"x" * 256 + b'"}',
        b'{"answer": "hello", "proof": "0g"}',
    ],
)
def test_a_bad_hello_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_proved(body)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60) | strategies.JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bodies_give_a_hello_or_a_protocol_error(body: bytes) -> None:
    for decode in SAID:
        try:
            decode(body)
        except ProtocolError:
            pass


@pytest.mark.parametrize("body", [b"{}", b'{"answer": "perhaps"}', b'{"answer": "welcome", "protocol": null}', b"7"])
def test_a_bad_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(body)
