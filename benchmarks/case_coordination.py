"""Tasks that share a lock, and tasks that pass values through queues."""

from __future__ import annotations

import statistics
import time

from . import relay_alone, work
from .model import Case, Context, Kind, Metric, absolute, at_most_of, below
from .rivals.base import WORKERS

TASKS = 4
BEGIN_AFTER_S = 1.0
"""By then all tasks run, and have a client."""


def share_lock(context: Context) -> dict[str, float]:
    """Tasks hold one lock in turn: two on each worker, four on one, one on each."""
    rival = context.rival
    module = rival.primitives()
    rival.threads = TASKS
    rival.start(context.folder)
    first, second = rival.workers()
    count = context.sizes.handovers_slow if rival.slow else context.sizes.handovers
    figures: dict[str, float] = {}
    for name, places, turns in (
        ("spread", (first, first, second, second), count),
        ("one_worker", (first, first, first, first), count),
        ("across", (first, second), min(count, 20_000)),
    ):
        path = context.folder / name
        work.new_turns(path)
        begins_at = time.time() + BEGIN_AFTER_S
        tasks = [
            rival.submit_to(place, work.hold_in_turn, module, name, str(path), begins_at, turns) for place in places
        ]
        came, waits = zip(*rival.gather(tasks), strict=True)
        done, elapsed = work.time_of_turns(path)
        assert sum(came) == done == turns, f"{came} are not {turns}: two tasks held the lock at once"
        figures[name] = elapsed / turns
        if name == "spread":
            figures["longest_wait"] = max(waits)
            figures["least_share"] = 100 * min(came) * len(places) / turns
    return figures


def pass_values(context: Context) -> dict[str, float]:
    """Through one queue from two tasks to two, and there and back between two tasks on two workers."""
    rival, sizes = context.rival, context.sizes
    module = rival.primitives()
    rival.threads = TASKS
    rival.start(context.folder)
    workers = rival.workers()
    count = (sizes.queue_items // 10 if rival.slow else sizes.queue_items) // WORKERS
    values = [range(number * count, (number + 1) * count) for number in range(WORKERS)]
    getting = [rival.submit_to(worker, work.get_all, module, "values", count) for worker in workers]
    putting = [
        rival.submit_to(worker, work.put_all, module, "values", part)
        for worker, part in zip(workers, values, strict=True)
    ]
    began = min(began for began, _ in rival.gather(putting))
    totals, ends = zip(*rival.gather(getting), strict=True)
    assert sum(totals) == sum(map(sum, values))
    echo = rival.submit_to(workers[0], work.echo, module, "echo", sizes.latency_calls)
    times = rival.submit_to(workers[1], work.call_echo, module, "echo", sizes.latency_calls).result()
    rival.gather([echo])
    return {"per_value": (max(ends) - began) / (WORKERS * count), "round_trip": statistics.median(times)}


def pass_a_byte(context: Context) -> dict[str, float]:
    """What two processes take for it through a third one, with nothing of ours."""
    return relay_alone.figures(context.sizes.latency_calls * 10)


CASES = (
    Case(
        "locks",
        "tasks that hold one lock in turn",
        share_lock,
        (
            Metric(
                "spread",
                "lock, 4 tasks on 2 workers, per hand-over",
                Kind.TIME,
                (absolute(60e-6, "at most 60 µs"), at_most_of("distributed", 10)),
            ),
            Metric(
                "one_worker",
                "lock, 4 tasks on one worker, per hand-over",
                Kind.TIME,
                (absolute(60e-6, "at most 60 µs"),),
            ),
            Metric("across", "lock, 2 tasks on 2 workers, per hand-over", Kind.TIME, (below("distributed"),)),
            Metric("longest_wait", "lock, 4 tasks on 2 workers, longest wait", Kind.TIME),
            Metric("least_share", "lock, 4 tasks on 2 workers, least share of a fair one", Kind.PERCENT),
        ),
        cluster=False,
    ),
    Case(
        "queues",
        "tasks that pass values through queues",
        pass_values,
        (
            Metric("per_value", "queue, 2 tasks to 2, per value", Kind.TIME, (below("distributed"),)),
            Metric("round_trip", "queue, there and back between workers, median", Kind.TIME, (below("distributed"),)),
        ),
        cluster=False,
    ),
    Case(
        "relay-alone",
        "a byte that goes back and forth between two processes, through a third one",
        pass_a_byte,
        (
            Metric("loop", "bare byte through a relay, from loop to loop", Kind.TIME),
            Metric("thread", "bare byte through a relay, from thread to thread", Kind.TIME),
        ),
        cluster=False,
        only_ours=True,
    ),
)
