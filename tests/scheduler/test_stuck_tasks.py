"""Nothing waits without a word: clients hear why there is no worker for their tasks, and for these alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.scheduler.kit import Client, Kit
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import LogLine, stuck_tasks
from trio_dask.scheduler.core.priority_queue import TaskQueue
from trio_dask.scheduler.core.state import Task


def told(client: Client) -> list[tuple[str, bool]]:
    return [(message.text, message.aloud) for message in client.take(m.Stuck)]


def notices(kit: Kit) -> list[str]:
    taken = [request.text for request in kit.core.requests if isinstance(request, LogLine)]
    kit.core.requests.clear()
    return taken


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"resources": {"GPU": 3}}, "3 tasks wait: no worker offers GPU=3 (2 workers: GPU=2)"),
        ({"resources": {"DISK": 1.5}}, "3 tasks wait: no worker offers DISK=1.5 (2 workers: no DISK)"),
        ({"workers": ("nobody",)}, "3 tasks wait: no worker is called 'nobody' (2 workers: 'alice' or 'bob')"),
        (
            {"workers": ("alice", "x"), "resources": {"GPU": 3}},
            "3 tasks wait: none of the workers 'alice' or 'x' offers GPU=3 (1 worker: GPU=2)",
        ),
        (
            {"workers": ("alice",), "resources": {"GPU": 3}},
            "3 tasks wait: worker 'alice' does not offer GPU=3 (1 worker: GPU=2)",
        ),
        (
            {"workers": ("nobody", "x"), "resources": {"GPU": 1}},
            "3 tasks wait: no worker is called 'nobody' or 'x' (2 workers: 'alice' or 'bob')",
        ),
    ],
)
def test_what_no_worker_can_do_is_told_at_once_and_aloud_when_it_has_lasted(
    extra: dict[str, Any], sentence: str
) -> None:
    kit = Kit()
    client, other = kit.client(), kit.client("other")
    kit.worker("alice", resources={"GPU": 2})
    kit.worker("bob", resources={"GPU": 2})
    client.submit("a", "b", "c", **extra)
    kit.tick(0.1)
    assert told(client) == [(sentence, False)]
    assert notices(kit) == []
    for _ in range(20):
        kit.tick(1.0)
    assert told(client) == [(sentence, True)]
    assert notices(kit) == [sentence]
    assert told(other) == []
    kit.assert_empty()


def test_without_any_worker_every_task_waits_and_none_when_one_comes() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b")
    kit.tick(0.1)
    assert told(client) == [("2 tasks wait: no worker is connected", False)]
    kit.worker()
    kit.tick(0.1)
    assert told(client) == [("", False)]
    kit.assert_empty()
    assert kit.core.next_deadline() == float("inf") or kit.state.stuck_at == float("inf")


def test_when_all_workers_are_gone_this_is_said_again_though_it_was_said_before() -> None:
    kit = Kit(stuck_after_s=1.0)
    client = kit.client()
    for _ in range(2):
        worker = kit.worker()
        client.submit("a")
        worker.leave()
        for _ in range(5):
            kit.tick(0.5)
        assert told(client)[-1] == ("1 task waits: no worker is connected", True)
        kit.worker().finish_all()
        kit.tick(0.1)
        assert told(client)[-1] == ("", False)
        client.send(m.Release(("a",)))
        for peer in list(kit.peers.values()):
            if peer is not client:
                peer.leave(expected=True)


def test_a_client_that_wants_what_depends_on_a_stuck_task_hears_of_it() -> None:
    kit = Kit()
    owner, reader = kit.client(), kit.client("reader")
    kit.worker()
    owner.submit("a", resources={"GPU": 1})
    reader.submit("b", needs=("a",))
    owner.send(m.Release(("a",)))
    kit.tick(0.1)
    assert told(reader) == [("1 task waits: no worker offers GPU=1 (1 worker: no GPU)", False)]
    kit.assert_empty()


def test_a_client_is_told_which_of_its_keys_wait_for_what() -> None:
    kit = Kit()
    client, other = kit.client(), kit.client("other")
    kit.worker("alice", resources={"GPU": 2})
    client.submit("a", "b", resources={"GPU": 3})
    client.submit("c", workers=("nobody",))
    client.submit("runs")
    client.submit("sum", needs=("a", "runs"))
    other.submit("x", needs=("b",))
    kit.tick(0.1)
    no_gpu = "no worker offers GPU=3 (1 worker: GPU=2)"
    (told_client,), (told_other,) = client.take(m.Stuck), other.take(m.Stuck)
    assert told_client.reasons == (
        (no_gpu, ("a", "b", "sum")),
        ("no worker is called 'nobody' (1 worker: 'alice')", ("c",)),
    )
    assert told_other.reasons == ((no_gpu, ("x",)),)
    client.send(m.Release(("a", "sum")))
    kit.tick(2.0)
    assert client.take(m.Stuck)[-1].reasons[0] == (no_gpu, ("b",))
    kit.assert_empty()


def test_a_later_client_that_wants_what_depends_on_a_stuck_task_hears_of_it_soon() -> None:
    kit = Kit()
    first, second, third = kit.client(), kit.client("second"), kit.client("third")
    kit.worker()
    first.submit("a", resources={"GPU": 1})
    kit.tick(0.1)
    second.submit("b", needs=("a",))
    third.send(m.Want(("a",)))
    kit.tick(0.3)
    assert [client.take(m.Stuck)[-1].reasons[0][1] for client in (first, second, third)] == [("a",), ("b",), ("a",)]
    kit.assert_empty()


def test_without_any_worker_all_keys_wait() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b", resources={"GPU": 3})
    kit.tick(0.1)
    assert client.take(m.Stuck)[-1].reasons == (("no worker is connected", None),)
    kit.assert_empty()


def test_what_a_client_is_told_of_very_many_keys_is_limited() -> None:
    kit = Kit()
    client = kit.client()
    kit.worker()
    client.submit(*(f"{number:04}-{'k' * 1000}" for number in range(1000)), resources={"GPU": 1})
    kit.tick(0.1)
    (told_once,) = client.take(m.Stuck)
    ((_, keys),) = told_once.reasons
    assert told_once.text.startswith("1000 tasks wait: ")
    assert keys is not None
    assert 100 < len(keys) < 300
    kit.assert_empty()


def test_a_reason_that_changes_is_said_again_but_not_all_the_time() -> None:
    kit = Kit(stuck_after_s=10.0)
    client = kit.client()
    for number in range(300):
        client.submit(f"k{number}")
        kit.tick(0.1)
    aloud = [text for text, is_aloud in told(client) if is_aloud]
    assert 2 <= len(aloud) <= 3
    assert notices(kit) == [aloud[0]]
    kit.assert_empty()


def test_tasks_that_are_given_up_are_not_spoken_of_any_more() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a")
    kit.tick(0.1)
    client.send(m.Release(("a",)))
    kit.tick(2.0)
    assert told(client)[-1] == ("", False)
    assert kit.state.stuck_at == float("inf")
    kit.assert_empty()


def test_a_resource_that_is_only_in_use_is_no_reason() -> None:
    kit = Kit()
    client = kit.client()
    kit.worker(nthreads=2, resources={"GPU": 1})
    client.submit("a", "b", resources={"GPU": 1})
    for _ in range(20):
        kit.tick(1.0)
    assert told(client) == []
    kit.assert_empty()


def looks(kit: Kit, seconds: float) -> int:
    """The core asks for this many ticks in a time in which nothing else happens."""
    count = 0
    end = kit.now + seconds
    while (due := kit.core.next_deadline()) <= end:
        kit.tick(max(0.0, due - kit.now))
        count += 1
    kit.now = end
    return count


def test_tasks_that_stay_stuck_are_looked_at_now_and_then_only() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b")
    client.submit("c", resources={"GPU": 1})
    assert looks(kit, 60.0) <= 31
    kit.assert_empty()


def test_events_do_not_hasten_the_look_at_what_is_known_to_be_stuck() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a")
    kit.tick(0.1)
    due = kit.core.next_deadline()
    client.send(m.Release(("nothing",)))
    kit.client("another")
    assert kit.core.next_deadline() == due > kit.now + 1
    kit.assert_empty()


def test_inputs_that_come_one_by_one_do_not_hasten_the_look_at_the_queue_that_they_lead_to() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    for number in range(100):
        client.submit(f"input-{number}")
        client.submit(f"stuck-{number}", needs=(f"input-{number}",), resources={"GPU": 1})
    count = 0
    for _ in range(100):
        (run, *others) = worker.runs()
        worker.inbox += others
        worker.finish(run)
        count += looks(kit, 0.05)
    assert count <= 5 / 0.25 + 2
    kit.assert_empty()


def test_a_look_walks_no_more_of_a_line_than_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[object] = []

    def counting(line: TaskQueue) -> Iterator[Task]:
        for task in each(line):
            walked.append(task)
            yield task

    each = TaskQueue.__iter__
    kit = Kit(validate=False)
    client = kit.client()
    client.submit(*map(str, range(stuck_tasks.MOST_TASKS + 500)))
    monkeypatch.setattr(TaskQueue, "__iter__", counting)
    kit.tick(0.1)
    assert len(walked) <= stuck_tasks.MOST_TASKS + 1
    assert told(client) == [(f"{stuck_tasks.MOST_TASKS}+ tasks wait: no worker is connected", False)]
    kit.assert_empty()


def test_a_look_goes_to_a_limited_number_of_dependents_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck_tasks, "MOST_DEPENDENTS", 100)
    kit = Kit(validate=False)
    client, reader = kit.client(), kit.client("reader")
    kit.worker()
    roots = [f"root-{number}" for number in range(50)]
    client.submit(*roots, resources={"GPU": 1})
    for number in range(30):
        reader.submit(f"leaf-{number}", needs=tuple(roots))
    seen: list[object] = []
    for task in kit.state.tasks.values():
        task.dependents = Watched(task.dependents or {}, seen)
    kit.tick(0.1)
    assert len(seen) <= 100
    ((_, keys),) = client.take(m.Stuck)[-1].reasons
    assert keys == tuple(roots), "what waits itself is told however much depends on it"
    assert told(reader)[-1][0].startswith("30+ tasks wait")
    kit.assert_empty()


class Watched(dict[Task, None]):
    """Dependents that note which of them are looked at."""

    def __init__(self, dependents: dict[Task, None], seen: list[object]) -> None:
        super().__init__(dependents)
        self.seen = seen

    def __iter__(self) -> Iterator[Task]:
        for task in super().__iter__():
            self.seen.append(task)
            yield task


def test_a_long_line_hides_no_other_and_each_reason_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck_tasks, "MOST_TASKS", 20)
    kit = Kit(stuck_after_s=5.0)
    client, other = kit.client(), kit.client("other")
    kit.worker()
    client.submit("first", workers=("nobody",))
    other.submit("lonely", resources={"TPU": 1})
    no_tpu = "1 task waits: no worker offers TPU=1 (1 worker: no TPU)"
    many = [f"k{number}" for number in range(100)]
    for step in range(30):
        if step == 10:
            client.submit(*many, workers=("nobody",))
        elif step == 20:
            client.send(m.Release(tuple(many)))
        kit.tick(2.0)
    assert notices(kit) == [f"1 task waits: no worker is called 'nobody' (1 worker: 'w3'); {no_tpu}"]
    assert told(other) == [(no_tpu, False), (no_tpu, True)]
    assert "10+ tasks wait: no worker is called 'nobody' (1 worker: 'w3')" in [text for text, _ in told(client)]
    kit.assert_empty()


def test_a_worker_that_leaves_is_not_said_to_be_missing_or_to_lack_something() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker("alice", resources={"GPU": 2})
    client.submit("runs")
    client.send(m.Retire(1, ("alice",), 0))
    client.submit("a", workers=("alice",), resources={"GPU": 1})
    kit.tick(0.1)
    assert told(client) == [
        ("1 task waits: no worker takes such tasks (1 worker, which is leaving or returning)", False)
    ]
    worker.finish_all()
