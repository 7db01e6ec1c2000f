"""Results that move from full workers to empty ones, and that are never lost on the way."""

from __future__ import annotations

import pytest

from tests.scheduler.kit import Client, Kit, Worker
from tests.scheduler.test_replication import copy, freed, replies
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core.rebalancing import plan


def hold(client: Client, worker: Worker, **sizes: int) -> None:
    """Have the worker hold results of these sizes."""
    client.submit(*sizes, workers=(worker.name,))
    while runs := worker.runs():
        for run in runs:
            worker.finish(run, nbytes=sizes[run.key], value=None)
    client.inbox.clear()


def rebalance(client: Client, *keys: str, workers: tuple[str, ...] = ()) -> None:
    client.send(m.Rebalance(1, keys, workers))


def two(kit: Kit, client: Client) -> tuple[Worker, Worker]:
    """A worker with the results `a` and `b`, and one with nothing."""
    full, empty = kit.worker(), kit.worker()
    hold(client, full, a=100, b=60)
    return full, empty


def test_moves_make_loads_as_equal_as_the_sizes_allow() -> None:
    kit = Kit()
    client = kit.client()
    workers = [kit.worker(), kit.worker(), kit.worker()]
    hold(client, workers[0], large=60, middle=30, small=10)
    hold(client, workers[1], other=30)
    moves = plan(kit.state, list(kit.state.workers.values()))
    assert [(task.key, source.info.name, target.info.name) for task, source, target in moves] == [
        ("middle", workers[0].name, workers[2].name),
        ("small", workers[0].name, workers[1].name),
    ]
    assert not plan(kit.state, list(kit.state.workers.values()), [kit.state.tasks["other"]])


def test_the_original_goes_when_the_copy_is_there_and_not_before() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    rebalance(client)
    kit.tick(1.0)
    assert not freed(full)
    assert not replies(client)
    copy(empty)
    kit.tick(1.0)
    assert freed(full) == ["b"]
    assert replies(client) == [{"missing": ()}]
    assert kit.states() == {"a": "memory", "b": "memory"}


def test_a_worker_that_has_a_copy_or_is_paused_or_leaves_gets_nothing() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    client.send(m.Replicate(2, ("a", "b"), 0, (), 2))
    copy(empty)
    paused, leaving = kit.worker(), kit.worker()
    paused.send(m.Capacity(0))
    leaving.send(m.Drain("lifetime"))
    rebalance(client)
    assert not any(worker.take(m.Acquire) for worker in (full, empty, paused, leaving))
    assert replies(client) == [{"missing": ()}] * 2


def test_an_original_stays_while_runs_that_have_not_started_need_it_there() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    client.submit("c", "d", needs=("b",), workers=(full.name,))
    first, second = full.runs()
    rebalance(client, "b")
    copy(empty)
    assert replies(client) == [{"missing": ()}], "the client need not wait for the runs"
    full.send(m.Started((first.run,)))
    kit.tick(1.0)
    assert not freed(full), "one has not started"
    full.send(m.Started((second.run,)))
    kit.tick(1.0)
    assert freed(full) == ["b"]
    full.finish(first)
    full.finish(second)
    kit.assert_empty()


@pytest.mark.parametrize("when", ["before the copy", "after the copy, while a run needs the original"])
def test_the_original_stays_if_the_target_dies(when: str) -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    if when != "before the copy":
        client.submit("c", needs=("b",), workers=(full.name,))
    rebalance(client, "b")
    if when != "before the copy":
        copy(empty)
    empty.leave()
    for run in full.runs():
        full.finish(run)
    kit.tick(1.0)
    assert replies(client) == [{"missing": ()}], "a worker that is lost takes no part"
    assert not freed(full)
    assert kit.states()["b"] == "memory"
    kit.assert_empty()


def test_the_copy_is_what_is_left_if_the_source_dies_after_it() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    rebalance(client, "b")
    (order,) = empty.take(m.Acquire)
    empty.send(m.Replicas(("b",), order.order))
    full.leave()
    kit.tick(1.0)
    assert not freed(empty)
    assert kit.states()["b"] == "memory"
    assert replies(client) == [{"missing": ()}]


def test_a_copy_that_cannot_be_made_is_tried_again_and_then_reported() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    rebalance(client, "b")
    while orders := empty.take(m.Acquire):
        empty.send(m.NotAcquired(("b",), orders[0].order))
    assert replies(client) == [{"missing": ("b",)}]
    assert not freed(full)


def test_a_result_that_is_released_in_the_middle_is_no_failure() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = two(kit, client)
    rebalance(client)
    client.send(m.Release(("b",)))
    kit.tick(1.0)
    assert replies(client) == [{"missing": ()}]
    copy(empty)
    client.send(m.Release(("a",)))
    kit.tick(1.0)
    assert sorted(freed(full)) == ["a", "b"]
    kit.assert_empty()


def test_a_worker_that_is_away_when_its_original_may_go_drops_it_when_it_is_back() -> None:
    kit = Kit()
    client = kit.client()
    full, empty = kit.worker(reconnect=True), kit.worker()
    hold(client, full, a=100, b=60)
    run_of = {key: run for run, key in ((1, "a"), (2, "b"))}
    rebalance(client, "b")
    (order,) = empty.take(m.Acquire)
    full.leave()
    empty.send(m.Replicas(("b",), order.order))
    assert full.come_back()
    full.bring(*run_of.items())
    kit.tick(1.0)
    assert freed(full) == ["b"]
    assert kit.states() == {"a": "memory", "b": "memory"}


def test_an_unknown_worker_is_refused() -> None:
    kit = Kit()
    client = kit.client()
    rebalance(client, workers=("nowhere",))
    assert replies(client) == [{"refused": "there is no worker 'nowhere'"}]
