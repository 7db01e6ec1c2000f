"""The functions that tasks run: trivial on purpose, and importable by every worker process."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

MIX_MODULUS = 1_000_003


def increment(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def times_ten(x: int) -> int:
    return x * 10


def total(values: Iterable[int]) -> int:
    return sum(values)


def mix(x: int, y: int) -> int:
    """Depend on the order of the inputs, so that a swapped or wrong dependency shows in the result."""
    return (31 * x + 17 * y + 1) % MIX_MODULUS


class Counter:
    """An object that remembers."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, x: int) -> int:
        self.total += x
        return self.total


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def make_array(nbytes: int, seed: int) -> Any:
    """An array of float64 whose first and last elements tell which one it is."""
    import numpy as np

    array = np.full(nbytes // 8, float(seed))
    array[-1] = -float(seed)
    return array


def make_block(number: int, nbytes: int) -> Any:
    """An array of float64 in which every element tells which block it is."""
    import numpy as np

    block = np.zeros(nbytes // 8)
    block += number
    return block


def transform_block(block: Any) -> Any:
    return 2 * block + 1


def array_ends(array: Any) -> tuple[int, float, float]:
    """Size and both ends: enough to know that all of it is here, without reading through it."""
    return int(array.nbytes), float(array[0]), float(array[-1])


def is_odd(x: int) -> bool:
    return x % 2 == 1


def block_of_bytes(number: int, *inputs: bytes) -> bytes:
    return bytes(12_000)


def make_frame(number: int, rows: int) -> Any:
    import numpy as np
    import pandas as pd

    source = np.random.default_rng(number)
    return pd.DataFrame(
        {"key": source.integers(0, 1_000_000, rows), **{name: source.random(rows) for name in ("x", "y", "z")}}
    )
