"""Answers about tasks by state, whatever happens to them."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.scheduler.kit import Kit
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import queries
from trio_dask.scheduler.core.queries import STATES
from trio_dask.scheduler.rpc_handlers import overview


def picture(kit: Kit, now: float = 0.0) -> dict[str, Any]:
    """What an overview says."""
    steps = kit.core.overview(lambda: now)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: dict[str, Any] = end.value
            return found


def counts(kit: Kit) -> dict[str, int]:
    """The states in which there are tasks."""
    return {state: count for state, count in picture(kit)["tasks"].items() if count}


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
    monkeypatch.setattr(queries, "TASKS_AT_ONCE", 10)
    kit = Kit()
    client = kit.client()
    keys = [f"k{number}" for number in range(25)]
    client.submit(*keys)

    async def release() -> None:
        await trio.lowlevel.checkpoint()
        client.send(m.Release(tuple(keys)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        found = await overview(kit.core)
        assert kit.state.tasks == {}, "the overview has not waited"
    assert list(found["tasks"]) == list(STATES)
    assert 10 <= found["tasks"]["no-worker"] <= 25
    assert await overview(kit.core) == {**found, "tasks": dict.fromkeys(STATES, 0)}


def test_the_oldest_of_the_tasks_that_run_for_long_is_found() -> None:
    kit = Kit()
    one, two, client = kit.worker(name="one"), kit.worker(name="two"), kit.client()
    client.submit("a", "b", "c", "d")
    assert picture(kit, kit.now)["oldest"] is None
    early, late = one.runs()[0], two.runs()[0]
    one.send(m.Started((early.run,)))
    kit.tick(10)
    two.send(m.Started((late.run,)))
    found = picture(kit, kit.now + 5)["oldest"]
    assert found == {"key": early.key, "worker": "one", "seconds": 15.0}


def test_workers_are_described_with_what_they_are_about() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    kit.worker(name="well")
    paused = kit.worker(name="full")
    paused.send(m.Heartbeat({"paused": True}))
    kit.worker(name="gone", reconnect=True).leave()
    found = {worker["name"]: worker["status"] for worker in picture(kit)["workers"]}
    assert found == {"well": "running", "full": "paused", "gone": "away"}


def test_a_worker_without_a_name_of_its_own_is_called_by_the_address_that_it_has_now() -> None:
    kit = Kit()
    restarted = kit.worker("tcp://host:1000", address="tcp://host:2000")
    client = kit.client()
    client.submit("failing", "running")
    failing = restarted.runs()[0]
    restarted.send(m.Started((failing.run,)))
    found = picture(kit)
    assert [worker["title"] for worker in found["workers"]] == ["tcp://host:2000"]
    assert found["oldest"]["worker"] == "tcp://host:2000"
    restarted.fail(failing)
    (failed,) = client.take(m.KeyFailed)
    assert failed.details["worker"] == "tcp://host:2000"
    client.submit("stuck", workers=("nobody",))
    kit.tick(60)
    (told,) = client.take(m.Stuck)
    assert told.reasons[0][0] == "no worker is called 'nobody' (1 worker: 'tcp://host:2000')"


def test_a_client_can_ask_how_many_tasks_are_to_be_computed_and_what_a_call_is() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("add-1", "('mul-2', 0)")
    client.submit("last-3", needs=("add-1", "('mul-2', 0)"))
    client.send(m.Query(1, "remaining", ("last-3", "unknown")))
    worker.finish(worker.runs()[0], value=None)
    client.send(m.Query(2, "remaining", ("last-3",)), m.Query(3, "call", ("last-3",)), m.Query(4, "call", ("unknown",)))
    first, second, call, unknown = [reply.payload for reply in client.take(m.Reply)]
    assert first == {"last": 1, "add": 1, "mul": 1}
    assert sum(second.values()) == 2
    assert call["dependencies"] == ("add-1", "('mul-2', 0)")
    assert [digest for digest, _ in call["blobs"]] == [call["function"]]
    assert unknown is None
