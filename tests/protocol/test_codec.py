"""The codec: what is sent arrives, and nothing that may not arrive does."""

import math
from collections.abc import Mapping
from itertools import chain
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from trio_dask.errors import ProtocolError, SerializationError
from trio_dask.ids import RunId
from trio_dask.protocol import codec, messages, wire_constants
from trio_dask.protocol.codec import DATA_PLANE, FROM_CLIENT, FROM_WORKER, TO_CLIENT, TO_WORKER, Allowed, decode, encode
from trio_dask.protocol.messages import TAGS, Capacity, Heartbeat, Release, Reply, RunFinished, Shutdown, Submit, Want

DIRECTIONS = [
    pytest.param(FROM_CLIENT, messages.FromClient, id="from client"),
    pytest.param(TO_CLIENT, messages.ToClient, id="to client"),
    pytest.param(FROM_WORKER, messages.FromWorker, id="from worker"),
    pytest.param(TO_WORKER, messages.ToWorker, id="to worker"),
    pytest.param(DATA_PLANE, messages.OnDataPlane, id="data plane"),
]
ALL = codec.Allowed("anybody", messages.Message)


def pack(*rows: Any) -> bytes:
    return msgpack.packb(rows)


def types_of(value: Any) -> Any:
    """A value together with its types all the way down: 1, True and 1.0 are equal, but not the same."""
    if isinstance(value, tuple | list):
        return type(value), [types_of(item) for item in value]
    if isinstance(value, dict):
        return dict, [(types_of(key), types_of(item)) for key, item in value.items()]
    return type(value), value


@pytest.mark.parametrize("kind", TAGS.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(kind: type[Any], data: st.DataObject) -> None:
    sent = data.draw(st.lists(strategies.message_of(kind), max_size=3))
    assert types_of(decode(encode(sent), ALL)) == types_of(sent)


@pytest.mark.parametrize(("allowed", "union"), DIRECTIONS)
def test_a_direction_admits_its_own_messages_and_a_goodbye_and_no_others(allowed: Allowed, union: UnionType) -> None:
    assert {TAGS[tag] for tag in allowed.kinds} == {*get_args(union), messages.Goodbye}


@pytest.mark.parametrize("count", [0, 1, 15, 16, 2**16 - 1, 2**16])
def test_a_frame_carries_any_number_of_messages(count: int) -> None:
    assert decode(encode([Capacity(7)] * count), FROM_WORKER) == [Capacity(7)] * count


def conforms(value: Any, annotation: Any) -> bool:
    """What the compiled checks mean, spelled out; values have been through msgpack."""
    annotation = getattr(annotation, "__supertype__", annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return codec.is_plain(value)
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    if origin is UnionType:
        return value is None or conforms(value, arguments[0])
    if origin is tuple and arguments[-1] is ...:
        return type(value) is tuple and all(conforms(item, arguments[0]) for item in value)
    if origin is tuple:
        return type(value) is tuple and len(value) == len(arguments) and all(map(conforms, value, arguments))
    if origin is Mapping:
        return type(value) is dict and all(type(key) is str for key in value) and codec.is_plain(value)
    return type(value) is annotation


SAMPLES: list[Any] = [
    *(None, True, 1, 1.5, -math.inf, "text", b"bytes", (), {}, {"a": 1}, {1: 1}, {"a": {1: (None, b"")}}),
    *((None,), (1,), ("a", "b"), (b"a", b"b"), ("a", b"b"), ((),), ((), "a"), ({},)),
    *((("a",), ("b",)), ((b"a",), (b"b",)), (("a",), (b"b",)), (("a",), "b"), ((1,), ())),
    *((("a", ("b",)), ("c", ())), (("a", (b"b",)),), (("a", "b"),), (("a",),), (("a", (), ()),), ((b"a", ()),)),
]


@pytest.mark.parametrize("kind", TAGS.values(), ids=lambda kind: kind.__name__)
def test_a_row_is_admitted_exactly_if_every_field_conforms_to_its_annotation(kind: type[Any]) -> None:
    hints = [get_type_hints(kind)[field] for field in kind._fields]
    right = [next(sample for sample in SAMPLES if conforms(sample, hint)) for hint in hints]
    for position, hint in enumerate(hints):
        for sample in SAMPLES:
            fields = [*right[:position], sample, *right[position + 1 :]]
            row = pack([codec.tag_of_type[kind], *fields])
            if conforms(sample, hint):
                assert types_of(decode(row, ALL)) == types_of([kind(*fields)])
            else:
                with pytest.raises(ProtocolError, match=f"a {kind.__name__} came with {kind._fields[position]} = "):
                    decode(row, ALL)


@pytest.mark.parametrize("kind", TAGS.values(), ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_row_with_a_field_too_many_or_too_few_is_refused(kind: type[Any], data: st.DataObject) -> None:
    tag = codec.tag_of_type[kind]
    fields = [*data.draw(strategies.message_of(kind))]
    for wrong in [tag, *fields, 0], [tag, *fields[:-1]]:
        if len(wrong) != len(fields) + 1:
            with pytest.raises(ProtocolError, match=f"a {kind.__name__} of {len(wrong) - 1} fields"):
                decode(pack(wrong), ALL)


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (encode([Shutdown()]) + b"\x00", "not msgpack"),
        (b"\x91\x92\xcc\x4e", "not msgpack"),
        (msgpack.packb({}), "no rows but dict"),
        (msgpack.packb({(19,): 1}), "no rows but dict"),
        (msgpack.packb(""), "no rows but ''"),
        (pack(b"\x13"), "a Shutdown came as"),
        (pack(None), "None in place of a row"),
        (pack([]), "in place of a row"),
        (pack([{}]), "in place of a row"),
        (pack(["Want", []]), "in place of a row"),
        (pack([12345]), "unknown tag 12345"),
        (pack([70, 1, 2, "int", 0.1, None]), "a client sent a RunFinished, which it may not"),
        (pack([11]), "a Want of 0 fields in place of 1"),
        (pack([11, ["a", 1]]), "a Want came with keys"),
        (pack([11, "x" * 1000]), r"a Want came with keys = 'x{59}\.\.\.$"),
        (pack([11, [b"\xff".decode("latin-1")], "too much"]), "2 fields"),
        (b"\x91\x92\x0b\x91\xa3\xed\xa0\x80", "not msgpack"),  # a lone surrogate
        (b"\x91\x92\x0b\x91\xc7\x00\x05", "a Want came with keys"),  # an extension
        (b"\x91\x92\x0b\x81\x81\x01\x01\x01", "not msgpack"),  # a map as the key of a map
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),  # four thousand million rows
        (b"\x91\x92\x0b\xc6\xff\xff\xff\xff", "not msgpack"),
        (b"\xdd\x00\x0f\xff\xff" * 30_000, "not msgpack"),  # promises of long arrays inside each other
        (b"\x91" * 100_000, "not msgpack"),
        (b"\x91\x92\x0b" + b"\x91" * 500 + b"\x90", "a Want came with keys"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(payload: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint) as caught:
        decode(payload, FROM_CLIENT)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300


@given(st.binary(max_size=200))
def test_random_bytes_give_messages_or_a_protocol_error(data: bytes) -> None:
    try:
        decode(data, ALL)
    except ProtocolError:
        pass


@given(
    st.lists(strategies.messages_of(messages.Message), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
    st.data(),
)
def test_mutated_frames_give_messages_or_a_protocol_error(
    sent: list[messages.Message], changes: list[tuple[int, int]], length: int, data: st.DataObject
) -> None:
    frame = bytearray(encode(sent))
    for position, value in changes:
        frame[position % len(frame)] = value
    del frame[min(length, len(frame)) :]
    direction = data.draw(st.sampled_from([FROM_CLIENT, TO_CLIENT, FROM_WORKER, TO_WORKER, DATA_PLANE]))
    try:
        received = decode(frame, direction)
    except ProtocolError:
        return
    # What was accepted is in order: it can be sent on.
    assert decode(encode(received), direction) == received


@given(strategies.PLAIN)
def test_plain_values_are_plain(value: Any) -> None:
    assert codec.is_plain(value)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"in": (value,)}
    return value


def test_plain_values_may_be_nested_but_not_without_end() -> None:
    half = wire_constants.MAX_DEPTH // 2
    assert decode(encode([Reply(1, nested(half))]), TO_CLIENT) == [Reply(1, nested(half))]
    for too_deep in ({"in": nested(half)}, nested(200)):
        with pytest.raises(ProtocolError, match="a Reply came with payload = dict"):
            decode(encode([Reply(1, too_deep)]), TO_CLIENT)


@pytest.mark.parametrize("value", [{b"key": 1}, {None: 1}, {1.5: 1}, {(1,): 1}, {"deep": ({True: 1},)}])
def test_keys_of_plain_maps_are_text_or_whole_numbers(value: dict[Any, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(encode([Reply(1, value)]), TO_CLIENT)


def test_keys_of_named_options_are_text() -> None:
    with pytest.raises(ProtocolError, match="metrics"):
        decode(encode([Heartbeat(cast("dict[str, Any]", {1: 2}))]), FROM_WORKER)


# ------------------------------------------------------------------------------------------------- the sending side


@pytest.mark.parametrize(
    "message",
    [
        Want(("\ud800",)),
        Reply(2**64, None),
        Reply(1, object()),
        Reply(1, {1, 2}),
        "no message",
        (11, ("a",)),
    ],
)
def test_what_cannot_be_sent_is_the_senders_error_and_names_the_message(message: Any) -> None:
    with pytest.raises(SerializationError, match=type(message).__name__):
        encode([message])
    # The failure leaves nothing behind that would spoil what is sent next.
    assert decode(encode([Want(("a",))]), FROM_CLIENT) == [Want(("a",))]


def test_a_list_that_is_too_long_for_one_message_arrives_in_several() -> None:
    keys = tuple(map(str, range(wire_constants.MAX_ITEMS + 5)))
    received = decode(encode([Release(keys[:3]), Release(keys), Shutdown()]), FROM_CLIENT)
    assert [type(message) for message in received] == [Release, Release, Release, Shutdown]
    released = [message.keys for message in received if isinstance(message, Release)]
    assert tuple(chain.from_iterable(released[1:])) == keys


def test_parallel_lists_that_are_too_long_are_refused_before_they_are_sent() -> None:
    keys = ("key",) * (wire_constants.MAX_ITEMS + 1)
    with pytest.raises(SerializationError, match="too long"):
        encode([Submit(b"", keys, (b"",) * len(keys), (), (), (), {})])


@pytest.mark.parametrize(
    "payload", [(bytes(2**22),), ("done", ((),) * (wire_constants.MAX_ITEMS + 1)), {"x": [0] * 2**21}]
)
def test_in_place_of_an_answer_that_no_message_can_carry_goes_one_that_says_so(
    monkeypatch: pytest.MonkeyPatch, payload: object
) -> None:
    """Else a question would end the scheduler that answers it, or the session that asked."""
    monkeypatch.setattr(codec, "_MAX_ROW", 2**22)
    first, answer, last = decode(encode([Reply(1, "a"), Reply(2, payload), Reply(3, bytes(2**21))]), TO_CLIENT)
    assert (first, last) == (Reply(1, "a"), Reply(3, bytes(2**21)))
    assert isinstance(answer, Reply)
    assert (answer.request, answer.payload[0]) == (2, wire_constants.TOO_LONG)


def test_a_message_larger_than_a_frame_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_ROW", 2**21)
    with pytest.raises(SerializationError, match="larger than a frame"):
        encode([RunFinished(RunId(1), 2, "x", 0.1, bytes(2**21))])
