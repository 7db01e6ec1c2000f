"""Workers that leave in good order, of their own accord or because a client wants it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scheduler.kit import Client, Kit, run_ids
from trio_dask.protocol import messages as m


def retired(client: Client) -> Any:
    (reply,) = client.take(m.Reply)
    return reply.payload


def test_a_worker_that_drains_leaves_once_its_run_is_over_and_its_results_are_elsewhere() -> None:
    kit = Kit()
    client = kit.client()
    worker, other = kit.worker(), kit.worker()
    client.submit("busy", workers=(other.name,))  # else it would take what waits for the first
    client.submit("held", "running", "queued", workers=(worker.name,), allow_other_workers=True)
    held, running = worker.runs()
    worker.finish(held, value=None)
    (queued,) = worker.runs()
    worker.send(m.RunsReturned((queued.run,)), m.Drain("received SIGTERM"))
    assert not worker.runs()
    other.finish(other.runs()[0], value=None)
    (acquire,) = other.take(m.Acquire)
    assert acquire.keys == (("held", (worker.address,)),)
    other.send(m.Replicas(("held",)))
    kit.tick(1.0)
    assert not worker.take(m.Leave), "it is sent away while a task runs"
    worker.finish(running, value=None)
    kit.tick(1.0)
    (second,) = other.take(m.Acquire)
    assert second.keys == (("running", (worker.address,)),)
    assert not worker.take(m.Leave), "it is sent away with the only copy of a result"
    other.send(m.Replicas(("running",)))
    kit.tick(1.0)
    assert worker.take(m.Leave) == [m.Leave("received SIGTERM", False)]
    worker.leave(reason="received SIGTERM", expected=True)
    assert kit.states() == {"busy": "memory", "held": "memory", "running": "memory", "queued": "processing"}
    kit.assert_empty()


def test_a_copy_that_fails_is_tried_elsewhere_and_given_up_in_the_end() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    others = [kit.worker(), kit.worker()]
    worker.send(m.Drain("lifetime"))
    tried = 0
    for _ in range(10):
        for other in others:
            if other.take(m.Acquire):
                tried += 1
                other.send(m.NotAcquired(("a",)))
        kit.tick(1.0)
    assert tried == 3
    assert worker.take(m.Leave)
    worker.leave(expected=True)
    assert sorted(run.key for other in others for run in other.runs()) == ["a"]
    kit.assert_empty()


def test_a_copy_is_tried_again_when_its_copier_dies() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    first = kit.worker()
    worker.send(m.Drain("lifetime"))
    assert first.take(m.Acquire)
    second = kit.worker()
    first.leave()
    kit.tick(1.0)
    assert second.take(m.Acquire)
    kit.assert_empty()


def test_what_is_not_needed_keeps_nobody() -> None:
    kit = Kit()
    client = kit.client()
    worker, other = kit.worker(), kit.worker()
    client.submit("a", workers=(worker.name,))
    worker.finish(worker.runs()[0], value=None)
    worker.send(m.Drain("lifetime"))
    assert other.take(m.Acquire)
    client.send(m.Release(("a",)))
    kit.tick(1.0)
    assert worker.take(m.Leave)
    assert other.take(m.Free) == [m.Free(("a",))]
    kit.assert_empty()


def test_the_last_worker_may_drain_although_no_other_can_take_its_results() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    worker.send(m.Drain("received SIGTERM"))
    kit.tick(1.0)
    assert worker.take(m.Leave)
    worker.leave(expected=True)
    assert kit.states() == {"a": "no-worker"}
    kit.assert_empty()


def test_a_worker_at_the_end_of_its_lifetime_waits_for_another_to_take_its_results() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    worker.send(m.Drain("lifetime"))
    kit.tick(1.0)
    assert not worker.take(m.Leave)
    other = kit.worker()
    kit.tick(1.0)
    assert other.take(m.Acquire)
    other.send(m.Replicas(("a",)))
    kit.tick(1.0)
    assert worker.take(m.Leave)
    kit.assert_empty()


def test_a_retiring_worker_gives_up_its_name_and_hands_its_results_to_its_successor() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker("alice")
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    worker.send(m.Drain("max-tasks"))
    successor = kit.worker("alice")
    kit.tick(1.0)
    assert successor.take(m.Acquire)
    successor.send(m.Replicas(("a",)))
    kit.tick(1.0)
    assert worker.take(m.Leave)
    worker.leave(expected=True)
    assert kit.states() == {"a": "memory"}
    client.send(m.Retire(1, ("alice",), 0))
    assert "only copies" in retired(client)["refused"], "the name is his successor's"
    kit.assert_empty()


def test_workers_are_retired_by_name_address_or_number() -> None:
    kit = Kit()
    client = kit.client()
    by_name, by_address, third = kit.worker("alice"), kit.worker(), kit.worker()
    for request, (workers, number, chosen) in enumerate(
        ((("alice",), 0, by_name), ((by_address.address,), 0, by_address), ((), 1, third))
    ):
        client.send(m.Retire(request, workers, number))
        kit.tick(1.0)
        assert chosen.take(m.Leave)
        assert not client.take(m.Reply)
        chosen.leave(expected=True)
        assert retired(client) == {"retired": (chosen.name,)}


def test_a_retired_worker_hands_back_what_it_has_not_started_and_nothing_runs_twice() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a", "b", "c")
    runs = worker.runs()
    worker.send(m.Started((runs[0].run,)))
    other = kit.worker()
    client.send(m.Retire(1, (worker.name,), 0))
    taken_back = {run for retract in worker.take(m.ReturnRuns) for run in retract.runs}
    assert runs[0].run not in taken_back
    assert taken_back == set(run_ids(runs[1:]))
    worker.send(m.RunsReturned(tuple(taken_back)))
    worker.finish(runs[0], value=None)
    kit.tick(1.0)
    other.take(m.Acquire)
    other.send(m.Replicas(("a",)))
    other.finish_all()
    kit.tick(1.0)
    assert worker.take(m.Leave)
    worker.leave(expected=True)
    assert kit.states() == {"a": "memory", "b": "memory", "c": "memory"}
    kit.assert_empty()


def test_no_worker_is_retired_where_data_have_nowhere_to_go() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a", "b")
    worker.finish_all()
    client.send(m.Retire(1, (worker.name,), 0))
    answer = retired(client)
    assert answer["retired"] == ()
    assert "only copies of 2 results" in answer["refused"]
    client.submit("c")
    assert [run.key for run in worker.runs()] == ["c"]
    client.send(m.Release(("a", "b", "c")))
    client.send(m.Retire(2, (worker.name,), 0))
    kit.tick(1.0)
    assert worker.take(m.Leave), "without data there is nothing to lose"
    worker.leave(expected=True)
    assert retired(client) == {"retired": (worker.name,)}


def test_a_retirement_is_called_off_when_the_last_other_worker_dies() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    worker.finish(worker.runs()[0], value=None)
    other = kit.worker()
    client.send(m.Retire(1, (worker.name,), 0))
    assert other.take(m.Acquire)
    other.leave()
    kit.tick(1.0)
    assert "only copies of 1 results" in retired(client)["refused"]
    client.submit("b")
    assert [run.key for run in worker.runs()] == ["b"]
    kit.assert_empty()


def test_a_worker_whose_retirement_is_called_off_takes_over_from_those_that_go() -> None:
    kit = Kit()
    client = kit.client()
    going, retiring = kit.worker("going"), kit.worker("retiring")
    for key, worker in (("a", going), ("b", retiring)):
        client.submit(key, workers=(worker.name,))
        worker.finish(worker.runs()[0], value=None)
    third = kit.worker()
    going.send(m.Drain("asked to stop"))
    client.send(m.Retire(1, ("retiring",), 0))
    third.leave()
    kit.tick(1.0)
    assert "only copies of 1 results" in retired(client)["refused"]
    assert not going.take(m.Leave), "it is sent away with the only copy of a result"
    assert [order.keys for order in retiring.take(m.Acquire)] == [(("a", (going.address,)),)]
    retiring.send(m.Replicas(("a",)))
    kit.tick(1.0)
    assert going.take(m.Leave)


def test_a_retirement_is_called_off_for_all_workers_that_it_named() -> None:
    kit = Kit()
    client = kit.client()
    workers = [kit.worker("first"), kit.worker("second")]
    for worker in workers:
        client.submit(f"on {worker.name}", workers=(worker.name,))
        worker.finish(worker.runs()[0], value=None)
    third = kit.worker()
    client.send(m.Retire(1, ("first", "second"), 0))
    third.leave()
    kit.tick(1.0)
    assert retired(client)["retired"] == ()
    assert not any(worker.take(m.Leave) for worker in workers)


def test_unknown_workers_are_not_retired() -> None:
    kit = Kit()
    client = kit.client()
    kit.worker("alice")
    client.send(m.Retire(1, ("alice", "bob"), 0))
    assert "'bob'" in retired(client)["refused"]


@pytest.mark.parametrize("drains_first", [True, False])
def test_a_worker_that_drains_by_itself_is_not_kept_for_a_client_that_retired_it(drains_first: bool) -> None:
    """It would hand back whatever it was given, and be given it again, for ever."""
    kit = Kit()
    worker, other, client = kit.worker("worker"), kit.worker("other"), kit.client()
    client.submit("x", "y", workers=("worker",))
    first, second = worker.runs()
    worker.send(m.Started((first.run,)))
    retire, drain = m.Retire(1, ("worker",), 0), m.Drain("asked to stop")
    if drains_first:
        worker.send(drain)
        client.send(retire)
    else:
        client.send(retire)
        worker.send(drain)
    worker.send(m.RunsReturned((second.run,)))
    worker.finish(first)
    other.leave()
    kit.tick(1.0)
    assert worker.runs() == []
    assert worker.take(m.Leave) == [m.Leave("asked to stop", False)]
