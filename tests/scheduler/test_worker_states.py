"""Phases of workers: the table drives the code, and sessions that are offered are begun, or are not."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest

from tests.architecture import rules
from tests.scheduler.kit import SCHEDULER, Kit, Worker, worker_hello
from tests.simulation.simulate import World
from trio_dask.ids import Incarnation
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.scheduler.core import CallAgain, Refuse, Resume, worker_transitions
from trio_dask.scheduler.core.reconnect import ARRIVAL_S
from trio_dask.scheduler.core.worker_states import GONE, HERE, NEW, WORKER_TRANSITIONS

NEVER = float("inf")


class Recorder(Mapping[tuple[str, str], str]):
    """The table of transitions, which notes the steps that were taken."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], None] = {}

    def __getitem__(self, step: tuple[str, str]) -> str:
        reason = WORKER_TRANSITIONS[step]
        self.taken[step] = None
        return reason

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(WORKER_TRANSITIONS)

    def __len__(self) -> int:
        return len(WORKER_TRANSITIONS)


def test_a_step_that_is_not_in_the_table_is_refused_and_changes_nothing() -> None:
    kit = Kit()
    kit.worker("alice")
    worker = kit.state.names["alice"]
    for phase in (HERE, NEW):
        with pytest.raises(AssertionError, match=f"no transition here -> {phase.name} of worker alice"):
            worker_transitions.change_phase(kit.state, worker, phase)
    assert worker.phase is HERE
    worker_transitions.change_phase(kit.state, worker, GONE)


def test_every_step_of_the_table_is_taken_in_some_history(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Recorder()
    monkeypatch.setattr(worker_transitions, "WORKER_TRANSITIONS", table)
    kit = Kit()
    client, worker = kit.client(), kit.worker()
    client.submit("a")
    worker.send(m.Drain("asked to stop"))
    worker.leave()  # histories have workers that die while they drain, but few
    for seed in range(300):
        World(seed).run()
        if len(table.taken) == len(WORKER_TRANSITIONS):
            return
    pytest.fail(f"never taken: {[step for step in WORKER_TRANSITIONS if step not in table.taken]}")


def call_again(kit: Kit, worker: Worker) -> Hello:
    """The process of this worker says hello, and is told that it can go on."""
    info = worker.info._replace(incarnation=kit.next_incarnation("i"))
    hello = worker_hello(info, previous=worker.info.incarnation, scheduler=SCHEDULER)
    answer = kit.core.greet(hello, kit.now)
    assert isinstance(answer, Welcome)
    assert answer.details == {"returned": True}
    return hello


def test_of_two_hellos_of_a_worker_the_last_one_counts() -> None:
    kit = Kit()
    worker = kit.worker(reconnect=True)
    worker.leave()
    first, second = call_again(kit, worker), call_again(kit, worker)
    assert isinstance(kit.core.begin_session(first, kit.now), CallAgain)
    assert isinstance(kit.core.begin_session(second, kit.now), Resume)


def test_a_worker_whose_grace_ends_between_hello_and_session_has_to_call_again() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    worker = kit.worker(reconnect=True)
    worker.leave()
    hello = call_again(kit, worker)
    kit.tick(ARRIVAL_S + 1)
    assert not kit.state.away
    assert isinstance(kit.core.begin_session(hello, kit.now), CallAgain)


def test_a_worker_has_time_to_begin_the_session_that_it_was_offered() -> None:
    kit = Kit(reconnect_grace_s=5.0)
    worker = kit.worker(reconnect=True)
    worker.leave()
    kit.tick(4.9)
    hello = call_again(kit, worker)
    kit.tick(1.0)
    assert isinstance(kit.core.begin_session(hello, kit.now), Resume)


def test_offers_that_are_not_taken_up_are_forgotten() -> None:
    kit = Kit(reconnect_grace_s=1000.0)
    worker = kit.worker(reconnect=True)
    worker.leave()
    for _ in range(100):
        call_again(kit, worker)
        kit.tick(1.0)
    assert len(kit.state.offers) <= ARRIVAL_S


def test_a_name_that_is_taken_between_hello_and_session_is_refused() -> None:
    kit = Kit()
    info = kit.worker("alice").info
    kit.worker("bob")
    hellos = [
        worker_hello(info._replace(name="carol", address=f"tcp://c:{number}", incarnation=Incarnation(str(number))))
        for number in range(2)
    ]
    for hello in hellos:
        assert not isinstance(kit.core.greet(hello, kit.now), Refusal)
    kit.core.begin_session(hellos[0], kit.now)
    assert isinstance(kit.core.begin_session(hellos[1], kit.now), Refuse)


def test_a_worker_that_returns_is_no_candidate_for_demands_that_are_made_meanwhile() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker("alice", reconnect=True)
    worker.leave()
    assert worker.come_back()
    client.submit("x", workers=("alice",))
    assert kit.states() == {"x": "no-worker"}
    worker.bring()
    assert kit.states() == {"x": "processing"}


def test_a_retirement_outlasts_an_absence() -> None:
    kit = Kit()
    client = kit.client()
    worker, other = kit.worker(reconnect=True), kit.worker()
    client.submit("running", workers=(worker.name,), allow_other_workers=True)
    (run,) = worker.runs()
    worker.send(m.Started((run.run,)))
    client.send(m.Retire(1, (worker.name,), 0))
    worker.leave()
    assert worker.come_back()
    worker.bring(runs=(run.run,))
    worker.finish(run, value=None)
    kit.tick(1.0)
    assert other.take(m.Acquire)
    other.send(m.Replicas(("running",)))
    kit.tick(1.0)
    assert worker.take(m.Leave) == [m.Leave("it was retired", False)]


def test_nothing_wakes_the_scheduler_while_a_retiring_worker_finishes_its_run() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker()
    kit.worker()
    client.submit("a", workers=(worker.name,))
    (run,) = worker.runs()
    worker.send(m.Started((run.run,)), m.Drain("asked to stop"))
    kit.tick(0.0)
    kit.tick(1.0)
    assert kit.core.next_deadline() == NEVER
    assert not worker.take(m.Leave)
    client.send(m.Release(("a",)))
    kit.tick(1.0)
    assert worker.take(m.Leave)


def test_a_restart_by_an_operator_leaves_no_client_and_no_request_behind() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker()
    client.submit("a")
    kit.core.restart("requested by rpc", kit.now)
    kit.settle()
    assert [leave.restart for leave in worker.take(m.Leave)] == [True]
    assert [dropped.key for dropped in client.take(m.Dropped)] == ["a"]
    assert list(kit.state.clients) == [client.peer]
    assert kit.core.next_deadline() == NEVER


def test_a_malformed_number_of_workers_ends_the_session_and_is_not_taken_for_one() -> None:
    kit = Kit()
    client = kit.client()
    for arguments in ((), ("many",), ("-1",), ("1", "2")):
        with pytest.raises(Exception, match="wait_for_workers takes a number of workers"):
            client.send(m.Query(1, "wait_for_workers", arguments))


def test_no_code_outside_the_core_touches_its_state() -> None:
    core = "trio_dask.scheduler.core"
    reads = []
    for module in rules.modules(rules.ROOT).values():
        if module.name.startswith(core):
            continue
        reads += [
            f"{module.name}:{node.lineno}"
            for node in ast.walk(module.tree)
            if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{core}."))
            or (isinstance(node, ast.Attribute) and node.attr == "_state" and "core" in ast.unparse(node.value))
        ]
    assert not reads
