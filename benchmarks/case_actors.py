"""Calls of an actor, an object on a worker: one after the other, and many at once."""

from __future__ import annotations

import statistics
import time

from . import work
from .model import Case, Context, Kind, Metric, absolute, at_most_of, below


def call_actor(context: Context) -> dict[str, float]:
    counter = context.rival.actor(work.Counter)
    lone = context.sizes.latency_calls
    times = []
    for number in range(lone):
        started = time.perf_counter()
        total = counter.add(1).result()
        times.append(time.perf_counter() - started)
        assert total == number + 1
    many = context.sizes.map_tasks // 4
    started = time.perf_counter()
    answers = [counter.add(1) for _ in range(many)]
    totals = [answer.result() for answer in answers]
    elapsed = time.perf_counter() - started
    assert max(totals) == lone + many
    return {"p50": statistics.median(times), "per_call": elapsed / many}


CASES = (
    Case(
        "actor",
        "calls of an actor",
        call_actor,
        (
            Metric("p50", "actor, a lone call, median", Kind.TIME, (below("distributed"),)),
            Metric(
                "per_call",
                "actor, per call of many at once",
                Kind.TIME,
                (at_most_of("distributed", 2), absolute(250e-6, "at least 4,000 a second")),
            ),
        ),
    ),
)
