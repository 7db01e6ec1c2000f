"""One sentence says why a task is not done: what holds it up, where, and for how long."""

import pytest

from tests.scheduler.kit import FUNCTION, Client, Kit, Worker
from trio_dask.protocol import messages as m


def why(client: Client, key: str) -> str:
    client.send(m.Query(1, "explain", (key,)))
    (reply,) = client.take(m.Reply)
    return str(reply.payload)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def client(kit: Kit) -> Client:
    return kit.client()


def busy(kit: Kit, client: Client, key: str) -> tuple[Worker, m.Run]:
    """A worker that has run a task for 41 s; others took 12 s."""
    worker = kit.worker("bob")
    client.submit("before")
    worker.finish(worker.runs()[0], seconds=12.0)
    client.submit(key)
    (run,) = worker.runs()
    worker.send(m.Started((run.run,)))
    kit.tick(41.0)
    return worker, run


def test_a_task_waits_for_the_running_one_at_the_root_of_its_inputs(kit: Kit, client: Client) -> None:
    busy(kit, client, "load-3")
    client.submit("mean", needs=("load-3", "before"))
    client.submit("plot", needs=("mean",))
    told = "has been running for 41 s on worker bob; usually 12 s"
    assert why(client, "load-3") == told
    assert why(client, "mean") == why(client, "plot") == f"waits for load-3, which {told}"


def test_others_that_a_task_waits_for_are_counted(kit: Kit, client: Client) -> None:
    busy(kit, client, "a")
    client.submit("b", "c", resources={"GPU": 1.0})
    client.submit("d", needs=("b", "a", "c"))
    assert why(client, "d").startswith("waits for a, which has been running")
    assert why(client, "d").endswith(", and for 2 other tasks")


def test_a_task_that_no_worker_can_take_says_what_is_lacking(kit: Kit, client: Client) -> None:
    client.submit("a")
    assert why(client, "a") == "waits for a worker: no worker is connected"
    kit.worker()
    kit.worker()
    client.submit("b", resources={"GPU": 1.0})
    client.submit("c", needs=("b",))
    lacking = "waits for a worker: no worker offers GPU=1 (2 workers: no GPU)"
    assert why(client, "b") == lacking
    assert why(client, "c") == f"waits for b, which {lacking}"


def test_a_task_that_came_together_with_the_question_is_explained_like_others(kit: Kit, client: Client) -> None:
    client.send(m.Submit(FUNCTION, ("a",), (b"call",), (), (), (), {}), m.Query(1, "explain", ("a",)))
    assert [reply.payload for reply in client.take(m.Reply)] == ["waits for a worker: no worker is connected"]


def test_a_ready_task_waits_for_room_or_for_workers_that_take_work(kit: Kit, client: Client) -> None:
    worker = kit.worker("bob")
    client.submit(*[f"k{number}" for number in range(5)])
    assert why(client, "k0") == "is assigned to worker bob, with 1 other task"
    assert why(client, "k4") == "is ready, and waits for room: 2 tasks on 1 worker"
    worker.send(m.Capacity(0), m.RunsReturned(tuple(run.run for run in worker.runs())))
    assert why(client, "k4") == "waits for a worker: all that could run it are paused, leaving, or away"


def test_a_task_that_has_ended_says_how(kit: Kit, client: Client) -> None:
    worker = kit.worker("bob")
    client.submit("good")
    worker.finish(worker.runs()[0])
    client.submit("bad")
    client.submit("after", needs=("bad",))
    worker.fail(worker.runs()[0], "ValueError: no\n  more")
    assert why(client, "good") == "is done, 28 bytes on worker bob"
    assert why(client, "bad") == "has failed: ValueError: no"
    assert why(client, "after") == "has failed because bad has failed: ValueError: no"
    assert why(client, "unknown") == "the scheduler does not know it: it was released, or never submitted"


def test_a_task_on_a_worker_that_is_away_says_so(kit: Kit, client: Client) -> None:
    worker = kit.worker("bob", reconnect=True)
    client.submit("a")
    worker.leave()
    assert why(client, "a") == "was running on worker bob, which has lost its connection a moment ago"
