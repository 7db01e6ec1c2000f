"""Cases that move large arrays."""

from __future__ import annotations

import statistics
import time
from typing import Any

from . import work
from .model import Case, Context, Kind, Metric, at_least_times, at_most_of

LATER_ROUNDS = 3
ARGUMENTS = 3
BETWEEN_ROUNDS_S = 0.5
"""What was released is freed meanwhile, outside the clock."""


def expected_ends(nbytes: int, seed: int) -> tuple[int, float, float]:
    return nbytes, float(seed), -float(seed)


def scatter_and_gather(context: Context) -> dict[str, float]:
    """Arrays from the client to the workers, and back; each round has new arrays.

    The first round meets fresh processes, whose memory the system has yet to hand out; later rounds may reuse it. So
    they are two figures, and a claim about one says nothing about the other.
    """
    rates = []
    for number in range(1 + LATER_ROUNDS):
        rates.append(_round(context, first_seed=1 + number * context.sizes.array_count))
        time.sleep(BETWEEN_ROUNDS_S)
    (scatter, gather), later = rates[0], rates[1:]
    return {
        "scatter": scatter,
        "gather": gather,
        "scatter_again": statistics.median(rate for rate, _ in later),
        "gather_again": statistics.median(rate for _, rate in later),
    }


def _round(context: Context, first_seed: int) -> tuple[float, float]:
    """Bytes per second there and back. Keys are not made from the content: that would measure a hash function."""
    rival, sizes = context.rival, context.sizes
    seeds = range(first_seed, first_seed + sizes.array_count)
    arrays = [work.make_array(sizes.array_bytes, seed) for seed in seeds]
    nbytes = sum(array.nbytes for array in arrays)
    started = time.perf_counter()
    futures = rival.scatter(arrays)
    rival.wait(futures)
    scattered = time.perf_counter()
    back = rival.gather(futures)
    gathered = time.perf_counter()
    expected = [expected_ends(sizes.array_bytes, seed) for seed in seeds]
    assert not any(array is original for array, original in zip(back, arrays, strict=True))
    assert [work.array_ends(array) for array in back] == expected
    on_workers = rival.gather([rival.submit(work.array_ends, future) for future in futures])
    assert [tuple(ends) for ends in on_workers] == expected
    return nbytes / (scattered - started), nbytes / (gathered - scattered)


def transfer(context: Context) -> dict[str, float]:
    """One array after the other: made on one worker, used on the other; the time is that of the use."""
    rival, sizes = context.rival, context.sizes
    here, there = rival.workers()[:2]

    def use(seed: int, nbytes: int) -> float:
        future: Any = rival.submit_to(here, work.make_array, nbytes, seed)
        rival.wait([future])
        started = time.perf_counter()
        ends = rival.submit_to(there, work.array_ends, future).result()
        elapsed = time.perf_counter() - started
        assert tuple(ends) == expected_ends(nbytes, seed)
        return elapsed

    use(1, sizes.transfer_bytes)  # not counted: it meets memory that the system has yet to hand out
    spent = sum(use(seed, sizes.transfer_bytes) for seed in range(2, sizes.transfer_count + 2))
    return {"rate": sizes.transfer_bytes * sizes.transfer_count / spent}


def argument(context: Context) -> dict[str, float]:
    """One array after the other as an argument of a call; the key of each is made from its content."""
    rival, nbytes = context.rival, context.sizes.argument_bytes
    seconds = []
    for seed in range(1, ARGUMENTS + 1):
        array = work.make_array(nbytes, seed)
        started = time.perf_counter()
        future: Any = rival.submit(work.array_ends, array)
        ends = future.result()
        seconds.append(time.perf_counter() - started)
        assert tuple(ends) == expected_ends(nbytes, seed)
        del array, future
        time.sleep(BETWEEN_ROUNDS_S)
    return {"seconds": statistics.median(seconds)}


CASES = (
    Case(
        "scatter-gather",
        "NumPy arrays from the client and back",
        scatter_and_gather,
        (
            Metric("scatter", "scatter, fresh cluster", Kind.RATE, (at_least_times("distributed", 6),)),
            Metric("gather", "gather, fresh cluster", Kind.RATE, (at_least_times("distributed", 6),)),
            Metric("scatter_again", "scatter, later rounds", Kind.RATE, (at_least_times("distributed", 6),)),
            Metric("gather_again", "gather, later rounds", Kind.RATE, (at_least_times("distributed", 6),)),
        ),
        moves_data=True,
    ),
    Case(
        "argument",
        "a large NumPy array as an argument",
        argument,
        (Metric("seconds", "argument of 1 GiB", Kind.TIME, (at_most_of("distributed", 1),)),),
        moves_data=True,
    ),
    Case(
        "transfer",
        "NumPy arrays from worker to worker",
        transfer,
        (Metric("rate", "worker to worker", Kind.RATE),),
        moves_data=True,
    ),
)
