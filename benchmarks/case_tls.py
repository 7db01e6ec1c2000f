"""Cases under TLS: the same work as without, on clusters whose connections are all encrypted and mutually verified.

And our transport alone, beside a bare `trio.SSLStream`.
"""

from __future__ import annotations

import importlib
from typing import Any

from .case_data import transfer
from .case_tasks import latency, map_until_finished
from .model import (
    OURS,
    Case,
    Context,
    Kind,
    Metric,
    Unsupported,
    absolute,
    at_least,
    at_most_of,
    at_most_times,
    below,
)


def alone(context: Context) -> dict[str, float]:
    """Our transport, without a cluster."""
    if context.rival.name != OURS:
        raise Unsupported("it is about our transport")
    # Imported here: a run that leaves this case out, or measures only rivals, needs no trio_dask.
    tls_alone: Any = importlib.import_module("benchmarks.tls_alone")
    found: dict[str, float] = tls_alone.figures(context.sizes.stream_bytes)
    return found


CASES = (
    Case(
        "tls-latency",
        "submit and result under TLS",
        latency,
        (
            Metric("p50", "TLS latency, median", Kind.TIME, (below("distributed"),)),
            Metric("p99", "TLS latency, 99 %", Kind.TIME, (at_most_times("distributed", 1),)),
        ),
        encrypted=True,
    ),
    Case(
        "tls-map",
        "map under TLS",
        map_until_finished,
        (Metric("per_task", "TLS map, per task", Kind.TIME, (at_most_of("distributed", 2),)),),
        encrypted=True,
    ),
    Case(
        "tls-transfer",
        "NumPy arrays from worker to worker under TLS",
        transfer,
        (Metric("rate", "TLS, worker to worker", Kind.RATE),),
        encrypted=True,
        moves_data=True,
    ),
    Case(
        "tls-alone",
        "our TLS beside a bare trio.SSLStream",
        alone,
        (
            Metric("rate", "our TLS, between two ends in one process", Kind.RATE),
            Metric("share", "as a share of trio.SSLStream", Kind.NUMBER, (at_least(0.8, "at least 0.8"),)),
            Metric("stall", "longest turn of the loop meanwhile", Kind.TIME, (absolute(20e-3, "at most 20 ms"),)),
        ),
        cluster=False,
        only_ours=True,
    ),
)
