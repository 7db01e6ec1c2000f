"""All that a worker knows, as plain values, for a client that writes it into a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trio_dask.ids import Key
from trio_dask.worker.core.worker import WorkerCore


def tables(core: WorkerCore, figures: Mapping[str, float]) -> dict[str, Any]:
    """In the thread of the core: what its worker runs, holds and fetches."""
    waiting, ready = core.table.waiting, core.ready
    runs: dict[Key, dict[str, Any]] = {}
    for number, run in core.runs.items():
        missing = list(waiting[number].missing) if number in waiting else []
        state = "waiting" if missing else "ready" if number in ready else "executing"
        runs[run.key] = {"run": number, "state": state, "missing": missing, "announced": number in core.slots.announced}
    return {
        "type": "Worker",
        "metrics": dict(figures),
        "paused": core.paused,
        "draining": core.draining,
        "slots": core.slots.slots,
        "capacity": core.capacity,
        "seceded": [run.key for run in core.slots.outside.values()],
        "stopping": [stopped.run.key for stopped in core.slots.stopping.values()],
        "overdue": [run.key for run in core.slots.overdue.values()],
        "runs": runs,
        "data": {key: {"nbytes": held.nbytes, "type": held.type_name} for key, held in core.held.items()},
        "fetches": [{"address": fetch.address, "keys": list(fetch.keys)} for fetch in core.fetches.active.values()],
        "fetch_queues": {address: list(keys) for address, keys in core.fetches.queues.items()},
        "acquiring": list(core.fetches.acquiring),
    }
