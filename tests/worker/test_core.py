"""The worker core alone: what it says and asks for, event by event."""

from math import inf

import pytest
import trio

from tests.worker.driven import ELSEWHERE, FUNCTION, HERE, THERE, Driven, run
from tests.worker.invariants import check, check_idle
from trio_dask.comm import ConnectionLost, PeerSilent
from trio_dask.config import WorkerSettings
from trio_dask.errors import ProtocolError
from trio_dask.ids import RunId
from trio_dask.protocol.messages import (
    Acquire,
    Blob,
    CancelRuns,
    Capacity,
    ForgetBlobs,
    Free,
    InputMissing,
    Leave,
    NotAcquired,
    Replicas,
    ReturnRuns,
    Run,
    RunFailed,
    RunFinished,
    RunsReturned,
    Scattered,
    SchedulerStops,
    Started,
    ToWorker,
)
from trio_dask.worker.core.effects import (
    CancelFetch,
    CancelRun,
    EndSession,
    FetchId,
    ForgetFunctions,
    FreeKeys,
    StartFetch,
    Then,
)
from trio_dask.worker.core.held_keys import Held
from trio_dask.worker.core_driver import CoreDriver


def test_a_run_without_inputs_is_offered_at_once_and_its_result_reported() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    assert driven.core.take_effects().offered == 1
    assert driven.finish(driven.take("a"), nbytes=28)
    assert driven.said() == [RunFinished(RunId(1), 28, "int", 0.5, None)]
    assert dict(driven.core.held) == {"a": Held(28, RunId(1), "int")}
    check_idle(driven.core)


def test_lower_priority_runs_first_and_arrival_decides_between_equals() -> None:
    driven = Driven(slots=4)
    driven.tell(run(1, "late", priority=5), run(2, "first", priority=1), run(3, "second", priority=1))
    for key in ("first", "second", "late"):
        driven.take(key)
    assert driven.core.ready.take() is None


def test_a_run_handed_ahead_waits_for_the_run_that_computes_its_input() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    assert driven.core.table.executing == 0
    driven.run_to_end("a")
    driven.run_to_end("b")
    check_idle(driven.core)


def test_a_slot_goes_on_with_what_follows_its_result_before_the_core_hears_of_it() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())), run(3, "c", ("b", ())))
    first = driven.take("a")
    second = driven.core.ready.take_chained(first)
    assert second is not None
    assert second.key == "b"
    assert driven.core.ready.take_chained(first) is None
    driven.tell(ReturnRuns((RunId(2), RunId(3))))
    assert driven.said() == [RunsReturned((RunId(3),))]
    assert driven.finish(first)
    assert driven.core.take_effects().offered == 0
    assert driven.finish(second)
    check_idle(driven.core)


def test_a_result_that_nobody_went_on_with_makes_its_follower_ready() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    first = driven.take("a")
    driven.finish(first)
    assert driven.core.ready.take_chained(first) is None
    driven.run_to_end("b")
    check_idle(driven.core)


def test_what_follows_a_cancelled_run_is_taken_by_nobody() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    first = driven.take("a")
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.said() == [InputMissing(RunId(2), "a", "")]
    assert driven.core.ready.take_chained(first) is None


def test_a_run_of_an_old_session_leads_nobody_who_follows_its_namesake() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"))
    old = driven.take("a")
    driven.core.reset(0.0)
    driven.core.session_began(HERE)
    driven.tell(Blob(FUNCTION, 1, b"f"), run(1, "a"), run(2, "b", ("a", ())))
    assert driven.core.ready.take_chained(old) is None
    new = driven.take("a")
    assert driven.core.ready.take_chained(new) is not None


def test_a_follower_lets_what_the_user_finds_more_urgent_pass() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    first = driven.take("a")
    driven.tell(Run(RunId(3), "urgent", FUNCTION, b"", (), 3, {"priority": -1}))
    assert driven.core.ready.take_chained(first) is None
    driven.finish(first)
    driven.run_to_end("urgent")
    driven.run_to_end("b")


def test_the_users_priority_comes_before_the_order_of_submission() -> None:
    driven = Driven(slots=4)
    given = {"late": 2**62, "first": -(2**62), "second": -1, "third": 0}
    driven.tell(
        *(
            Run(RunId(number), key, FUNCTION, b"", (), number, {"priority": priority} if priority else {})
            for number, (key, priority) in enumerate(given.items(), 1)
        )
    )
    for key in ("first", "second", "third", "late"):
        driven.take(key)


def test_a_run_handed_ahead_without_anyone_computing_its_input_is_handed_back() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", ())))
    assert driven.said() == [InputMissing(RunId(1), "a", "")]
    check_idle(driven.core)


def test_the_scheduler_hears_that_an_input_it_believed_to_be_here_is_not() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (HERE,))))
    assert driven.said() == [InputMissing(RunId(1), "a", HERE)]


@pytest.mark.parametrize("end", ["fails", "is retracted", "is cancelled", "is handed back"])
def test_when_a_run_gives_no_result_the_whole_chain_behind_it_is_handed_back(end: str) -> None:
    driven = Driven()
    driven.tell(run(1, "a", ("x", (THERE,))) if end == "is handed back" else run(1, "a"))
    driven.tell(run(2, "b", ("a", ())), run(3, "c", ("b", ())), run(4, "d", ("b", ()), ("a", ())))
    match end:
        case "fails":
            driven.core.failed(driven.take("a"), None, "ValueError: no", 0.1)
        case "is retracted":
            driven.tell(ReturnRuns((RunId(1),)))
        case "is cancelled":
            driven.tell(CancelRuns((RunId(1),)))
        case _:
            (start,) = driven.wanted()
            assert isinstance(start, StartFetch)
            driven.core.absent(start.fetch, "x")
            driven.core.fetch_ended(start.fetch, unreachable=False)
    missing = [message for message in driven.said() if isinstance(message, InputMissing) and message.key != "x"]
    assert sorted(message.run for message in missing) == [2, 3, 4]
    assert all(message.address == "" for message in missing)
    check_idle(driven.core)


def test_a_chain_of_thousands_unwinds_without_recursion() -> None:
    driven = Driven()
    core = driven.core
    core.handle(run(0, "k0"), 0.0)
    for number in range(1, 5000):
        core.handle(run(number, f"k{number}", (f"k{number - 1}", ())), 0.0)
    core.handle(CancelRuns((RunId(0),)), 0.0)
    assert len(core.take_effects().messages) == 4999
    check_idle(core)


def test_inputs_are_fetched_in_one_request_a_peer_and_reported_as_replicas() -> None:
    driven = Driven()
    driven.tell(run(1, "c", ("a", (THERE,)), ("b", (THERE,))), run(2, "d", ("b", (THERE,))))
    effects = driven.core.take_effects()
    assert effects.requests == [StartFetch(FetchId(1), THERE, ("a", "b"))]
    assert driven.core.fetched(FetchId(1), "b", 5)
    driven.run_to_end("d")
    assert driven.core.fetched(FetchId(1), "a", 7)
    driven.core.fetch_ended(FetchId(1), unreachable=False)
    driven.run_to_end("c")
    assert Replicas(("b", "a")) in driven.said()
    assert driven.core.held.nbytes == 5 + 7 + 20
    check_idle(driven.core)


def test_an_input_that_came_with_its_run_is_not_fetched_and_not_held() -> None:
    driven = Driven()
    driven.tell(run(1, "c", ("a", b"small"), ("b", (THERE,))), run(2, "d", ("a", b"small")))
    assert driven.take("d").dependencies == (("a", b"small"),)
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("b",))]
    assert not driven.core.held


def test_a_key_is_asked_of_every_holder_before_its_run_is_handed_back() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE, ELSEWHERE))))
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("a",))]
    driven.core.absent(FetchId(1), "a")
    driven.core.fetch_ended(FetchId(1), unreachable=False)
    assert driven.core.take_effects() == ([], [StartFetch(FetchId(2), ELSEWHERE, ("a",))], 0)
    driven.core.fetch_ended(FetchId(2), unreachable=True)
    assert driven.said() == [InputMissing(RunId(1), "a", ELSEWHERE)]
    check_idle(driven.core)


def test_a_silent_holder_is_not_said_to_have_lost_the_input() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE,))), run(2, "c", ("b", ())))
    driven.wanted()
    driven.core.fetch_ended(FetchId(1), unreachable=True, is_silent=True)
    assert driven.said() == [RunsReturned((RunId(1), RunId(2)))]
    check_idle(driven.core)


def test_with_a_silent_holder_another_one_is_asked() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE, ELSEWHERE))))
    driven.wanted()
    driven.core.fetch_ended(FetchId(1), unreachable=True, is_silent=True)
    assert driven.core.take_effects() == ([], [StartFetch(FetchId(2), ELSEWHERE, ("a",))], 0)


def test_a_copy_that_a_silent_holder_does_not_give_is_not_made() -> None:
    driven = Driven()
    driven.tell(Acquire((("a", (THERE,)),)))
    driven.wanted()
    driven.core.fetch_ended(FetchId(1), unreachable=True, is_silent=True)
    assert driven.said() == [NotAcquired(("a",))]


@pytest.mark.parametrize(("failure", "is_silent"), [(PeerSilent("no word"), True), (ConnectionLost("cut"), False)])
async def test_the_engine_tells_who_is_silent_from_who_is_gone(
    monkeypatch: pytest.MonkeyPatch, failure: OSError, is_silent: bool
) -> None:
    engine = CoreDriver(WorkerSettings())
    told: list[dict[str, bool]] = []

    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise failure

    scope = engine._fetches[FetchId(1)] = trio.CancelScope()
    monkeypatch.setattr(engine._peers, "fetch", fail)
    monkeypatch.setattr(engine._core, "fetch_ended", lambda _, **how: told.append(how))
    await engine._fetch(StartFetch(FetchId(1), THERE, ("a",)), scope)
    assert told == [{"unreachable": True, "is_silent": is_silent}]


def test_a_holder_that_was_asked_is_not_asked_again_for_whoever_comes_later() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE,))))
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("a",))]
    driven.tell(run(2, "c", ("a", (THERE,))))
    driven.core.absent(FetchId(1), "a")
    driven.core.fetch_ended(FetchId(1), unreachable=False)
    assert driven.core.take_effects() == (
        [InputMissing(RunId(1), "a", THERE), InputMissing(RunId(2), "a", THERE)],
        [],
        0,
    )
    check_idle(driven.core)


def test_when_a_peer_is_gone_the_keys_that_wait_for_it_move_on_at_once() -> None:
    driven = Driven(keys_per_fetch=1, fetches_per_address=1)
    driven.tell(run(1, "x", ("a", (THERE,))), run(2, "y", ("b", (THERE,))))
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("a",))]
    driven.tell(run(3, "z", ("b", (ELSEWHERE,))))
    driven.core.fetch_ended(FetchId(1), unreachable=True)
    effects = driven.core.take_effects()
    assert effects.messages == [InputMissing(RunId(1), "a", THERE)]
    assert effects.requests == [StartFetch(FetchId(2), ELSEWHERE, ("b",))]


def test_fetches_stay_within_their_limits_and_spread_over_the_holders() -> None:
    driven = Driven(fetches=3, fetches_per_address=2, keys_per_fetch=2)
    inputs = [(f"k{number}", (THERE, ELSEWHERE)) for number in range(20)]
    driven.tell(run(1, "all", *inputs))
    seen: list[str] = []
    pending = [request for request in driven.wanted() if isinstance(request, StartFetch)]
    addresses = {request.address for request in pending}
    while pending:
        fetch = pending.pop(0)
        assert len(fetch.keys) <= 2
        for key in fetch.keys:
            assert driven.core.fetched(fetch.fetch, key, 1)
            seen.append(key)
        driven.core.fetch_ended(fetch.fetch, unreachable=False)
        check(driven.core)
        pending += [request for request in driven.wanted() if isinstance(request, StartFetch)]
    assert sorted(seen) == sorted(key for key, _ in inputs)
    assert addresses == {THERE, ELSEWHERE}
    driven.run_to_end("all")


def test_a_fetch_that_nobody_needs_any_more_is_cancelled_and_its_values_are_turned_away() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE,))))
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("a",))]
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.wanted() == [CancelFetch(FetchId(1))]
    assert not driven.core.fetched(FetchId(1), "a", 5)
    driven.core.fetch_ended(FetchId(1), unreachable=True)
    assert driven.said() == []
    check_idle(driven.core)


def test_a_result_computed_here_makes_its_fetch_superfluous() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", (THERE,))))
    assert driven.wanted() == [StartFetch(FetchId(1), THERE, ("a",))]
    driven.run_to_end("a")
    assert driven.wanted() == [CancelFetch(FetchId(1))]
    driven.run_to_end("b")


def test_a_failed_fetch_leaves_a_run_waiting_for_the_run_here_that_computes_its_input() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", (THERE,))))
    (start,) = driven.wanted()
    assert isinstance(start, StartFetch)
    driven.core.fetch_ended(start.fetch, unreachable=True)
    check(driven.core)
    assert driven.said() == []
    driven.run_to_end("a")
    driven.run_to_end("b")


def test_only_what_no_slot_has_taken_is_handed_back() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c", ("a", ())))
    taken = driven.take("a")
    driven.tell(ReturnRuns((RunId(1), RunId(2), RunId(3), RunId(77))))
    assert driven.said() == [RunsReturned((RunId(2), RunId(3)))]
    assert driven.finish(taken)
    assert driven.core.ready.take() is None
    check_idle(driven.core)


def test_a_cancelled_run_is_stopped_and_its_outcome_dropped() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    taken = driven.take("a")
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.wanted() == [CancelRun(taken)]
    assert not driven.finish(taken)
    assert not driven.core.held
    assert driven.said() == []
    check_idle(driven.core)


def test_a_cancellation_that_crosses_the_result_drops_it() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b"))
    driven.run_to_end("a")
    driven.run_to_end("b")
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.wanted() == [FreeKeys(("a",))]
    assert list(driven.core.held) == ["b"]


def test_a_slot_that_ignores_a_cancellation_is_missed_after_a_grace_and_welcomed_back() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"))
    taken = driven.take("a")
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.core.slots.next_deadline() == 1.0
    driven.core.tick(0.9)
    assert driven.said() == []
    driven.core.tick(1.0)
    check(driven.core)
    assert driven.said() == [Capacity(1)]
    driven.core.failed(taken, None, "late", 9.0)
    assert driven.said() == [Capacity(2)]
    assert driven.core.slots.next_deadline() == inf
    check_idle(driven.core)


def test_with_no_slot_left_nothing_waits_for_one() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c", ("b", ())))
    taken = driven.take("a")
    driven.tell(CancelRuns((RunId(1),)))
    driven.core.tick(1.0)
    check(driven.core)
    assert driven.said() == [Capacity(0), RunsReturned((RunId(2), RunId(3)))]
    driven.tell(run(4, "d"))
    assert driven.said() == [RunsReturned((RunId(4),))]
    driven.finish(taken)
    driven.tell(run(5, "d"))
    driven.run_to_end("d")
    check_idle(driven.core)


def test_a_time_limit_counts_from_the_start_and_fails_the_run() -> None:
    driven = Driven()
    driven.tell(run(1, "a", time_limit=3), run(2, "b", ("a", ())))
    taken = driven.take("a")
    driven.core.started([taken], 10.0)
    check(driven.core)
    assert driven.core.slots.next_deadline() == 13.0
    driven.core.tick(12.9)
    assert driven.said() == [Started((RunId(1),))]
    driven.core.tick(13.0)
    check(driven.core)
    effects = driven.core.take_effects()
    failed, missing = effects.messages
    assert isinstance(failed, RunFailed)
    assert (failed.run, failed.kind, failed.duration_s) == (1, "timeout", 3.0)
    assert missing == InputMissing(RunId(2), "a", "")
    assert effects.requests == [CancelRun(taken)]
    assert not driven.finish(taken)
    check_idle(driven.core)


def test_a_run_is_announced_once_and_never_after_its_end() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a", announce=True), run(2, "b"))
    first, second = driven.take("a"), driven.take("b")
    driven.core.started([first], 0.0)
    driven.core.started([first, second], 0.0)
    driven.finish(second)
    driven.core.started([second], 0.0)
    assert [message for message in driven.said() if isinstance(message, Started)] == [
        Started((RunId(1),)),
        Started((RunId(2),)),
    ]
    driven.finish(first)
    check_idle(driven.core)


def test_an_input_that_is_gone_when_the_slot_looks_hands_the_run_back() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    driven.run_to_end("a")
    driven.tell(run(2, "b", ("a", ())), Free(("a", "unknown")))
    assert driven.wanted() == [FreeKeys(("a",))]
    driven.core.input_gone(driven.take("b"), "a")
    assert driven.said() == [InputMissing(RunId(2), "a", "")]
    check_idle(driven.core)


def test_a_value_put_by_a_client_is_reported_and_used() -> None:
    driven = Driven()
    assert driven.core.stored("x", 100, "list", "client-1", 0.0)
    assert driven.said() == [Scattered("x", 100, "list", "client-1")]
    driven.tell(run(1, "a", ("x", (HERE,))))
    driven.run_to_end("a")


def test_blobs_outlive_the_runs_that_came_before_they_were_forgotten() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), ForgetBlobs((FUNCTION,)))
    assert driven.wanted() == []
    driven.run_to_end("a")
    assert driven.wanted() == [ForgetFunctions((FUNCTION,))]
    with pytest.raises(ProtocolError, match="never sent"):
        driven.core.handle(run(2, "b"), 0.0)


def test_a_blob_sent_anew_is_not_forgotten() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), ForgetBlobs((FUNCTION,)), Blob(FUNCTION, 1, b"f"))
    driven.run_to_end("a")
    assert driven.wanted() == []
    driven.tell(run(2, "b"))


def test_a_blob_in_pieces_is_complete_when_all_have_come() -> None:
    driven = Driven()
    big = b"b" * 16
    driven.tell(Blob(big, 5, b"abc"))
    assert big not in driven.core.blobs.complete
    driven.tell(Blob(big, 5, b"de"))
    assert driven.core.blobs.complete[big] == b"abcde"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(run(1, "again"), id="a run number twice"),
        pytest.param(Run(RunId(9), "k", b"?" * 16, b"", (), 0, {}), id="a function that was never sent"),
        pytest.param(run(9, "k", time_limit="soon"), id="a time limit that is no number"),
        pytest.param(run(9, "k", executor=1), id="an executor that is no text"),
        pytest.param(Blob(b"b" * 16, 1, b"long"), id="a blob longer than itself"),
    ],
)
def test_nonsense_from_the_scheduler_is_a_protocol_error_and_changes_nothing(message: ToWorker) -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    with pytest.raises(ProtocolError):
        driven.core.handle(message, 0.0)
    check(driven.core)
    driven.run_to_end("a")


def test_the_end_of_a_session_drops_everything_and_the_next_one_knows_of_stuck_slots() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "held"))
    driven.run_to_end("held")
    driven.tell(run(2, "taken"), run(3, "fetching", ("x", (THERE,))), run(4, "ready", priority=1))
    taken = driven.take("taken")
    driven.core.take_effects()
    driven.core.session_lost(5.0)
    driven.core.reset(5.0)
    check(driven.core)
    effects = driven.core.take_effects()
    assert effects.requests == [
        CancelRun(taken),
        CancelFetch(FetchId(1)),
        FreeKeys(("held",)),
        ForgetFunctions((FUNCTION,)),
    ]
    assert driven.core.ready.take() is None
    assert not driven.core.stored("late", 1, "int", "client", 5.0)
    driven.core.tick(6.0)
    driven.core.session_began(HERE)
    assert driven.said() == [Capacity(1)]
    # The new scheduler counts its runs from one again, so the old outcome has the number of a new run.
    driven.tell(Blob(FUNCTION, 1, b"f"), run(2, "taken"))
    assert not driven.finish(taken)
    assert driven.said() == [Capacity(2)]
    driven.run_to_end("taken")
    check_idle(driven.core)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        (Leave("restart", restart=True), EndSession("restart", Then.RESTART)),
        (Leave("no longer needed", restart=False), EndSession("no longer needed", Then.LEAVE)),
        (SchedulerStops(), EndSession("the scheduler stopped", Then.SUCCESSOR)),
    ],
)
def test_the_scheduler_can_end_the_session(message: ToWorker, request_: EndSession) -> None:
    driven = Driven()
    driven.tell(message)
    assert driven.wanted() == [request_]
