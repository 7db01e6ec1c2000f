"""Answers about tasks by state, whatever happens to them."""

from __future__ import annotations

import pytest
import trio

from tests.scheduler.kit import Kit
from trio_dask.protocol import messages as m
from trio_dask.scheduler import cluster_overview as overview_module
from trio_dask.scheduler.core.queries import STATES, count_states, describe_workers, oldest_run


def counts(kit: Kit) -> dict[str, int]:
    """Those states in which there are tasks."""
    return dict(count_states(kit.core.state.tasks.values()))


def test_tasks_are_counted_by_state_through_their_whole_life() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b", "c")
    client.submit("d", needs=("a",))
    client.submit("gpu", resources={"GPU": 1})
    assert counts(kit) == {"no-worker": 4, "waiting": 1}
    worker = kit.worker()
    first, second, *_ = worker.runs()
    assert counts(kit)["no-worker"] == 1
    assert "processing" in counts(kit)
    worker.finish(first)
    worker.fail(second)
    assert (counts(kit)["memory"], counts(kit)["erred"] >= 1) == (1, True)
    assert sum(counts(kit).values()) == 5
    client.send(m.Release(("a", "b", "c", "d", "gpu")))
    assert counts(kit) == {}


async def test_an_overview_lets_the_scheduler_work_while_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview_module, "TASKS_AT_ONCE", 10)
    kit = Kit()
    client = kit.client()
    keys = [f"k{number}" for number in range(25)]
    client.submit(*keys)

    async def release() -> None:
        await trio.lowlevel.checkpoint()
        client.send(m.Release(tuple(keys)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        found = await overview_module.overview(kit.core)
        assert kit.core.state.tasks == {}, "the overview has not waited"
    assert list(found["tasks"]) == list(STATES)
    assert 10 <= found["tasks"]["no-worker"] <= 25
    assert await overview_module.overview(kit.core) == {**found, "tasks": dict.fromkeys(STATES, 0)}


def test_the_oldest_of_the_tasks_that_run_for_long_is_found() -> None:
    kit = Kit()
    one, two, client = kit.worker(name="one"), kit.worker(name="two"), kit.client()
    client.submit("a", "b", "c", "d")
    workers = list(kit.core.state.workers.values())
    assert oldest_run(workers, kit.now) is None
    early, late = one.runs()[0], two.runs()[0]
    one.send(m.Started((early.run,)))
    kit.tick(10)
    two.send(m.Started((late.run,)))
    found = oldest_run(workers, kit.now + 5)
    assert found == {"key": early.key, "worker": "one", "seconds": 15.0}


def test_workers_are_described_with_what_they_are_about() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    kit.worker(name="well")
    paused = kit.worker(name="full")
    paused.send(m.Heartbeat({"paused": True}))
    kit.worker(name="gone", reconnect=True).leave()
    found = {worker["name"]: worker["status"] for worker in describe_workers(kit.core.state)}
    assert found == {"well": "running", "full": "paused", "gone": "away"}
