"""A case with more data than memory."""

from __future__ import annotations

import time
from typing import Any

from . import work
from .model import Case, Context, Kind, Metric
from .programs import peak_bytes
from .rivals.base import WORKERS


def more_than_memory(context: Context) -> dict[str, float]:
    """Generate blocks, transform them, and add them up pairwise, while the client keeps all that was generated.

    The workers have a memory limit each, and the blocks come to several times what they have together.
    """
    rival, sizes = context.rival, context.sizes
    rival.limit_memory(sizes.memory_limit)
    rival.require_dependencies()
    rival.start(context.folder)
    rival.gather(rival.map(work.nap, [0.05 + number / 1000 for number in range(2 * WORKERS)]))
    warm = [rival.submit(work.make_block, number, sizes.block_bytes) for number in range(2 * WORKERS)]
    rival.gather([rival.submit(work.array_ends, block) for block in warm])  # NumPy is imported before the clock starts
    del warm
    count = sizes.memory_times * WORKERS * sizes.memory_limit // sizes.block_bytes
    started = time.perf_counter()
    kept = [rival.submit(work.make_block, number, sizes.block_bytes) for number in range(count)]
    level: list[Any] = [rival.submit(work.transform_block, block) for block in kept]
    while len(level) > 1:
        pairs = [rival.submit(work.add, *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    ends = rival.submit(work.array_ends, level[0]).result()
    elapsed = time.perf_counter() - started
    total = float(sum(2 * number + 1 for number in range(count)))
    assert tuple(ends) == (sizes.block_bytes, total, total)
    assert len(kept) == count
    peak = max(peak_bytes(pid) for pid in rival.process_ids()["worker"])
    return {"elapsed": elapsed, "peak": float(peak)}


CASES = (
    Case(
        "memory",
        "four times as many NumPy blocks as fit into memory",
        more_than_memory,
        (
            Metric("elapsed", "4 x memory: generate, transform, reduce", Kind.TIME),
            Metric("peak", "4 x memory: most held by a worker", Kind.SIZE),
        ),
        cluster=False,
        moves_data=True,
    ),
)
