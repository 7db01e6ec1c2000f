"""Changes to what a peer sends: of bytes, lengths and order; what is doubled, missing, or said by somebody else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_MARKS = [
    *(bytes([first]) for first in b"\x00\x7f\x80\x90\xc0\xc1\xc2\xca\xcb\xcf\xd3\xda\xff"),
    *(bytes([first]) + b"\xff" * 4 for first in b"\xc6\xc9\xdb\xdd\xdf"),  # the longest that msgpack can announce
    *(bytes([first]) + b"\x00\x01\x00\x00" for first in b"\xc6\xdb\xdd\xdf"),
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

_LENGTHS = [0, 1, 7, 8, 255, 2**16 - 14, 2**16, 2**20, 2**26, 2**31 - 1, 2**32 - 1]

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
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


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
        elif piece.startswith(b"trio_dask\n"):
            pieces[where] = piece[:10] + max(0, len(piece) - 14).to_bytes(4, "big") + piece[14:]


def _announce(rng: random.Random, pieces: Pieces, others: Sequence[bytes]) -> None:
    where, piece = _one(rng, pieces)
    start = 10 if piece.startswith(b"trio_dask\n") else 4
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


def _one(rng: random.Random, pieces: Pieces) -> tuple[int, bytes]:
    where = rng.randrange(len(pieces))
    return where, pieces[where] or b"\x00"


_CHANGES: Sequence[Callable[[random.Random, Pieces, Sequence[bytes]], None]] = (
    _flip, _flip, _insert, _insert_with_its_length, _insert_with_its_length, _announce, _shorten, _end, _drop, _double,
    _swap, _splice, _graft,
)  # fmt: skip
