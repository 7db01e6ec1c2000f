"""Blocks of numbers, and what is done with them: tasks that workers import, so this file imports little."""

import os
import time
from collections.abc import Sized
from typing import Any

import numpy
import numpy as np
import trio

Block = np.ndarray[tuple[int], np.dtype[np.float64]]

STALLS = {"watching": False}


def make(number: int, nbytes: int) -> numpy.ndarray:
    """A block; no two are alike. Like most of NumPy it leaves the interpreter to others while it works."""
    block = np.zeros(nbytes // 8)
    block += number
    block[-1] = -number
    return block


def transform(block: Block) -> Block:
    return block * 2 + 1


def add(first: Block, second: Block) -> Block:
    return first + second


def ends(block: Block) -> tuple[int, float, float]:
    return block.nbytes, float(block[0]), float(block[-1])


def make_in_band(kind: str, number: int, nbytes: int) -> Any:
    """A value that pickles in band, and holds the interpreter while it is made."""
    piece = bytes([97 + number])
    if kind == "bytes":
        return piece * nbytes
    if kind == "bytearray":
        return bytearray(piece * nbytes)
    if kind == "str":
        return piece.decode() * nbytes
    if kind == "chinese":
        return chr(0x4E00 + number) * (nbytes // 3)
    if kind == "list":
        return [piece * 10_000 + str(index).encode() for index in range(nbytes // 10_000)]
    if kind == "dict":
        return {index: piece * 1_000_000 + str(index).encode() for index in range(nbytes // 1_000_000)}
    assert kind == "frame"
    frame = np.empty((nbytes // 400, 4), dtype=object)
    for index, row in enumerate(frame):
        row[:] = index, str(index + number), float(index), piece * 100
    return frame


def length(value: Sized) -> int:
    return len(value)


def hoard(nbytes: int) -> float:
    """Take memory and keep it for a while, as a task does that needs too much."""
    block = np.ones(nbytes // 8)
    time.sleep(30)
    return float(block.sum())


async def watch_stalls() -> float:
    """Look every few milliseconds, until `stop_watching`, how late the worker's event loop is: the worst, in seconds.

    What the machine itself withheld is taken off: the time for which threads of this process were ready to run and got
    no processor. Each of them may have had the interpreter's lock, one after the other.
    """
    STALLS["watching"] = True
    worst = 0.0
    while STALLS["watching"]:
        before = _waited()
        due = trio.current_time() + 0.005
        await trio.sleep_until(due)
        late = trio.current_time() - due
        if late > worst:
            worst = max(worst, late - (_waited() - before))
    return worst


def stop_watching() -> None:
    STALLS["watching"] = False


def _waited() -> float:
    waited_ns = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat") as file:
                waited_ns += int(file.read().split()[1])
        except OSError:
            continue  # it has ended
    return waited_ns / 1e9


def spilled(dask_worker: Any) -> tuple[int, int]:
    return dask_worker.data.spilled_count, dask_worker.data.spilled_bytes


def peak_bytes() -> int:
    """The most memory that this process has had."""
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return int(rows["VmHWM"].split()[0]) * 1024
