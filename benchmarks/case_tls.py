"""Cases under TLS: the same work as without, on clusters whose connections are all encrypted and mutually verified."""

from __future__ import annotations

from .case_data import transfer
from .case_tasks import latency, map_until_finished
from .model import Case, Kind, Metric, at_most_of, at_most_times, below

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
)
