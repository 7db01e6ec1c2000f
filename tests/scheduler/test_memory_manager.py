"""The active memory manager: which replicas it drops, and which it keeps."""

from __future__ import annotations

import pytest

from tests.scheduler.kit import Client, Kit, Worker
from tests.scheduler.test_replication import copy, freed, held_by_one, replicate, replies
from trio_dask.errors import ProtocolError
from trio_dask.protocol import messages as m


def manage(client: Client, action: str) -> object:
    client.send(m.ManageMemory(9, action))
    (reply,) = replies(client)
    return reply


def read_by(client: Client, *readers: Worker) -> None:
    """Tasks on these workers take the result `a`, which leaves a replica there."""
    for reader in readers:
        client.submit(f"of-{reader.name}", needs=("a",), workers=(reader.name,))
        (run,) = reader.runs()
        reader.send(m.Replicas(("a",)))
        reader.finish(run)


def holders(kit: Kit, *workers: Worker) -> list[bool]:
    return [any(task.key == "a" for task in kit.state.workers[worker.peer].holds) for worker in workers]


def test_it_is_off_until_it_is_switched_on() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    read_by(client, other)
    kit.tick(100.0)
    assert manage(client, "running") is False
    assert holders(kit, worker, other) == [True, True]
    assert manage(client, "start") is True
    kit.tick(2.1)
    assert sum(holders(kit, worker, other)) == 1
    assert len(freed(worker) + freed(other)) == 1
    assert manage(client, "stop") is False


def test_what_is_copied_while_it_is_on_is_dropped_after_the_interval_and_nothing_wakes_it_before() -> None:
    kit = Kit(memory_manager_starts=True, memory_manager_interval_s=5.0)
    kit.core.begin(0.0)
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    assert kit.core.next_deadline() == float("inf")
    read_by(client, other)
    kit.tick(4.9)
    assert holders(kit, worker, other) == [True, True]
    kit.tick(0.2)
    assert sum(holders(kit, worker, other)) == 1
    kit.tick(6.0)
    assert kit.core.next_deadline() == float("inf")
    kit.assert_empty()


def test_the_worker_with_the_most_bytes_drops_it() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    read_by(client, other)
    client.submit("large", workers=(other.name,))
    other.finish(other.runs()[0], nbytes=10**6, value=None)
    manage(client, "run_once")
    assert holders(kit, worker, other) == [True, False]


def test_what_replicate_asked_for_stays() -> None:
    kit = Kit()
    client = kit.client()
    workers = [held_by_one(kit, client), *(kit.worker() for _ in range(3))]
    replicate(client, 2)
    for other in workers[1:]:
        copy(other)
    replies(client)
    read_by(client, *workers[2:])
    assert holders(kit, *workers) == [True] * 4
    manage(client, "run_once")
    assert sum(holders(kit, *workers)) == 2
    client.send(m.Replicate(1, ("a",), 1, (), 2))
    kit.tick(1.0)
    assert sum(holders(kit, *workers)) == 1


def test_a_replica_that_a_task_needs_where_it_is_stays() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    others = [kit.worker(), kit.worker()]
    read_by(client, *others)
    client.submit("b", needs=("a",), workers=(others[1].name,))
    (run,) = others[1].runs()
    manage(client, "run_once")
    assert holders(kit, *others)[1], "a task is about to read it"
    assert sum(holders(kit, worker, *others)) == 1
    others[1].finish(run)
    kit.assert_empty()


def test_the_last_replica_and_that_of_a_worker_that_leaves_do_not_count() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    other = kit.worker()
    read_by(client, other)
    worker.send(m.Drain("lifetime"))
    manage(client, "run_once")
    manage(client, "run_once")
    assert holders(kit, worker, other)[1]
    assert kit.states()["a"] == "memory"


def test_it_does_nothing_else() -> None:
    kit = Kit()
    client = kit.client()
    with pytest.raises(ProtocolError, match="cannot 'dance'"):
        client.send(m.ManageMemory(1, "dance"))


def test_as_many_replicas_stay_as_there_are_tasks_that_wait_for_the_result() -> None:
    kit = Kit()
    client = kit.client()
    worker = held_by_one(kit, client)
    others = [kit.worker(), kit.worker(), kit.worker()]
    read_by(client, *others)
    client.submit("not-yet", workers=("nobody",))
    for name in ("first", "second"):
        client.submit(name, needs=("a", "not-yet"))
    manage(client, "run_once")
    assert sum(holders(kit, worker, *others)) == 2
