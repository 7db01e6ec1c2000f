"""Changes to what a peer sends: of bytes, lengths and order; what is doubled, missing, or said by somebody else."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgpack

_MARKS = [
    *(bytes([first]) for first in b"\x00\x7f\x80\x90\xc0\xc1\xc2\xca\xcb\xcf\xd3\xda\xff"),
    *(bytes([first]) + b"\xff" * 4 for first in b"\xc6\xc9\xdb\xdd\xdf"),  # the longest that msgpack can announce
    *(bytes([first]) + b"\x00\x01\x00\x00" for first in b"\xc6\xdb\xdd\xdf"),
    b"\xce\x40\x00\x00\x00",
    b"\xcf" + b"\x7f" * 8,
    b"\xd3" + b"\xff" * 8,
    b"\x91" * 600,
    b"\x81\x01" * 600,
    b"[" * 2000,
    b'{"a":' * 500,
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"9" * 5000,
    b'"nonce":"',
    b"trio_dask\n",
    b"\xda\x01\x00\x00",
    b"\xda\x03\x00\x00\x00\x00\x00\x10",
]
"""What readers are most likely to stumble over."""

_VALUES: Sequence[Any] = [
    None, True, 0, 1, -1, 2**24, 2**40, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, -1e308, math.inf, math.nan, "", "x" * 300,
    "key", "\n", b"", b"\xff" * 300, [], {}, [[]], [1, 2], {"a": 1}, {1: 2}, [None] * 1000,
]  # fmt: skip
"""What may stand in the place of another value."""

_LENGTHS = [0, 1, 7, 8, 255, 2**16 - 14, 2**16, 2**20, 2**26, 2**31 - 1, 2**32 - 1]

_ENVELOPE = b"trio_dask\n"

Pieces = list[bytes]


def mutate(rng: random.Random, pieces: Sequence[bytes], others: Sequence[bytes]) -> Pieces:
    """These pieces with some changes; `others` are pieces of other sessions."""
    changed = [*pieces]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not changed:
            break
        rng.choice(_CHANGES)(rng, changed, others)
    return changed


def cut(rng: random.Random, pieces: Pieces) -> Pieces:
    """The same bytes in other pieces."""
    data = b"".join(pieces)
    edges = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 1, 3, 10))))})
    return [data[start:end] for start, end in pairwise(edges)]


def _flip(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    changed = bytearray(piece)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    pieces[where] = bytes(changed)


def _insert(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    place = rng.randrange(len(piece) + 1)
    end = place + rng.choice((0, 0, 1, 2, 5))
    pieces[where] = piece[:place] + rng.choice(_MARKS) + piece[end:]


def _insert_with_its_length(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    _insert(rng, pieces, others)
    for where, piece in enumerate(pieces):
        if piece[:1] == b"\xda":
            pieces[where] = piece[:4] + max(0, len(piece) - 8).to_bytes(4, "big") + piece[8:]
        elif piece.startswith(_ENVELOPE):
            pieces[where] = piece[:10] + max(0, len(piece) - 14).to_bytes(4, "big") + piece[14:]


def _announce(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    start = 10 if piece.startswith(_ENVELOPE) else 4
    pieces[where] = piece[:start] + rng.choice(_LENGTHS).to_bytes(4, "big") + piece[start + 4 :]


def _shorten(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    pieces[where] = piece[: rng.randrange(len(piece))]


def _end(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    del pieces[rng.randrange(len(pieces)) + 1 :]


def _drop(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    del pieces[rng.randrange(len(pieces))]


def _double(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    pieces[where:where] = [piece] * rng.choice((1, 1, 20))


def _swap(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    one, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    pieces[one], pieces[other] = pieces[other], pieces[one]


def _splice(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(others))


def _graft(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    other = rng.choice(others)
    pieces[where] = piece[: rng.randrange(len(piece) + 1)] + other[rng.randrange(len(other) + 1) :]


def _change_a_value(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    """Of a piece that is one frame or one envelope: it stays well-formed, and says something else."""
    where, piece = _one(rng, pieces)
    try:
        if piece.startswith(_ENVELOPE):
            body = json.dumps(_with_another_value(rng, json.loads(piece[14:])), default=repr).encode()
            pieces[where] = piece[:10] + len(body).to_bytes(4, "big") + body
        else:
            end = 8 + int.from_bytes(piece[4:8], "big")
            rows = msgpack.unpackb(piece[8:end], strict_map_key=False)
            payload = msgpack.packb(_with_another_value(rng, rows))
            pieces[where] = piece[:4] + len(payload).to_bytes(4, "big") + payload + piece[end:]
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):  # it was changed before, or cannot be said
        _flip(rng, pieces, others)


def _with_another_value(rng: random.Random, value: Any) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.9:
        changed: list[Any] = [*value]
        where = rng.randrange(len(changed))
        changed[where] = _with_another_value(rng, changed[where])
        return changed
    if isinstance(value, dict) and value and rng.random() < 0.9:
        members: dict[Any, Any] = {**value}
        name = rng.choice([*members])
        members[name] = _with_another_value(rng, members[name])
        return members
    return rng.choice(_VALUES)


def _one(rng: random.Random, pieces: Pieces) -> tuple[int, bytes]:
    where = rng.randrange(len(pieces))
    return where, pieces[where] or b"\x00"


_CHANGES: Sequence[Callable[[random.Random, Pieces, Sequence[bytes]], None]] = (
    _flip, _flip, _insert, _insert_with_its_length, _insert_with_its_length, _announce, _shorten, _end, _drop, _double,
    _swap, _splice, _graft, _change_a_value, _change_a_value, _change_a_value,
)  # fmt: skip
