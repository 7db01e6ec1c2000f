"""What the core says of the work that there is, for clusters that adapt."""

from __future__ import annotations

from typing import Any

from tests.scheduler.kit import Kit
from trio_dask.protocol import messages as m


def work_of(kit: Kit) -> list[tuple[int, float, dict[str, float], bool]]:
    rows: list[dict[str, Any]] = kit.core.demand(kit.now)["work"]
    return [(row["tasks"], row["seconds"], dict(row["resources"]), row["named"]) for row in rows if row["tasks"]]


def test_what_runs_and_what_waits_is_told_by_its_demands_with_the_seconds_that_it_takes() -> None:
    kit = Kit()
    client = kit.client()
    assert work_of(kit) == []
    client.submit(*map(str, range(10)))
    assert work_of(kit) == [(10, 5.0, {}, False)]  # nothing is known of the function
    worker = kit.worker(nthreads=1)
    worker.finish(worker.runs()[0], seconds=2.0)
    assert work_of(kit) == [(2, 4.0, {}, False), (7, 14.0, {}, False)]
    client.submit("gpu", resources={"GPU": 1.0})
    client.submit("elsewhere", workers=("nobody",))
    assert work_of(kit)[2:] == [(1, 2.0, {"GPU": 1.0}, False), (1, 2.0, {}, True)]


def test_a_call_that_has_run_for_long_says_how_long_others_take() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker(nthreads=1)
    client.submit("a", "b", "c")
    run, *_ = worker.runs()
    worker.send(m.Started((run.run,)))
    kit.now += 60.0
    assert work_of(kit) == [(2, 120.0, {}, False), (1, 60.0, {}, False)]


def test_a_long_queue_is_taken_to_be_like_its_beginning() -> None:
    kit = Kit(validate=False)
    kit.client().submit(*map(str, range(10_000)))
    assert work_of(kit) == [(10_000, 5000.0, {}, False)]


def test_workers_leave_together_or_not_at_all_and_keep_what_nobody_else_holds() -> None:
    kit = Kit()
    client = kit.client()
    first, second = kit.worker(nthreads=1), kit.worker(nthreads=1)
    client.submit("a", "b")
    runs = first.runs()
    first.finish(runs[0], value=None)
    both = [first.address, second.address]
    assert not kit.core.retire_idle(both, kit.now), "one of the two runs something"
    for run in second.runs():
        second.finish(run, value=None)
    assert kit.core.retire_idle(both, kit.now)
    rows = kit.core.demand(kit.now)["workers"]
    assert [row["is_leaving"] for row in rows] == [True, True]
    kit.tick(1.0)
    assert not first.take(m.Leave), "it holds a result for which there is no other place"
    third = kit.worker()
    kit.tick(1.0)
    third.send(m.Replicas(tuple(key for order in third.take(m.Acquire) for key, _ in order.keys)))
    kit.tick(1.0)
    assert first.take(m.Leave)
    assert second.take(m.Leave)


def test_a_worker_that_tasks_with_demands_wait_for_is_not_idle() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker(nthreads=1)
    other = kit.worker(nthreads=1)
    client.submit("a", "b", "c", "d", workers=(worker.name,))
    told = {row["address"]: row["is_idle"] for row in kit.core.demand(kit.now)["workers"]}
    assert told == {worker.address: False, other.address: True}
