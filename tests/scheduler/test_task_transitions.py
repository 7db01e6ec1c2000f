"""What happens to a task, from its submission until it is forgotten."""

from __future__ import annotations

import pytest

from tests.scheduler.kit import FUNCTION, Kit, run_ids
from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId, RunId
from trio_dask.protocol import messages as m


def test_a_result_reaches_the_client_with_its_small_value() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    (run,) = worker.runs()
    worker.finish(run, value=b"the value")
    assert client.take(m.KeyReady) == [m.KeyReady("x", 28, "int", b"the value", ())]


def test_a_large_result_is_announced_by_its_holder() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish(worker.runs()[0], nbytes=10**6, value=None)
    assert client.take(m.KeyReady) == [m.KeyReady("x", 10**6, "int", None, (worker.address,))]


def test_a_function_is_shipped_to_a_worker_once_and_before_its_first_run() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x", "y")
    client.submit("z")
    kinds = [type(message) for message in worker.inbox]
    assert kinds[0] is m.Blob
    assert kinds.count(m.Blob) == 1


def test_a_released_result_is_freed_and_forgotten() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish(worker.runs()[0])
    client.send(m.Release(("x",)))
    assert worker.take(m.Free) == [m.Free(("x",))]
    assert kit.states() == {}


def test_unwanted_inputs_are_freed_once_their_last_dependent_has_finished_and_kept_as_lineage() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    client.submit("y", needs=("x",))
    client.send(m.Release(("x",)))
    worker.finish_all()
    assert client.ready() == ["y"]
    assert worker.take(m.Free) == [m.Free(("x",))]
    assert kit.states() == {"x": "released", "y": "memory"}
    client.send(m.Release(("y",)))
    assert kit.states() == {}


def test_a_lost_result_is_computed_again_from_its_lineage() -> None:
    kit = Kit()
    first, client = kit.worker(), kit.client()
    client.submit("x")
    client.submit("y", needs=("x",))
    client.send(m.Release(("x",)))
    first.finish_all()
    assert client.ready() == ["y"]
    first.leave(expected=True)
    assert client.take(m.KeyPending) == [m.KeyPending("y")]
    second = kit.worker()
    assert [run.key for run in second.runs()] == ["x", "y"]


def test_a_result_with_another_holder_is_not_computed_again() -> None:
    kit = Kit()
    first, second, client = kit.worker("a"), kit.worker("b"), kit.client()
    client.submit("x", workers=("a",))
    first.finish(first.runs()[0])
    client.submit("y", needs=("x",), workers=("b",))
    (run,) = second.runs()
    assert run.dependencies == (("x", (first.address,)),)
    second.send(m.Replicas(("x",)))
    second.finish(run)
    assert sorted(client.ready()) == ["x", "y"]
    first.leave()
    # Whoever is asking the first one for it learns who else has it.
    assert client.inbox == [m.KeyReady("x", 28, "int", None, (second.address,))]
    assert kit.states() == {"x": "memory", "y": "memory"}


def test_an_exception_fails_the_task_and_everything_needed_that_depends_on_it() -> None:
    kit = Kit()
    worker, client = kit.worker("w"), kit.client()
    client.submit("x")
    client.submit("y", needs=("x",))
    client.submit("z", needs=("y",))
    worker.fail(worker.runs()[0])
    failures = client.take(m.KeyFailed)
    assert [(failure.key, failure.blamed) for failure in failures] == [("x", "x"), ("y", "x"), ("z", "x")]
    assert failures[0].error == b"pickled"
    assert failures[0].details["worker"] == "w"
    assert kit.states() == {"x": "erred", "y": "erred", "z": "erred"}
    kit.assert_empty()


def test_retries_count_exceptions_and_the_last_one_is_reported_with_its_attempt() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x", retries=2)
    for attempt in (1, 2, 3):
        (run,) = worker.runs()
        assert run.extra.get("attempt", 1) == attempt
        assert client.failed() == []
        worker.fail(run)
    (failure,) = client.take(m.KeyFailed)
    assert failure.details["attempt"] == 3


def test_retry_starts_from_the_erred_root() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    client.submit("y", needs=("x",))
    client.send(m.Release(("x",)))
    worker.fail(worker.runs()[0])
    assert client.failed() == ["y"]
    worker.take(m.CancelRuns)
    client.send(m.Retry(("y",)))
    assert client.take(m.KeyPending) == [m.KeyPending("y")]
    assert worker.finish_all() == 2
    assert client.ready() == ["y"]


def test_cancel_drops_what_only_this_client_wants_and_what_depends_on_it() -> None:
    kit = Kit()
    worker, client, other = kit.worker(), kit.client("one"), kit.client("two")
    client.submit("x", "shared")
    client.submit("y", needs=("x",))
    other.submit("shared")
    runs = worker.runs()
    client.send(m.Cancel(("x", "shared"), False))
    assert sorted(dropped.key for dropped in client.take(m.Dropped)) == ["shared", "x", "y"]
    cancelled = {run for message in worker.take(m.CancelRuns) for run in message.runs}
    assert cancelled <= set(run_ids(runs))
    assert kit.states() == {"shared": "processing"}


def test_cancel_with_force_cancels_for_every_client() -> None:
    kit = Kit()
    kit.worker()
    client, other = kit.client("one"), kit.client("two")
    client.submit("x")
    other.submit("x")
    client.send(m.Cancel(("x",), True))
    assert [dropped.reason for dropped in other.take(m.Dropped)] == ["cancelled"]
    assert kit.states() == {}


def test_a_result_that_crosses_its_cancellation_is_stale_and_dropped() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    (run,) = worker.runs()
    client.send(m.Cancel(("x",), False))
    worker.finish(run)
    assert client.ready() == []
    assert kit.states() == {}


def test_the_same_task_again_keeps_the_options_of_the_first_submission() -> None:
    kit = Kit()
    worker, client, other = kit.worker("alice"), kit.client(), kit.client("other")
    client.submit("a", workers=("nobody",))
    other.submit("a", workers=("alice",), resources={"GPU": 1})
    assert worker.runs() == []
    assert kit.state.tasks["a"].options.workers == ("nobody",)
    assert kit.state.tasks["a"].options.resources == ()
    kit.worker("nobody").finish_all()
    assert client.ready() == other.ready() == ["a"]


def test_one_key_for_two_different_tasks_is_a_conflict_and_leaves_the_first_alone() -> None:
    kit = Kit()
    worker, client, other = kit.worker(), kit.client("one"), kit.client("two")
    client.submit("x", tokens=(b"a",))
    other.submit("x", tokens=(b"b",))
    (failure,) = other.take(m.KeyFailed)
    assert failure.kind == "conflict"
    worker.finish(worker.runs()[0])
    assert client.ready() == ["x"]
    other.submit("x", tokens=(b"a",))
    assert other.ready() == ["x"]


def test_a_conflict_names_what_still_needs_the_other_task() -> None:
    kit = Kit()
    kit.worker()
    client = kit.client()

    def conflict() -> str:
        client.submit("x", tokens=(b"b",))
        (failure,) = client.take(m.KeyFailed)
        return failure.text

    client.submit("x", tokens=(b"a",))
    assert conflict().endswith("give this one another key, or release every future of the first one")
    client.submit("y", "z", needs=("x",))
    client.send(m.Release(("x",)))
    assert conflict().endswith("or first release what was computed from that one: 'y' and 1 more")
    client.send(m.Release(("y",)))
    assert conflict().endswith("or first release what was computed from that one: 'z'")
    client.send(m.Release(("z",)))
    client.submit("x", tokens=(b"b",))
    assert client.failed() == []


def test_an_unknown_input_refuses_the_task() -> None:
    kit = Kit()
    kit.worker()
    client = kit.client()
    client.submit("y", needs=("never",))
    (failure,) = client.take(m.KeyFailed)
    assert failure.kind == "refused"
    assert "'never'" in failure.text
    kit.assert_empty()


def test_a_refused_task_is_never_run_without_its_input() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    client.submit("y", needs=("x", "never"))
    client.submit("z", needs=("y",))
    assert client.failed() == ["y", "z"]
    client.send(m.Retry(("y", "z")))
    assert sorted(client.failed()) == ["y", "z", "z"]
    assert [run.key for run in worker.runs()] == ["x"]


def test_a_client_that_leaves_releases_what_only_it_wanted() -> None:
    kit = Kit()
    worker, client, other = kit.worker(), kit.client("one"), kit.client("two")
    client.submit("mine", "ours")
    other.submit("ours")
    worker.finish_all()
    client.leave()
    assert kit.states() == {"ours": "memory"}
    kit.assert_empty()


def test_a_detached_task_runs_to_its_end_without_its_client() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    client.send(m.FireAndForget(("x",)))
    client.leave()
    assert kit.states() == {"x": "processing"}
    worker.finish_all()
    assert kit.states() == {}


def test_scattered_data_is_known_by_its_client_and_lost_with_its_worker() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    worker.send(m.Scattered("data", 100, "ndarray", f"c{client.peer}"))
    assert client.ready() == ["data"]
    client.submit("y", needs=("data",))
    worker.leave()
    failures = {failure.key: failure.kind for failure in client.take(m.KeyFailed)}
    assert failures == {"data": "lost", "y": "lost"}
    kit.assert_empty()


def test_data_of_a_client_that_has_left_is_freed() -> None:
    kit = Kit()
    worker = kit.worker()
    worker.send(m.Scattered("data", 100, "ndarray", "nobody"))
    assert worker.take(m.Free) == [m.Free(("data",))]


def test_a_replica_of_something_forgotten_is_freed() -> None:
    kit = Kit()
    worker = kit.worker()
    worker.send(m.Replicas(("old",)))
    assert worker.take(m.Free) == [m.Free(("old",))]


def test_an_input_that_cannot_be_had_is_computed_again_and_its_task_placed_anew() -> None:
    kit = Kit()
    first, second, client = kit.worker("a"), kit.worker("b"), kit.client()
    client.submit("x", workers=("a",))
    first.finish(first.runs()[0])
    client.submit("y", needs=("x",), workers=("b",))
    (run,) = second.runs()
    second.send(m.InputMissing(run.run, "x", first.address))
    assert first.take(m.Free) == [m.Free(("x",))]
    assert client.take(m.KeyPending) == [m.KeyPending("x")]
    first.finish_all()
    assert [run.key for run in second.runs()] == ["y"]


def test_a_client_that_cannot_reach_a_holder_gets_the_next_result() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish(worker.runs()[0], value=None)
    client.ready()
    client.send(m.FetchFailed("x", worker.address))
    assert client.take(m.KeyPending) == [m.KeyPending("x")]
    assert worker.finish_all() == 1
    assert client.ready() == ["x"]


def test_blobs_are_dropped_here_and_at_the_workers_with_their_last_reference() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit("x")
    worker.finish_all()
    client.send(m.ForgetBlobs((FUNCTION,)))
    assert worker.take(m.ForgetBlobs) == []
    client.send(m.Release(("x",)))
    assert worker.take(m.ForgetBlobs) == [m.ForgetBlobs((FUNCTION,))]
    with pytest.raises(ProtocolError, match="was not sent before it"):
        client.submit("y")


def test_a_blob_may_come_in_pieces() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.send(m.Blob(b"g" * 16, 6, b"abc"))
    with pytest.raises(ProtocolError):
        client.send(m.Submit(b"g" * 16, ("x",), (b"c",), (), (), (), {}))
    client.send(m.Blob(b"g" * 16, 6, b"def"))
    client.send(m.Submit(b"g" * 16, ("x",), (b"c",), (), (), (), {}))
    assert b"".join(blob.data for blob in worker.take(m.Blob)) == b"abcdef"


@pytest.mark.parametrize(
    "message",
    [
        m.Submit(FUNCTION, ("x",), (), (), (), (), {}),
        m.Submit(FUNCTION, ("x",), (b"c",), ((), ()), (), (), {}),
        m.Submit(b"?" * 16, ("x",), (b"c",), (), (), (), {}),
        m.Submit(FUNCTION, ("x",), (b"c",), (), (), (), {"priority": "high"}),
        m.Submit(FUNCTION, ("x",), (b"c",), (), (), (), {"resources": {"GPU": -1}}),
        m.Submit(FUNCTION, ("x",), (b"c",), (), (), (), {"resources": {"GPU": float("nan")}}),
        m.Submit(FUNCTION, ("x",), (b"c",), (), (), (), {"surprise": 1}),
        m.Query(1, "meaning", ()),
    ],
)
def test_a_client_that_makes_no_sense_is_at_fault_and_changes_nothing(message: m.Message) -> None:
    kit = Kit()
    kit.worker()
    client = kit.client()
    with pytest.raises(ProtocolError):
        client.send(message)
    assert kit.states() == {}


def test_a_peer_may_send_only_what_its_role_allows() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    with pytest.raises(ProtocolError):
        kit.core.handle(client.peer, m.RunFinished(RunId(1), 0, "", 0.0, None), 0.0)
    with pytest.raises(ProtocolError):
        kit.core.handle(worker.peer, m.Shutdown(), 0.0)


def test_messages_of_sessions_that_have_ended_are_ignored() -> None:
    kit = Kit()
    kit.core.handle(PeerId(99), m.Shutdown(), 0.0)
    assert kit.core.requests == []


def test_a_chain_of_ten_thousand_links_fails_and_is_forgotten_without_recursion() -> None:
    kit = Kit()
    kit.state.validating = False
    worker, client = kit.worker(), kit.client()
    keys = tuple(f"link-{number}" for number in range(10_000))
    rows = ((), *((key,) for key in keys[:-1]))
    client.send(m.Submit(FUNCTION, keys, (b"c",) * len(keys), rows, (), (), {}))
    worker.fail(worker.runs()[0])
    assert len(client.failed()) == len(keys)
    kit.assert_empty()


def test_the_name_of_an_executor_goes_with_the_runs_that_have_one() -> None:
    kit = Kit()
    client, worker = kit.client(), kit.worker(nthreads=2)
    client.submit("plain")
    client.submit("named", executor="gpu")
    assert {run.key: run.extra for run in worker.runs()} == {"plain": {}, "named": {"executor": "gpu"}}
    for wrong in ("", 1):
        with pytest.raises(ProtocolError, match="executor"):
            client.submit("wrong", executor=wrong)
