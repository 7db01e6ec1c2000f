"""Cases about the processes themselves: how soon they are ready, and what they cost while nothing happens."""

from __future__ import annotations

import time

from .model import Case, Context, Kind, Metric, absolute, at_most_of
from .programs import cpu_seconds

SETTLE_S = 1.0


def local_cluster(context: Context) -> dict[str, float]:
    """The package is imported before the clock starts."""
    return {"ready": context.rival.time_local_cluster(context.folder)}


def programs(context: Context) -> dict[str, float]:
    scheduler, worker = context.rival.time_programs(context.folder)
    return {"scheduler": scheduler, "worker": worker}


def idle(context: Context) -> dict[str, float]:
    """A client is connected and wants nothing. Of the workers, the busier one counts."""
    processes = context.rival.process_ids()
    time.sleep(SETTLE_S)
    before = {pid: cpu_seconds(pid) for pids in processes.values() for pid in pids}
    started = time.perf_counter()
    time.sleep(context.sizes.idle_s)
    elapsed = time.perf_counter() - started
    return {
        role: max(100 * (cpu_seconds(pid) - before[pid]) / elapsed for pid in pids) for role, pids in processes.items()
    }


CASES = (
    Case(
        "local-cluster",
        "start of a LocalCluster",
        local_cluster,
        (Metric("ready", "LocalCluster ready", Kind.TIME, (at_most_of("distributed", 2),)),),
        cluster=False,
    ),
    Case(
        "programs",
        "start of each program",
        programs,
        (
            Metric("scheduler", "scheduler program ready", Kind.TIME),
            Metric("worker", "worker program registered", Kind.TIME),
        ),
        cluster=False,
    ),
    Case(
        "idle",
        "processor use when idle",
        idle,
        (
            Metric("scheduler", "idle scheduler", Kind.PERCENT),
            Metric("worker", "idle worker", Kind.PERCENT, (absolute(0.2, "below 0.2 % CPU", strict=True),)),
        ),
    ),
)
