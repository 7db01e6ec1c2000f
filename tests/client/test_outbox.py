"""What the client has to send: what is alike travels together, and a blob once."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.client.cluster import FUNCTION, rows
from trio_dask.client.core.outbox import LOADED_BYTES, Outbox, Row
from trio_dask.protocol import messages as m


def test_what_is_alike_travels_together_and_in_order() -> None:
    outbox = Outbox(10**6)
    outbox.ship(*FUNCTION)
    outbox.submit(FUNCTION[0], {}, [Row("a", b"1")])
    outbox.submit(FUNCTION[0], {}, [Row("b", b"2", ("a",))])
    outbox.release("a")
    outbox.release("b")
    outbox.submit(FUNCTION[0], {"retries": 1}, [Row("c", b"3")])
    outbox.want("d")
    outbox.want("e")
    assert outbox.drain() == [
        m.Blob(FUNCTION[0], 8, b"function"),
        m.Submit(FUNCTION[0], ("a", "b"), (b"1", b"2"), ((), ("a",)), (), (), {}),
        m.Release(("a", "b")),
        m.Submit(FUNCTION[0], ("c",), (b"3",), (), (), (), {"retries": 1}),
        m.Want(("d", "e")),
    ]
    assert outbox.drain() == ()


@pytest.mark.parametrize(("count", "size"), [(10_000, 4), (100, 60_000)])
def test_long_submits_are_cut(count: int, size: int) -> None:
    outbox = Outbox(10**6)
    outbox.submit(FUNCTION[0], {}, rows(count, size=size))
    messages: Sequence[Any] = outbox.drain()
    assert [key for message in messages for key in message.keys] == [f"k{number}" for number in range(count)]
    assert all(len(message.keys) <= 2048 and sum(map(len, message.calls)) <= 600_000 for message in messages)


def test_a_blob_travels_once_in_pieces_until_it_is_forgotten() -> None:
    outbox = Outbox(3_000_000)
    large = bytes(2_500_000)
    outbox.ship(b"1" * 16, large)
    outbox.ship(b"1" * 16, large)
    pieces: Sequence[Any] = outbox.drain()
    assert b"".join(piece.data for piece in pieces) == large
    assert {piece.total for piece in pieces} == {len(large)}
    assert len(pieces) == 3
    outbox.ship(b"2" * 16, large)
    assert outbox.drain()[-1] == m.ForgetBlobs((b"1" * 16,))
    outbox.ship(b"1" * 16, large)
    assert len(outbox.drain()) == 4


def test_small_blobs_are_forgotten_too() -> None:
    """A worker keeps what it loaded from each, which takes more than its content."""
    outbox = Outbox(10 * LOADED_BYTES)
    for number in range(15):
        outbox.ship(b"%16d" % number, b"x")
    forgotten = outbox.drain()[-1]
    assert forgotten == m.ForgetBlobs(tuple(b"%16d" % number for number in range(6)))
