"""Graphs that come in parts: what the scheduler keeps for the parts to come, and that nothing is left of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.kit import FUNCTION, Client, Kit, Worker
from trio_dask.errors import ProtocolError
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core.state import Task
from trio_dask.scheduler.core.task_states import Erred

Rows = Mapping[str, Sequence[str]]


def part(
    rows: Rows,
    *,
    wanted: Sequence[str] = (),
    held: Sequence[str] = (),
    unheld: Sequence[str] = (),
    tokens: Sequence[bytes] = (),
    options: Sequence[Mapping[str, Any]] = (),
    options_of: Sequence[int] = (),
) -> m.SubmitGraph:
    """A part with these tasks, each with its dependencies."""
    numbers = {key: number for number, key in enumerate(rows)}
    inputs: dict[str, int] = {}
    dependencies = tuple(
        tuple(numbers[name] if name in numbers else inputs.setdefault(name, len(rows) + len(inputs)) for name in needs)
        for needs in rows.values()
    )
    return m.SubmitGraph(
        functions=(FUNCTION,) if rows else (),
        function_of=(0,) * len(rows),
        keys=tuple(rows),
        calls=(b"call",) * len(rows),
        inputs=tuple(inputs),
        dependencies=dependencies,
        blobs=(),
        tokens=tuple(tokens),
        options=tuple(options),
        options_of=tuple(options_of),
        wanted=tuple(numbers[key] for key in wanted),
        held=tuple(numbers[key] for key in held),
        unheld=tuple(unheld),
    )


def cluster() -> tuple[Kit, Worker, Client]:
    kit = Kit()
    return kit, kit.worker(), kit.client()


# ------------------------------------------------------------------------------------------ what is kept, how long


def test_only_outputs_are_told_of_and_only_they_are_kept() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",), "c": ("a", "b")}, wanted=["c"]))
    assert worker.finish_all() == 3
    assert client.ready() == ["c"]
    assert kit.states() == {"a": "released", "b": "released", "c": "memory"}
    client.send(m.Release(("c",)))
    assert kit.states() == {}


def test_a_part_begins_before_the_next_one_comes_and_its_results_are_kept_for_that() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",)}, held=["b"]))
    assert worker.finish_all() == 2
    assert kit.states() == {"a": "released", "b": "memory"}
    client.send(part({"c": ("b",)}, wanted=["c"], unheld=["b"]))
    worker.finish_all()
    assert client.ready() == ["c"]
    assert client.inbox == []
    assert kit.states() == {"a": "released", "b": "released", "c": "memory"}
    client.send(m.Release(("c",)))
    assert kit.states() == {}


def test_what_no_output_needs_is_forgotten_at_once() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",), "c": ("b",)}))
    assert kit.states() == {}
    assert worker.runs() == []


def test_a_graph_that_is_given_up_between_parts_is_forgotten() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ()}, held=["a", "b"]))
    worker.finish(worker.runs()[0])
    client.send(part({}, unheld=["a", "b"]))
    assert kit.states() == {}
    assert worker.take(m.Free) == [m.Free(("a",))]


@pytest.mark.parametrize("expected", [True, False])
def test_a_client_that_leaves_between_parts_holds_nothing_any_more(expected: bool) -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",), "c": ("a",)}, held=["b"], wanted=["c"]))
    worker.finish_all()
    client.leave(expected=expected)
    assert kit.states() == {}


def test_what_two_graphs_of_a_client_hold_is_kept_until_both_have_let_go() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": ()}, held=["a"]))
    client.send(part({"a": (), "b": ("a",)}, held=["a"], wanted=["b"]))
    client.send(part({}, unheld=["a"]))
    worker.finish_all()
    client.send(m.Release(("b",)))
    assert kit.states() == {"a": "memory"}
    client.send(part({}, unheld=["a"]))
    assert kit.states() == {}


def test_what_one_client_holds_stays_when_another_releases_it() -> None:
    kit, worker, client = cluster()
    other = kit.client("other")
    other.submit("a")
    client.send(part({"a": ()}, held=["a"]))
    worker.finish_all()
    other.send(m.Release(("a",)))
    assert kit.states() == {"a": "memory"}
    client.send(part({"b": ("a",)}, wanted=["b"], unheld=["a"]))
    worker.finish_all()
    assert client.ready() == ["b"]
    kit.assert_empty()


def test_what_is_not_held_can_be_let_go_as_often_as_one_likes() -> None:
    kit, worker, client = cluster()
    client.submit("a")
    client.send(part({}, unheld=["a", "never", "a"]))
    assert kit.states() == {"a": "processing"}
    worker.finish_all()
    assert client.ready() == ["a"]
    kit.assert_empty()


# ------------------------------------------------------------------------------------------ keys that are known


@pytest.mark.parametrize("phase", ["processing", "memory", "erred"])
def test_a_task_that_is_known_is_taken_as_it_is(phase: str) -> None:
    kit, worker, client = cluster()
    other = kit.client("other")
    other.submit("a")
    (run,) = worker.runs()
    if phase == "memory":
        worker.finish(run)
    elif phase == "erred":
        worker.fail(run)
    client.send(part({"z": (), "a": ("z",), "b": ("a",)}, wanted=["a", "b"]))
    assert "z" not in kit.states()  # only the new definition of `a` needs it
    if phase == "processing":
        worker.finish(run)
    worker.finish_all()
    if phase == "erred":
        assert client.failed() == ["a", "b"]
    else:
        assert client.ready() == ["a", "b"]
    kit.assert_empty()


def test_a_known_task_that_was_released_is_computed_again() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",)}, wanted=["b"]))
    worker.finish_all()
    assert kit.states() == {"a": "released", "b": "memory"}
    client.send(part({"a": ()}, held=["a"]))
    assert [run.key for run in worker.runs()] == ["a"]


def test_scattered_data_serves_as_the_task_of_its_key() -> None:
    kit, worker, client = cluster()
    worker.send(m.Scattered("data", 100, "ndarray", "nobody else"))
    worker.send(m.Scattered("data", 100, "ndarray", f"c{client.peer}"))
    client.send(part({"data": (), "b": ("data",)}, held=["data"], wanted=["b"]))
    assert worker.finish_all() == 1
    client.send(m.Release(("data", "b")))
    assert kit.states() == {"data": "memory"}
    kit.assert_empty()


def test_a_conflict_fails_the_output_and_what_depends_on_it_and_leaves_the_first_task_alone() -> None:
    kit, worker, client = cluster()
    other = kit.client("other")
    other.submit("a", tokens=(b"one",))
    client.send(part({"a": (), "b": ("a",), "c": ("b",)}, wanted=["a", "c"], tokens=[b"two", b"b", b"c"]))
    assert {failure.key: failure.kind for failure in client.take(m.KeyFailed)} == {"a": "conflict", "c": "conflict"}
    assert worker.finish_all() == 1
    assert other.ready() == ["a"]
    kit.assert_empty()


# ------------------------------------------------------------------------------------------ troubles between parts


def test_an_input_that_is_not_known_refuses_what_needs_it_and_nothing_else() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("gone",), "c": ("b",), "d": ("a",)}, wanted=["a", "c"], held=["d"]))
    assert [(failure.key, failure.blamed) for failure in client.take(m.KeyFailed)] == [("c", "b")]
    worker.finish_all()
    assert client.ready() == ["a"]
    kit.assert_empty()


@pytest.mark.parametrize("form", ["graph", "submit"])
def test_a_task_that_was_refused_runs_once_a_client_submits_it_with_its_inputs(form: str) -> None:
    kit, worker, client = cluster()
    other = kit.client("other")
    other.submit("c", needs=("a",))
    other.submit("d", needs=("c",))
    assert other.failed() == ["c", "d"]
    if form == "graph":
        client.send(part({"a": (), "c": ("a",)}, wanted=["c"]))
    else:
        client.submit("a")
        client.submit("c", needs=("a",))
    assert client.failed() == []
    worker.finish_all()
    assert "c" in client.ready()
    assert other.ready() == ["c", "d"]


def test_a_refused_task_never_comes_to_depend_on_itself() -> None:
    _, _, client = cluster()
    client.submit("c", needs=("a",))
    client.submit("d", needs=("c",))
    client.take(m.KeyFailed)
    client.send(part({"c": ("d",)}, wanted=["c"]))
    assert client.failed() == ["c"]


def test_each_failure_of_an_output_is_told_once() -> None:
    kit, _, client = cluster()
    client.send(part({"a": ("gone",)}, wanted=["a"]))
    assert client.failed() == ["a"]
    kit.assert_empty()


def test_a_held_task_that_erred_fails_the_dependents_of_the_next_part() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": ()}, held=["a"]))
    worker.fail(worker.runs()[0])
    assert client.inbox == []
    assert kit.states() == {"a": "erred"}
    client.send(part({"b": ("a",), "c": ("b",)}, wanted=["c"], unheld=["a"]))
    (failure,) = client.take(m.KeyFailed)
    assert (failure.key, failure.blamed) == ("c", "a")
    kit.assert_empty()


def test_a_retry_between_parts_runs_what_is_held_again() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": (), "b": ("a",), "c": ("b",)}, held=["b"], wanted=["c"]))
    worker.fail(worker.runs()[0])
    assert client.failed() == ["c"]
    client.send(m.Retry(("c",)))
    assert worker.finish_all() == 3
    assert client.ready() == ["c"]
    client.send(part({"d": ("b",)}, wanted=["d"], unheld=["b"]))
    worker.finish_all()
    assert client.ready() == ["d"]
    kit.assert_empty()


def test_a_retry_after_the_ancestor_was_let_go_begins_with_it() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": ()}, held=["a"]))
    worker.fail(worker.runs()[0])
    client.send(part({"b": ("a",)}, wanted=["b"], unheld=["a"]))
    assert client.failed() == ["b"]
    client.send(m.Retry(("b",)))
    assert worker.finish_all() == 2
    assert client.ready() == ["b"]
    kit.assert_empty()


def test_a_forced_cancellation_by_another_client_takes_what_is_held_and_later_parts_are_refused() -> None:
    kit, _, client = cluster()
    other = kit.client("other")
    client.send(part({"a": (), "b": ("a",)}, held=["a"], wanted=["b"]))
    other.send(m.Cancel(("a",), True))
    assert [message.key for message in client.take(m.Dropped)] == ["b"]
    assert kit.states() == {}
    client.send(part({"c": ("a",)}, wanted=["c"], unheld=["a"]))
    (failure,) = client.take(m.KeyFailed)
    assert failure.kind == "refused"
    kit.assert_empty()


def test_a_cancellation_by_another_client_leaves_what_is_held_alone() -> None:
    kit, worker, client = cluster()
    other = kit.client("other")
    other.submit("a")
    client.send(part({"a": ()}, held=["a"]))
    other.send(m.Cancel(("a",), False))
    client.send(part({"b": ("a",)}, wanted=["b"], unheld=["a"]))
    worker.finish_all()
    assert client.ready() == ["b"]
    kit.assert_empty()


def test_a_restart_of_the_cluster_between_parts_takes_what_is_held() -> None:
    kit, _, client = cluster()
    other = kit.client("other")
    client.send(part({"a": (), "b": ("a",)}, held=["a"], wanted=["b"]))
    other.send(m.Restart(1))
    assert [message.key for message in client.take(m.Dropped)] == ["b"]
    assert kit.states() == {}
    client.send(part({"c": ("a",), "d": ()}, wanted=["c", "d"], unheld=["a"]))
    assert client.failed() == ["c"]
    assert kit.states() == {"c": "erred", "d": "processing"}
    kit.assert_empty()


def test_a_held_result_whose_worker_is_lost_is_computed_again() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": ()}, held=["a"]))
    worker.finish_all()
    worker.leave()
    another = kit.worker()
    assert [run.key for run in another.take(m.Run)] == ["a"]
    assert client.inbox == []


def test_scattered_data_that_is_held_and_lost_fails_the_next_part() -> None:
    kit, worker, client = cluster()
    worker.send(m.Scattered("data", 100, "ndarray", f"c{client.peer}"))
    client.send(part({"data": ()}, held=["data"]))
    client.send(m.Release(("data",)))
    worker.leave()
    client.send(part({"b": ("data",)}, wanted=["b"], unheld=["data"]))
    (failure,) = client.take(m.KeyFailed)
    assert failure.kind == "lost"
    kit.assert_empty()


def test_a_detached_output_finishes_without_its_client() -> None:
    kit, worker, client = cluster()
    client.send(part({"a": ()}, held=["a"]))
    client.send(part({"b": ("a",)}, wanted=["b"], unheld=["a"]), m.FireAndForget(("b",)))
    client.leave()
    worker.finish_all()
    assert kit.states() == {}


# ------------------------------------------------------------------------------------------ options and priorities


def test_each_task_has_its_own_options_and_they_run_in_the_order_of_the_graph() -> None:
    kit, worker, client = cluster()
    rows: Rows = {"a": (), "b": (), "c": ()}
    client.send(
        part(rows, wanted=list(rows), options=[{"retries": 1}, {"priority": 2}], options_of=[0, 1, 0]),
    )
    tasks = kit.state.tasks
    assert [tasks[key].options.retries for key in rows] == [1, 0, 1]
    assert sorted(rows, key=lambda key: tasks[key].priority) == ["b", "a", "c"]
    worker.fail(worker.runs()[0])
    kit.assert_empty()


def test_one_option_serves_all_tasks_where_none_is_chosen() -> None:
    kit, _, client = cluster()
    client.send(part({"a": (), "b": ()}, wanted=["a", "b"], options=[{"retries": 3}]))
    assert [task.options.retries for task in kit.state.tasks.values()] == [3, 3]


# ------------------------------------------------------------------------------------------ peers that make no sense

GOOD = part({"a": (), "b": ("a", "x"), "c": ("b",)}, wanted=["c"], held=["b"])


@pytest.mark.parametrize(
    "changes",
    [
        {"functions": ()},
        {"functions": (b"?" * 16,)},
        {"function_of": (0, 0)},
        {"function_of": (0, 0, 1)},
        {"function_of": (0, 0, -1)},
        {"calls": (b"call",)},
        {"keys": ("a", "b")},
        {"keys": ("a", "b", "a")},
        {"inputs": ("x", "x")},
        {"inputs": ("a",)},
        {"inputs": ()},
        {"dependencies": ((), ())},
        {"dependencies": ((0,), (), ())},
        {"dependencies": ((2,), (), ())},
        {"dependencies": ((), (2,), (1,))},
        {"dependencies": ((), (-1,), ())},
        {"dependencies": ((), (4,), ())},
        {"dependencies": ((), (0, 0), ())},
        {"dependencies": ((), (2**63,), ())},
        {"blobs": ((),)},
        {"blobs": ((b"?" * 16,), (), ())},
        {"tokens": (b"",)},
        {"options": ({"surprise": 1},)},
        {"options": ({"retries": -1},)},
        {"options_of": (0, 0, 0)},
        {"options": ({},), "options_of": (0,)},
        {"options": ({},), "options_of": (0, 0, 1)},
        {"options": ({},), "options_of": (0, 0, -1)},
        {"wanted": (3,)},
        {"wanted": (-1,)},
        {"held": (3,)},
        {"held": (-1,)},
    ],
    ids=str,
)
def test_a_part_that_does_not_fit_together_is_the_peers_fault_and_changes_nothing(changes: dict[str, Any]) -> None:
    kit, worker, client = cluster()
    client.submit("x")
    with pytest.raises(ProtocolError):
        client.send(GOOD._replace(**changes))
    assert kit.states() == {"x": "processing"}
    client.send(GOOD)
    worker.finish_all()
    assert client.ready() == ["x", "c"]
    kit.assert_empty()


def test_a_submission_that_names_a_dependency_twice_is_the_peers_fault() -> None:
    kit, _, client = cluster()
    client.submit("x")
    with pytest.raises(ProtocolError):
        client.submit("y", needs=("x", "x"))
    assert kit.states() == {"x": "processing"}


NUMBERS = st.integers(-2, 6)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(NUMBERS, max_size=3).map(tuple), max_size=4).map(tuple),
    st.lists(NUMBERS, max_size=3).map(tuple),
    st.lists(NUMBERS, max_size=3).map(tuple),
    st.lists(st.sampled_from("abcdxy"), max_size=3).map(tuple),
    st.lists(st.sampled_from("abcdxy"), max_size=4).map(tuple),
)
def test_any_numbers_give_a_sound_state_or_a_protocol_error(
    dependencies: tuple[tuple[int, ...], ...],
    wanted: tuple[int, ...],
    held: tuple[int, ...],
    inputs: tuple[str, ...],
    keys: tuple[str, ...],
) -> None:
    kit, worker, client = cluster()
    client.submit("x")
    message = part(dict.fromkeys(keys, ()))
    keys = message.keys
    dependencies = (*dependencies, *((),) * len(keys))[: len(keys)]
    try:
        client.send(message._replace(dependencies=dependencies, inputs=inputs, wanted=wanted, held=held, unheld=inputs))
    except ProtocolError:
        assert list(kit.states()) == ["x"]
    worker.finish_all()
    kit.assert_empty()


# ------------------------------------------------------------------------------------------ any graph, any cut


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    for number in range(draw(st.integers(1, 14))):
        needs = draw(st.lists(st.sampled_from(list(rows)), max_size=3, unique=True)) if rows else []
        rows[f"t{number}"] = tuple(needs)
    return rows


def parts_of(rows: Rows, cuts: Sequence[int], outputs: Sequence[str]) -> list[m.SubmitGraph]:
    """The graph cut before the rows with these numbers."""
    keys = list(rows)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(keys)}), len(keys)]
    parts: list[m.SubmitGraph] = []
    holding: list[str] = []
    for start, end in pairwise(edges):
        later = {name for key in keys[end:] for name in rows[key]}
        mine = keys[start:end]
        unheld = [key for key in holding if key not in later]
        now_held = [key for key in mine if key in later]
        holding = [key for key in holding if key in later] + now_held
        parts.append(
            part(
                {key: rows[key] for key in mine},
                wanted=[key for key in mine if key in outputs],
                held=now_held,
                unheld=unheld,
            )
        )
    assert not holding
    return parts


def work(worker: Worker, failing: set[str], steps: int) -> None:
    """Do some of what is there to do."""
    for _ in range(steps):
        runs = worker.runs()
        if not runs:
            return
        for run in runs:
            if run.key in failing:
                worker.fail(run)
            else:
                worker.finish(run)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.lists(st.integers(1, 13), max_size=5), st.data())
def test_a_graph_in_parts_ends_as_one_that_comes_whole(
    rows: dict[str, tuple[str, ...]], cuts: list[int], data: st.DataObject
) -> None:
    outputs = data.draw(st.lists(st.sampled_from(list(rows)), min_size=1, unique=True))
    failing = set(data.draw(st.lists(st.sampled_from(list(rows)), max_size=2)))
    ends: list[tuple[object, ...]] = []
    for places in ([], cuts):
        kit, worker, client = cluster()
        for message in parts_of(rows, places, outputs):
            client.send(message)
            work(worker, failing, data.draw(st.integers(0, 3)) if places else 0)
        work(worker, failing, 100)
        messages: list[m.KeyReady | m.KeyFailed] = [*client.take(m.KeyReady), *client.take(m.KeyFailed)]
        told = {message.key: (type(message), getattr(message, "blamed", "")) for message in messages}
        assert len(messages) == len(told)
        (session,) = kit.state.clients.values()
        assert not session.holds
        # A task that only failed tasks need has erred with them, or was released, by which failure came first.
        states = {key: state for key, state in kit.states().items() if key in outputs}
        ends.append((states, {key: kind for key, (kind, _) in told.items()}))
        client.send(m.Release(tuple(outputs)))
        assert kit.states() == {}
        kit.assert_empty()
    assert ends[0] == ends[1]


@settings(max_examples=150, deadline=None)
@given(graphs(), st.lists(st.integers(1, 13), max_size=5), st.data())
def test_whatever_happens_between_parts_nothing_is_left(
    rows: dict[str, tuple[str, ...]], cuts: list[int], data: st.DataObject
) -> None:
    """The kit checks all invariants after each event."""
    kit, worker, client = cluster()
    other = kit.client("other")
    outputs = data.draw(st.lists(st.sampled_from(list(rows)), min_size=1, unique=True))
    for message in parts_of(rows, cuts, outputs):
        client.send(message)
        key = data.draw(st.sampled_from(list(rows)))
        event = data.draw(st.sampled_from(("release", "cancel", "force", "retry", "share", "restart", "work", "lose")))
        match event:
            case "release":
                client.send(m.Release((key,)))
            case "cancel":
                client.send(m.Cancel((key,), False))
            case "force":
                other.send(m.Cancel((key,), True))
            case "retry":
                client.send(m.Retry((key,)))
            case "share":
                other.send(part({key: ()}, wanted=[key], held=[key]), part({}, unheld=[key]))
            case "restart":
                other.send(m.Restart(1))
            case "lose":
                worker.leave()
                worker = kit.worker()
            case _:
                work(worker, {key}, data.draw(st.integers(1, 3)))
    (session, _) = kit.state.clients.values()
    assert not session.holds
    work(worker, set(), 100)
    for task in kit.state.tasks.values():
        assert not task.wanted or _is_settled(task), f"{task} is wanted, and nothing happens"
    other.leave()
    client.leave()
    assert kit.states() == {}
    kit.assert_empty()


def _is_settled(task: Task) -> bool:
    return isinstance(task.phase, Erred) or task.phase.state == "memory"
