"""Workers and clients come, go and die."""

from __future__ import annotations

from tests.scheduler.kit import Kit, run_ids, worker_hello
from trio_dask.ids import Incarnation
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Refusal
from trio_dask.scheduler.core import Stop, WorkerInfo


def test_a_name_that_is_taken_is_refused_in_one_sentence() -> None:
    kit = Kit()
    kit.worker("alice")
    info = WorkerInfo("alice", "tcp://elsewhere:1", "elsewhere", 1, 0, {}, Incarnation("x"), 1)
    answer = kit.core.greet(worker_hello(info), 0.0)
    assert isinstance(answer, Refusal)
    assert "'alice' is taken" in answer.reason


def test_a_task_fails_with_the_fourth_worker_that_dies_while_it_runs_and_says_where() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("bad")
    for number in range(4):
        worker = kit.worker(f"w{number}")
        (run,) = worker.runs()
        if run.extra.get("announce"):
            worker.send(m.Started((run.run,)))
        assert client.failed() == []
        worker.leave(reason="killed by signal 11")
    (failure,) = client.take(m.KeyFailed)
    assert failure.kind == "killed"
    deaths = failure.details["deaths"]
    assert len(deaths) == 4
    assert "w2" in deaths[2]
    assert "signal 11" in deaths[2]
    kit.assert_empty()


def test_a_worker_that_leaves_as_announced_is_nobodys_fault() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("fine")
    for number in range(5):
        worker = kit.worker(f"w{number}")
        worker.leave(reason="drained", expected=True)
    assert client.failed() == []


def test_only_what_ran_is_blamed() -> None:
    kit = Kit()
    client = kit.client()
    client.submit(*(f"k{number}" for number in range(10)))
    for number in range(5):
        worker = kit.worker(f"w{number}")
        runs = worker.runs()
        killer = next(run for run in runs if run.key == "k0") if number < 4 else None
        if killer is not None:
            worker.send(m.Started((killer.run,)))
        worker.leave(reason="segmentation fault")
    assert client.failed() == ["k0"]


def test_tasks_that_may_have_been_running_are_announced_the_next_time() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b")
    worker = kit.worker("w0")
    assert [run.extra.get("announce") for run in worker.runs()] == [None, None]
    worker.leave()
    worker = kit.worker("w1")
    assert [run.extra.get("announce") for run in worker.runs()] == [True, True]


def test_outcomes_of_a_dead_worker_are_unknown_and_its_work_goes_elsewhere() -> None:
    kit = Kit()
    one, client = kit.worker(), kit.client()
    client.submit("a", "b")
    one.leave()
    two = kit.worker()
    assert two.finish_all() == 2
    assert sorted(client.ready()) == ["a", "b"]


def test_waiting_for_workers_is_answered_when_they_are_there() -> None:
    kit = Kit()
    client = kit.client()
    client.send(m.Query(7, "wait_for_workers", ("2",)))
    kit.worker()
    assert client.take(m.Reply) == []
    kit.worker()
    assert client.take(m.Reply) == [m.Reply(7, 2)]
    client.send(m.Query(8, "wait_for_workers", ("1",)))
    assert client.take(m.Reply) == [m.Reply(8, 2)]


def test_a_restart_cancels_everything_and_is_done_when_the_workers_are_back() -> None:
    kit = Kit()
    worker, client, other = kit.worker("w"), kit.client("one"), kit.client("two")
    client.submit("x")
    other.submit("y")
    client.send(m.Restart(3))
    assert [dropped.key for dropped in other.take(m.Dropped)] == ["y"]
    assert [leave.restart for leave in worker.take(m.Leave)] == [True]
    assert client.take(m.Reply) == []
    worker.leave(expected=True)
    kit.worker("w")
    kit.tick(0.0)
    assert client.take(m.Reply) == [m.Reply(3, {"missing": ()})]
    assert kit.states() == {}


def test_a_worker_without_a_nanny_may_come_back_under_another_name() -> None:
    kit = Kit()
    with_nanny, alone, client = kit.worker("w", process="p1"), kit.worker("alone"), kit.client()
    nanny = kit.nanny("p1")
    client.send(m.Restart(3))
    for worker in (with_nanny, alone):
        worker.leave(expected=True)
    kit.worker("from-the-batch-system")
    kit.tick(0.0)
    assert client.take(m.Reply) == []
    kit.worker("one-too-many")
    kit.tick(0.0)
    assert client.take(m.Reply) == [], "it took the place of one that its nanny starts again"
    kit.worker("w", process="p2")
    kit.tick(0.0)
    assert client.take(m.Reply) == [m.Reply(3, {"missing": ()})]
    assert nanny.take(m.Leave)


def test_a_restart_that_a_worker_does_not_survive_is_answered_after_its_limit() -> None:
    kit = Kit(restart_timeout_s=5.0)
    worker, client = kit.worker("w"), kit.client()
    client.send(m.Restart(3))
    worker.leave(expected=True)
    assert kit.core.next_deadline() == 5.0
    kit.tick(5.0)
    assert client.take(m.Reply) == [m.Reply(3, {"missing": ("w",)})]


def test_shutdown_tells_the_workers_and_stops_the_scheduler() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client("boss")
    client.send(m.Shutdown())
    assert [leave.restart for leave in worker.take(m.Leave)] == [False]
    (request,) = kit.core.requests
    assert isinstance(request, Stop)
    assert "boss" in request.reason


def test_questions_are_answered() -> None:
    kit = Kit()
    worker, client = kit.worker("w", nthreads=3), kit.client("me")
    client.submit("x", "y")
    run, _ = sorted(worker.runs(), key=lambda run: run.key)
    worker.finish(run, nbytes=64)
    answers = {}
    for number, what in enumerate(("who_has", "has_what", "processing", "nbytes", "nthreads")):
        client.send(m.Query(number, what, ()))
        (reply,) = client.take(m.Reply)
        assert reply.request == number
        answers[what] = reply.payload
    assert answers == {
        "who_has": {"x": (worker.address,)},
        "has_what": {worker.address: ("x",)},
        "processing": {worker.address: ("y",)},
        "nbytes": {"x": 64},
        "nthreads": {worker.address: 3},
    }
    client.send(m.Query(9, "scheduler_info", ()))
    (reply,) = client.take(m.Reply)
    assert reply.payload["workers"][worker.address]["name"] == "w"
    client.send(m.Query(10, "story", ("x",)))
    (reply,) = client.take(m.Reply)
    assert [step[2] for step in reply.payload] == ["needed", "queued", "assigned", "finished"]


def test_what_a_dead_worker_was_to_drop_is_not_waited_for() -> None:
    kit = Kit(free_delay_s=0.02)
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish_all()
    client.send(m.Release(("x",)))
    assert worker.take(m.Free) == []
    assert kit.core.next_deadline() == 0.02
    worker.leave()
    assert kit.core.next_deadline() == float("inf")


def test_what_is_to_be_dropped_is_told_with_the_next_message_or_a_little_later() -> None:
    kit = Kit(free_delay_s=0.02)
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish_all()
    client.send(m.Release(("x",)))
    client.submit("y")
    kinds = [type(message) for message in worker.inbox]
    assert kinds.index(m.Free) < kinds.index(m.Run)
    worker.finish_all()
    client.send(m.Release(("y",)))
    worker.take(m.Free)
    kit.tick(0.02)
    kit.flush()
    assert worker.take(m.Free) == [m.Free(("y",))]


def test_readers_of_a_lost_worker_hear_of_it_though_others_have_the_value() -> None:
    """A process that is stopped keeps its connections: whoever asks it would wait as long as it is."""
    kit = Kit()
    lost, other, reader, client = kit.worker("lost"), kit.worker("other"), kit.worker("reader"), kit.client()
    client.submit("x", "unread", workers=("lost",))
    for run in lost.runs():
        lost.finish(run, value=None)
    other.send(m.Replicas(("x",)))
    client.submit("started", "y", needs=("x",), workers=("reader",))
    client.submit("apart", workers=("other",))
    (running, waiting) = reader.runs()
    reader.send(m.Started((running.run,)))
    client.inbox.clear()
    lost.leave(reason="no sign of life for 30 s")
    assert reader.take(m.ReturnRuns) == [m.ReturnRuns((waiting.run,))]
    assert other.take(m.ReturnRuns) == []
    assert client.take(m.KeyReady) == [m.KeyReady("x", 28, "int", None, (other.address,))]
    reader.send(m.RunsReturned((waiting.run,)))
    (again,) = reader.runs()
    assert again.key == "y"
    assert again.dependencies == (("x", (other.address,)),)
    kit.assert_empty()


def test_no_run_is_taken_back_for_a_worker_that_leaves_in_order_or_for_an_input_that_is_there() -> None:
    kit = Kit()
    leaver, lost, reader, client = kit.worker("leaver"), kit.worker("lost"), kit.worker("reader"), kit.client()
    client.submit("x", workers=("leaver",))
    leaver.finish(leaver.runs()[0])
    for holder in (lost, reader):
        holder.send(m.Replicas(("x",)))
    client.submit("y", needs=("x",), workers=("reader",))
    assert [run.key for run in reader.runs()] == ["y"]
    client.inbox.clear()
    leaver.leave(expected=True)
    assert client.inbox == []
    lost.leave()
    assert reader.take(m.ReturnRuns) == []


def test_a_worker_without_slots_gives_its_backlog_to_others() -> None:
    kit = Kit()
    holder, client = kit.worker("holder"), kit.client()
    client.submit("data", workers=("holder",))
    holder.finish(holder.runs()[0], nbytes=10**11, seconds=1.0)
    for number in range(4):
        client.submit(f"use{number}", needs=("data",))
    other = kit.worker("other")
    handed = holder.runs()
    assert [run.key for run in handed] == ["use0", "use1"]
    assert other.runs() == []
    holder.send(m.Capacity(0), m.RunsReturned(run_ids(handed)))
    while runs := other.runs():
        for run in runs:
            other.finish(run)
    assert sorted(client.ready()) == ["data", "use0", "use1", "use2", "use3"]
