"""Workers that lose their link, and come back with what they have, or do not."""

from __future__ import annotations

import pytest

from tests.scheduler.kit import Kit, run_ids
from trio_dask.errors import ProtocolError
from trio_dask.ids import RunId
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import ClosePeer, Notice


def test_nothing_is_computed_anew_while_a_worker_is_away_and_nothing_is_when_it_returns() -> None:
    kit = Kit()
    client = kit.client()
    worker, other = kit.worker(nthreads=2, reconnect=True), kit.worker(reconnect=True)
    client.submit("a", workers=(worker.name,))
    (done,) = worker.runs()
    worker.finish(done, value=None)
    client.submit("b", "c", workers=(worker.name,))
    unheard, running = worker.runs()  # the result of the first is on its way when the link is cut
    worker.leave()
    client.submit("d", needs=("a",))
    kit.tick(4.9)
    assert kit.states() == {"a": "memory", "b": "processing", "c": "processing", "d": "waiting"}
    assert not other.runs()

    assert worker.come_back()
    client.submit("e", workers=(worker.name,))
    assert not worker.runs(), "it is given work before it has said what it brings"
    worker.bring(("a", done.run), ("b", unheard.run), runs=(running.run,))
    assert kit.states() | {"d": "processing"} == {
        "a": "memory",
        "b": "memory",
        "c": "processing",
        "d": "processing",
        "e": "processing",
    }
    assert not worker.take(m.Free)
    assert not worker.take(m.CancelRuns)
    assert {run.key for run in (*worker.runs(), *other.runs())} == {"d", "e"}
    worker.finish(running)
    assert {"a", "b", "c"} <= set(client.ready())
    kit.assert_empty()


def test_a_worker_that_stays_away_is_given_up_when_its_grace_is_over() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    worker.finish(run)
    client.submit("b", needs=("a",))
    worker.leave()
    other = kit.worker()
    kit.tick(4.9)
    assert not other.runs()
    kit.tick(0.2)
    assert [run.key for run in other.runs()] == ["a", "b"]
    assert not worker.come_back(), "what was given up must not be merged again"
    kit.assert_empty()


def test_what_is_not_wanted_any_more_is_dropped_at_the_return() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(nthreads=2, reconnect=True)
    client.submit("held", "running")
    held, running = worker.runs()
    worker.finish(held)
    worker.leave()
    client.send(m.Release(("held", "running")))
    assert worker.come_back()
    worker.bring(("held", held.run), runs=(running.run,))
    assert worker.take(m.Free) == [m.Free(("held",))]
    assert worker.take(m.CancelRuns) == [m.CancelRuns((running.run,))]
    kit.assert_empty()


def test_a_result_of_an_earlier_task_of_the_same_key_is_not_taken_for_the_new_one() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("x")
    (old,) = worker.runs()
    worker.leave()
    client.send(m.Release(("x",)))
    client.submit("x", tokens=(b"other",))
    assert worker.come_back()
    worker.bring(("x", old.run))
    assert worker.take(m.Free) == [m.Free(("x",))]
    (new,) = worker.runs()
    assert new.run != old.run
    assert not client.ready()
    kit.assert_empty()


def test_a_run_that_never_arrived_is_placed_anew() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (lost,) = worker.runs()
    worker.leave()
    assert worker.come_back()
    worker.bring()
    (again,) = worker.runs()
    assert (again.key, again.run != lost.run) == ("a", True)
    assert again.extra.get("attempt", 1) == 1, "a lost link is nobody's fault"
    assert worker.take(m.Blob) == [m.Blob(again.function, 3, b"fun")], "what it was sent before may not have come"
    kit.assert_empty()


def test_a_run_that_waits_there_for_a_lost_one_is_handed_back_with_it() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    client.submit("b", needs=("a",))
    first, second = worker.runs()
    worker.leave()
    assert worker.come_back()
    worker.bring(runs=(second.run,))
    assert second.run in worker.take(m.CancelRuns)[0].runs
    assert [run.key for run in worker.runs()] == ["a", "b"]
    assert first.run not in run_ids(worker.runs())
    kit.assert_empty()


def test_a_session_that_seems_alive_gives_way_to_its_successor() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    former = worker.peer
    kit.peers.pop(former)
    assert worker.come_back()
    assert ClosePeer(former, "this worker has begun another session") in kit.core.requests
    worker.bring(("a", run.run))
    assert client.ready() == ["a"]
    kit.assert_empty()


def test_only_a_worker_that_returns_has_an_inventory() -> None:
    kit = Kit()
    worker = kit.worker(reconnect=True)
    with pytest.raises(ProtocolError):
        worker.bring(("a", 1))


def test_a_newcomer_with_the_name_of_one_who_is_away_takes_its_place() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker("alice", reconnect=True)
    client.submit("a")
    worker.finish(worker.runs()[0])
    worker.leave()
    successor = kit.worker("alice", reconnect=True)
    assert [run.key for run in successor.runs()] == ["a"]
    assert not worker.come_back()
    kit.assert_empty()


def test_a_client_that_cannot_reach_a_worker_that_is_away_hears_when_it_is_back() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    worker.finish(run, value=None)
    worker.leave()
    client.take(m.KeyReady)
    client.send(m.FetchFailed("a", worker.address))
    assert not client.inbox
    assert worker.come_back()
    worker.bring(("a", run.run))
    (ready,) = client.take(m.KeyReady)
    assert ready.holders == (worker.address,)
    kit.assert_empty()


def test_a_peer_that_cannot_fetch_from_a_worker_that_is_away_does_not_make_its_result_lost() -> None:
    kit = Kit()
    client = kit.client()
    worker, other = kit.worker(reconnect=True), kit.worker()
    client.submit("a", workers=(worker.name,))
    (run,) = worker.runs()
    worker.finish(run, value=None)
    client.submit("b", needs=("a",), workers=(other.name,))
    (needy,) = other.runs()
    worker.leave()
    other.send(m.InputMissing(needy.run, "a", worker.address))
    assert kit.states() == {"a": "memory", "b": "waiting"}
    assert worker.come_back()
    worker.bring(("a", run.run))
    assert [run.key for run in other.runs()] == ["b"]
    kit.assert_empty()


def test_who_gives_no_sign_of_life_is_lost_and_his_nanny_can_give_it() -> None:
    kit = Kit(worker_ttl_s=10.0, lone_worker_ttl_s=60.0)
    client = kit.client()
    worker = kit.worker("alice", process="p1", reconnect=True)
    nanny = kit.nanny("p1")
    client.submit("a")
    worker.runs()
    for _ in range(60):  # a task holds the interpreter for two minutes
        kit.tick(2.0)
        nanny.send(m.WorkerAlive("p1"))
    assert kit.states() == {"a": "processing"}
    kit.peers.pop(worker.peer)
    for _ in range(9):
        kit.tick(1.0)
    assert kit.states() == {"a": "processing"}
    kit.tick(1.0)
    kit.tick(1.0)
    assert kit.states() == {"a": "no-worker"}
    assert any(isinstance(request, ClosePeer) for request in kit.core.requests)
    assert not worker.come_back()
    kit.assert_empty()


def test_a_scheduler_that_was_stopped_itself_does_not_blame_its_workers() -> None:
    kit = Kit(worker_ttl_s=10.0, lone_worker_ttl_s=60.0)
    client = kit.client()
    worker = kit.worker(process="p1")
    client.submit("a")
    assert worker.runs()
    kit.tick(500.0)
    assert kit.states() == {"a": "processing"}
    kit.assert_empty()


def test_an_obituary_ends_the_grace_and_blames_what_ran_and_nothing_else() -> None:
    kit = Kit(allowed_failures=0)
    client = kit.client()
    worker = kit.worker(process="p1", nthreads=2, reconnect=True)
    nanny = kit.nanny("p1")
    client.submit("guilty", "innocent")
    guilty, _ = worker.runs()
    worker.leave()
    nanny.send(m.WorkerExited("p1", False, "memory: 243 MiB of 256 MiB", True, (guilty.run,), {}))
    (failure,) = client.take(m.KeyFailed)
    assert failure.key == "guilty"
    assert "memory: 243 MiB of 256 MiB" in failure.details["deaths"][0]
    assert kit.states()["innocent"] == "no-worker"
    kit.assert_empty()


def test_results_that_end_worker_after_worker_by_their_size_are_given_up_and_the_small_ones_are_not() -> None:
    kit = Kit(allowed_failures=2)
    client = kit.client()
    client.submit("large", "small")
    for number in range(3):
        assert client.failed() == []
        worker, nanny = kit.worker(process=f"p{number}", nthreads=2), kit.nanny(f"p{number}")
        sizes = {"large": 900 * 2**20, "small": 1000}
        for run in worker.runs():
            worker.finish(run, nbytes=sizes[run.key], value=None)
        kit.peers.pop(worker.peer)
        nanny.send(m.WorkerExited(f"p{number}", False, "memory: 993 MiB of 1024 MiB", True, (), {"of_memory": True}))
    (failure,) = client.take(m.KeyFailed)
    assert (failure.key, failure.kind) == ("large", "killed")
    assert "memory: 993 MiB of 1024 MiB, with 900 MiB of this result" in failure.details["deaths"][2]
    assert kit.states()["small"] == "no-worker"
    kit.assert_empty()


@pytest.mark.parametrize(("of_memory", "runs", "failed"), [(False, False, []), (True, True, ["runs"])])
def test_what_a_worker_held_is_not_blamed_where_a_task_ran_or_memory_was_not_the_cause(
    of_memory: bool, runs: bool, failed: list[str]
) -> None:
    kit = Kit(allowed_failures=0)
    client = kit.client()
    worker, nanny = kit.worker(process="p"), kit.nanny("p")
    client.submit("held", "runs")
    held, running = worker.runs()
    worker.finish(held, nbytes=10**9, value=None)
    kit.peers.pop(worker.peer)
    details = {"of_memory": of_memory}
    nanny.send(m.WorkerExited("p", False, "it died", True, (running.run,) if runs else (), details))
    assert client.failed() == failed
    kit.assert_empty()


def test_a_planned_end_is_nobodys_fault() -> None:
    kit = Kit(allowed_failures=0)
    client = kit.client()
    worker = kit.worker(process="p1", reconnect=True)
    nanny = kit.nanny("p1")
    client.submit("a")
    (run,) = worker.runs()
    worker.send(m.Started((run.run,)))
    kit.peers.pop(worker.peer)  # the obituary is faster than the end of the session
    nanny.send(m.WorkerExited("p1", True, "restarted", False, (), {}))
    assert client.failed() == []
    assert kit.states() == {"a": "no-worker"}
    kit.assert_empty()


def test_restarting_goes_through_the_nanny_where_there_is_one() -> None:
    kit = Kit()
    client = kit.client()
    looked_after, alone = kit.worker("alice", process="p1"), kit.worker("bob")
    nanny = kit.nanny("p1")
    client.send(m.RestartWorkers(7, ("alice", "bob")))
    assert [leave.restart for leave in nanny.take(m.Leave)] == [True]
    assert not looked_after.take(m.Leave)
    assert [leave.restart for leave in alone.take(m.Leave)] == [True]
    assert not client.take(m.Reply)
    for worker in (looked_after, alone):
        worker.leave(expected=True)
        kit.worker(worker.name)
    assert client.take(m.Reply) == [m.Reply(7, {"missing": ()})]
    client.send(m.RestartWorkers(8, ("nobody",)))
    assert "nobody" in client.take(m.Reply)[0].payload["refused"]


def test_a_worker_lost_again_before_it_has_told_what_it_brings_is_away_again() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    worker.leave()
    assert worker.come_back()
    worker.leave()
    assert kit.states() == {"a": "processing"}
    assert worker.come_back()
    worker.bring(("a", RunId(run.run)))
    assert client.ready() == ["a"]
    kit.assert_empty()


def test_a_worker_that_never_got_its_welcome_back_may_call_once_more() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker(reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    worker.leave()
    known = worker.info
    assert worker.come_back()
    worker.leave()
    worker.info = known
    assert worker.come_back()
    worker.bring(("a", run.run))
    assert client.ready() == ["a"]
    worker.leave()
    worker.info = known
    assert not worker.come_back(), "it knew better when it had sent its inventory"
    kit.assert_empty()


def test_a_copy_whose_report_may_be_lost_is_made_anew() -> None:
    kit = Kit()
    client = kit.client()
    leaver, copier = kit.worker(reconnect=True), kit.worker(reconnect=True)
    client.submit("a", workers=(leaver.name,))
    leaver.finish(leaver.runs()[0], value=None)
    leaver.send(m.Drain("lifetime"))
    assert copier.take(m.Acquire)
    copier.leave()
    assert copier.come_back()
    copier.bring(("a", -1))
    kit.tick(1.0)
    assert copier.take(m.Free)
    assert copier.take(m.Acquire)
    assert not leaver.take(m.Leave)
    kit.assert_empty()


def test_an_idle_scheduler_ends_after_its_time_and_a_busy_one_does_not() -> None:
    kit = Kit(idle_timeout_s=60.0)
    kit.core.begin(0.0)
    client = kit.client()
    worker = kit.worker()
    client.submit("a")
    for _ in range(100):
        kit.tick(3.0)
    assert not kit.core.requests
    worker.finish(worker.runs()[0])
    for _ in range(19):
        kit.tick(3.0)
    assert not kit.core.requests
    kit.tick(3.0)
    kit.tick(3.0)
    assert [type(request).__name__ for request in kit.core.requests] == ["Stop"]


def test_who_was_leaving_returns_though_another_has_taken_his_name() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker("alice", reconnect=True)
    client.submit("a")
    (run,) = worker.runs()
    worker.send(m.Started((run.run,)), m.Drain("lifetime"))
    successor = kit.worker("alice", reconnect=True)
    worker.leave()
    assert worker.come_back()
    assert kit.core.state.names["alice"].peer == successor.peer
    worker.bring(("a", run.run))
    assert client.ready() == ["a"]
    assert successor.runs() == []
    kit.assert_empty()


def test_a_worker_that_returns_is_listed_once_at_demands_that_were_made_meanwhile() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker("alice", reconnect=True)
    worker.leave()
    assert worker.come_back()
    client.submit("x", workers=("alice",))
    worker.bring()
    assert [run.key for run in worker.runs()] == ["x"]
    assert len(kit.core.state.names["alice"].queues) == 1


def notices(kit: Kit) -> list[tuple[str, bool]]:
    taken = [(request.text, request.serious) for request in kit.core.requests if isinstance(request, Notice)]
    kit.core.requests.clear()
    return taken


def test_the_death_of_a_worker_is_one_serious_notice_with_its_cause() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    worker = kit.worker("bob", process="p1", reconnect=True)
    nanny = kit.nanny("p1")
    worker.leave(reason="it closed the connection")
    assert notices(kit) == []
    kit.tick(0.5)
    nanny.send(m.WorkerExited("p1", False, "killed by SIGSEGV in solve", True, (), {}))
    assert notices(kit) == [("Worker bob is lost: killed by SIGSEGV in solve", True)]
    kit.tick(10.0)
    assert notices(kit) == []


def test_a_link_that_stays_lost_is_told_before_its_worker_is_given_up() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    worker = kit.worker("bob", reconnect=True)
    worker.leave(reason="it closed the connection")
    for _ in range(8):
        kit.tick(0.25)
    assert notices(kit) == [
        ("Lost the connection with worker bob: it closed the connection; keeping its results for 5 s", False)
    ]
    kit.tick(5.0)
    assert notices(kit) == [("Worker bob is lost: it closed the connection", True)]


def test_a_planned_end_is_nothing_serious() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    worker = kit.worker("bob", process="p1", reconnect=True)
    nanny = kit.nanny("p1")
    worker.leave()
    nanny.send(m.WorkerExited("p1", True, "restarted", True, (), {}))
    kit.tick(10.0)
    assert notices(kit) == []
