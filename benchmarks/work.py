"""The functions that tasks run: trivial on purpose, and importable by every worker process."""

from __future__ import annotations

import importlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

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


def hold_in_turn(module: str, name: str, path: str, begins_at: float, count: int) -> tuple[int, float]:
    """Hold a lock again and again, until it was handed over so often; how often it came here, and the longest wait.

    The file tells who had it last, and how often it went from one task to another.
    """
    lock = importlib.import_module(module).Lock(name)
    came, longest_s = 0, 0.0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), _TURNS.size) as shared:
        me = os.getpid() << 32 | threading.get_native_id()
        with lock:
            pass
        time.sleep(max(0.0, begins_at - time.time()))
        while True:
            asked = time.perf_counter()
            with lock:
                waited = time.perf_counter() - asked
                done, last, began, _ = _TURNS.unpack_from(shared)
                if done >= count:
                    return came, longest_s
                now = time.time()
                if last != me:
                    longest_s = max(longest_s, waited)
                    came += 1
                    done += 1
                _TURNS.pack_into(shared, 0, done, me, began or now, now)


_TURNS: Final = struct.Struct("qqdd")


def new_turns(path: Path) -> None:
    """The file for tasks that hold a lock in turn."""
    path.write_bytes(bytes(_TURNS.size))


def time_of_turns(path: Path) -> tuple[int, float]:
    """How often the lock was handed over, and how long all of it took, in seconds."""
    done, _, began, ended = _TURNS.unpack(path.read_bytes())
    return done, ended - began


def put_all(module: str, name: str, values: Sequence[int]) -> tuple[float, float]:
    """Put values into a queue that takes a hundred; when that began and ended."""
    queue = importlib.import_module(module).Queue(name, maxsize=100)
    began = time.time()
    for value in values:
        queue.put(value)
    return began, time.time()


def get_all(module: str, name: str, count: int) -> tuple[int, float]:
    """Take `count` values from a queue. Returns their sum, and the time at which the last one came."""
    queue = importlib.import_module(module).Queue(name, maxsize=100)
    total = sum(queue.get() for _ in range(count))
    return total, time.time()


def echo(module: str, name: str, count: int) -> None:
    """Send values of one queue back by another."""
    package = importlib.import_module(module)
    there, back = package.Queue(f"{name} there"), package.Queue(f"{name} back")
    for _ in range(count):
        back.put(there.get())


def call_echo(module: str, name: str, count: int) -> list[float]:
    """How long each value takes there and back."""
    package = importlib.import_module(module)
    there, back = package.Queue(f"{name} there"), package.Queue(f"{name} back")
    times: list[float] = []
    for value in range(count):
        started = time.perf_counter()
        there.put(value)
        answer = back.get()
        times.append(time.perf_counter() - started)
        assert answer == value
    return times


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
