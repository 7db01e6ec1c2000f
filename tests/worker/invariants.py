"""What is always true of a worker core between two events. Tests and simulations check it after every one."""

from __future__ import annotations

from typing import Any

from trio_dask.ids import Key
from trio_dask.worker.core.effects import FetchId
from trio_dask.worker.core.worker import WorkerCore


def check(core: WorkerCore) -> None:
    """Compare every table with every other.

    Raises:
      AssertionError: they contradict each other; the message says how.
    """
    _check_runs(core)
    _check_inputs(core)
    _check_fetches(core)
    total = sum(held.nbytes for held in core.held.values())
    assert core.held.nbytes == total, f"{core.held.nbytes} bytes held, not {total}"
    results = {held.run: key for key, held in core.held.items() if held.run is not None}
    assert core.held.results == results
    for number, key in results.items():
        assert number not in core.runs, f"run {number} has given {key} and is still current"


def check_idle(core: WorkerCore) -> None:
    """Check that nothing is under way: what was counted up has been counted down.

    Raises:
      AssertionError: something is left.
    """
    check(core)
    table, slots = core.table, core.slots
    tables: dict[str, Any] = {
        name: getattr(table, name) for name in ("current", "waiting", "waiters", "producers", "predecessors")
    }
    tables |= {"announced": slots.announced, "leaving": slots.stopping, "overdue": slots.overdue}
    tables["acquiring"] = core.fetches.acquiring
    left = {name: table for name, table in tables.items() if table}
    assert not left, f"left over: {left}"
    assert not core.ready, "ready runs are left over"
    assert not core.fetches.pending, "keys are still pending"
    assert not core.fetches.active, "fetches are left over"


def _check_runs(core: WorkerCore) -> None:
    slots = core.slots
    ready = {run.run: run for run in core.ready.runs()}
    for number, run in ready.items():
        assert core.runs.get(number) is run, f"ready run {number} is not current"
    for number, waiting in core.table.waiting.items():
        assert core.runs.get(number) is waiting.run, f"waiting run {number} is not current"
        assert number not in ready, f"run {number} is both waiting and ready"
        assert waiting.missing, f"run {number} waits for nothing"
    executing = [number for number in core.runs if number not in ready and number not in core.table.waiting]
    assert len(executing) == core.table.executing
    assert slots.announced <= set(executing), f"of {slots.announced} only {executing} execute"
    assert slots.deadlines.keys() <= slots.announced
    assert core.is_open == (not core.draining and not core.paused and slots.capacity > 0)
    if not core.is_open:
        assert not ready, "runs are ready where none may start"
        assert not core.table.waiting, "runs wait where none may start"


def _check_inputs(core: WorkerCore) -> None:
    waiters, producers = core.table.waiters, core.table.producers
    inverse = {(key, number) for number, waiting in core.table.waiting.items() for key in waiting.missing}
    assert inverse == {(key, number) for key, numbers in waiters.items() for number in numbers}
    for key in waiters:
        assert waiters[key], f"no run waits for {key}"
        assert key not in core.held, f"runs wait for {key}, which is here"
        assert key in core.fetches.pending or key in producers, (
            f"runs wait for {key}, which is neither fetched nor computed"
        )
    for key, number in producers.items():
        assert number in core.runs, f"{key} is computed by run {number}, which is not current"
        assert core.runs[number].key == key, f"{key} is computed by run {number}, which computes another key"


def _check_fetches(core: WorkerCore) -> None:
    plan = core.fetches
    for key in plan.pending:
        assert key in core.table.waiters or key in core.fetches.acquiring, f"{key} is pending and not wanted"
    for key in core.fetches.acquiring:
        assert key in plan.pending, f"{key} is to be acquired, and not pending"
        assert key not in core.held, f"{key} is to be acquired, and is here"
    queues = plan.queues.items()
    places: list[tuple[Key, str, FetchId | None]] = [(key, address, None) for address, queue in queues for key in queue]
    places += [(key, fetch.address, number) for number, fetch in plan.active.items() for key in fetch.keys]
    assert sorted(key for key, _, _ in places) == sorted(plan.pending), "a pending key is in no place, or in two"
    for key, address, number in places:
        pending = plan.pending[key]
        assert (pending.address, pending.fetch) == (address, number), f"{key} is in another place than it says"
    assert len(plan.active) <= plan.limits.fetches
    addresses = [fetch.address for fetch in plan.active.values()]
    for address in addresses:
        assert addresses.count(address) <= plan.limits.fetches_per_address, f"too many fetches from {address}"
