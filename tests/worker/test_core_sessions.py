"""The worker core when the scheduler is lost: what it keeps, what it says when it is taken back, what it forgets."""

import pytest

from tests.worker.driven import FUNCTION, HERE, THERE, Driven, run
from tests.worker.invariants import check, check_idle
from trio_dask.errors import ProtocolError
from trio_dask.ids import RunId
from trio_dask.protocol.messages import (
    Acquire,
    Blob,
    CancelRuns,
    Capacity,
    Drain,
    Free,
    InputMissing,
    Inventory,
    Lost,
    NotAcquired,
    Replicas,
    RunFailed,
    RunFinished,
    RunsReturned,
    Scattered,
    Started,
)
from trio_dask.worker.core import resume
from trio_dask.worker.core.effects import CancelFetch, CancelRun, ForgetFunctions, FreeKeys


def inventory(*held: tuple[str, int], runs: tuple[int, ...] = ()) -> Inventory:
    rows = tuple((key, number, 10, "int" if number >= 0 else "") for key, number in held)
    return Inventory(rows, tuple(RunId(number) for number in runs))


def test_results_and_runs_in_every_state_outlive_a_lost_link() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "done"))
    driven.run_to_end("done")
    driven.tell(run(2, "taken"), run(3, "waiting", ("taken", ()), ("x", (THERE,))), run(4, "ready", priority=1))
    taken = driven.take("taken")
    driven.lose()
    assert driven.wanted() == []
    assert driven.come_back() == [Capacity(2), inventory(("done", 1), runs=(2, 3, 4))]
    assert driven.finish(taken)
    assert driven.said() == [RunFinished(RunId(2), 10, "int", 0.5, None)]


def test_what_happens_without_a_scheduler_is_told_by_the_inventory() -> None:
    driven = Driven(slots=3)
    driven.tell(run(1, "a"), run(2, "b", ("a", ())), run(3, "c", ("x", (THERE,))), run(4, "d", ("y", (THERE,))))
    start = driven.fetch()
    driven.lose()
    driven.run_to_end("a")
    assert driven.core.take_effects().offered == 1
    driven.run_to_end("b")
    assert driven.core.fetched(start.fetch, "x", 10)
    driven.core.absent(start.fetch, "y")
    driven.core.fetch_ended(start.fetch, unreachable=False)
    check(driven.core)
    # The run that had to be handed back is not here any more; that nobody heard of it does not matter.
    assert driven.come_back() == [Capacity(3), inventory(("a", 1), ("b", 2), ("x", -1), runs=(3,))]
    driven.run_to_end("c")


def test_an_inventory_names_no_run_that_has_ended_however_it_ended() -> None:
    driven = Driven(slots=4)
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c"), run(4, "d"), run(5, "e", ("d", ())))
    first, second, third, fourth = (driven.take(key) for key in "abcd")
    driven.tell(CancelRuns((RunId(1),)))
    driven.lose()
    assert not driven.finish(first)
    driven.core.failed(second, None, "ValueError: no", 0.1)
    driven.core.input_gone(third, "x")
    driven.core.declined(fourth)
    check(driven.core)
    assert driven.come_back()[-1] == Inventory((), ())
    check_idle(driven.core)


def test_failures_are_told_again_whether_or_not_they_arrived() -> None:
    driven = Driven(slots=3)
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c", time_limit=5))
    failures = [RunFailed(RunId(number), "exception", b"e", "ValueError: no", 0.1) for number in (1, 2)]
    driven.core.failed(driven.take("a"), b"e", "ValueError: no", 0.1)
    assert driven.said() == [failures[0]]
    driven.lose()
    driven.core.failed(driven.take("b"), b"e", "ValueError: no", 0.1)
    driven.core.started([driven.take("c")], 0.0)
    driven.core.tick(5.0)
    words = driven.come_back()
    timeout = words[3]
    assert isinstance(timeout, RunFailed)
    assert timeout.kind == "timeout"
    assert words == [Capacity(3), *failures, timeout, Inventory((), ())]


def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(resume, "MAX_REMEMBERED_BYTES", 25)
    driven = Driven()
    for number, size in enumerate((1, 1, 1, 1, 20), 1):
        driven.tell(run(number, f"k{number}"))
        driven.core.failed(driven.take(f"k{number}"), bytes(size), "no", 0.1)
    driven.lose()
    told = [message.run for message in driven.come_back() if isinstance(message, RunFailed)]
    assert told == [4, 5]


def test_a_value_that_a_client_has_put_here_is_told_again_while_that_may_be_news() -> None:
    driven = Driven()
    for key, since in (("old", 0.0), ("freed", 90.0), ("new", 100.0)):
        assert driven.core.stored(key, 10, "list", "client", since)
    driven.tell(Free(("freed",)))
    driven.now = 110.0
    driven.lose()
    assert not driven.core.stored("refused", 10, "list", "client", driven.now)
    capacity, stored, here = driven.come_back()
    assert (capacity, stored) == (Capacity(1), Scattered("new", 10, "list", "client"))
    assert here == Inventory((("old", -1, 10, "list"), ("new", -1, 10, "list")), ())


def test_runs_that_were_announced_are_announced_again() -> None:
    driven = Driven()
    driven.tell(run(1, "a", announce=True))
    taken = driven.take("a")
    driven.core.started([taken], 0.0)
    driven.lose()
    assert driven.come_back() == [Capacity(1), Started((RunId(1),)), Inventory((), (RunId(1),))]


def test_a_returned_worker_says_how_many_slots_it_has_even_if_it_is_all_of_them() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"))
    taken = driven.take("a")
    driven.tell(CancelRuns((RunId(1),)))
    driven.core.tick(1.0)
    assert driven.said() == [Capacity(1)]
    driven.lose()
    driven.finish(taken)
    assert driven.come_back()[0] == Capacity(2)


def test_functions_that_current_runs_do_not_need_fade_and_may_be_sent_again() -> None:
    driven = Driven()
    half = b"h" * 16
    driven.tell(run(1, "a"), Blob(half, 4, b"ab"))
    driven.lose()
    driven.come_back()
    driven.tell(Blob(half, 4, b"ab"), Blob(half, 4, b"cd"))  # from the start, not where it was cut off
    assert driven.core.blobs.complete[half] == b"abcd"
    driven.run_to_end("a")
    assert driven.wanted() == [ForgetFunctions((FUNCTION,))]
    with pytest.raises(ProtocolError, match="never sent"):
        driven.core.handle(run(2, "b"), 0.0)
    driven.tell(Blob(FUNCTION, 1, b"f"), run(3, "b"))
    driven.run_to_end("b")


def test_what_is_not_wanted_any_more_is_freed_and_cancelled_after_a_return_as_at_any_time() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    driven.run_to_end("a")
    driven.tell(run(2, "b"), run(3, "c"))
    taken = driven.take("b")
    driven.lose()
    driven.come_back()
    driven.tell(Free(("a",)), CancelRuns((RunId(2), RunId(3))))
    requests = driven.wanted()
    assert FreeKeys(("a",)) in requests
    assert CancelRun(taken) in requests
    assert driven.core.ready.take() is None


def test_a_worker_can_be_lost_again_and_again() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    taken = driven.take("a")
    for _ in range(3):
        driven.lose()
        assert driven.come_back() == [Capacity(1), inventory(runs=(1,))]
    driven.lose()
    driven.finish(taken)
    assert driven.come_back() == [Capacity(1), inventory(("a", 1))]
    check_idle(driven.core)


def test_another_scheduler_hears_of_nothing() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c", ("x", (THERE,))), Acquire((("y", (THERE,)),)))
    driven.run_to_end("a")
    driven.core.failed(driven.take("b"), None, "no", 0.1)
    driven.core.stored("z", 10, "int", "client", 0.0)
    driven.lose()
    driven.core.reset(0.0)
    check_idle(driven.core)
    driven.core.session_began(HERE)
    assert driven.said() == []
    assert not driven.core.held
    driven.lose()
    assert driven.come_back() == [Capacity(2), Inventory((), ())]


def test_what_there_is_no_room_for_in_an_inventory_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "MAX_INVENTORY_BYTES", 140)
    driven = Driven()
    for number in range(3):
        driven.tell(run(number, f"k{number}"))
        driven.run_to_end(f"k{number}")
    driven.lose()
    driven.core.session_began(HERE, returned=True)
    effects = driven.core.take_effects()
    assert effects.messages[-1] == inventory(("k0", 0), ("k1", 1))
    assert effects.requests == [FreeKeys(("k2",)), ForgetFunctions((FUNCTION,))]


# ------------------------------------------------------------------------------------------------------- acquiring


def test_keys_to_be_acquired_are_fetched_and_kept_without_any_run() -> None:
    driven = Driven()
    driven.tell(Acquire((("a", (THERE,)), ("b", (THERE,)))))
    start = driven.fetch()
    assert start.keys == ("a", "b")
    assert driven.core.fetched(start.fetch, "a", 10)
    driven.core.absent(start.fetch, "b")
    driven.core.fetch_ended(start.fetch, unreachable=False)
    check_idle(driven.core)
    assert sorted(map(repr, driven.said())) == sorted(map(repr, [Replicas(("a",)), NotAcquired(("b",))]))
    assert list(driven.core.held) == ["a"]


def test_a_key_that_is_here_already_is_acquired_and_one_without_holders_is_not() -> None:
    driven = Driven()
    driven.core.stored("a", 10, "int", "client", 0.0)
    driven.core.take_effects()
    driven.tell(Acquire((("a", (THERE,)), ("b", ()), ("c", (HERE,)))))
    assert driven.said() == [NotAcquired(("b", "c")), Replicas(("a",))]


def test_freeing_a_key_before_it_arrives_stops_its_acquisition_unless_a_run_needs_it() -> None:
    driven = Driven()
    driven.tell(Acquire((("a", (THERE,)),)), Acquire((("b", (THERE,)),)), run(1, "c", ("b", (THERE,))))
    first = driven.fetch()
    driven.tell(Free(("a", "b")))
    assert not driven.core.fetched(first.fetch, "a", 10)
    assert driven.core.fetched(first.fetch, "b", 10)
    driven.core.fetch_ended(first.fetch, unreachable=False)
    driven.run_to_end("c")
    check_idle(driven.core)
    driven.tell(Acquire((("d", (THERE,)),)))
    number = driven.fetch().fetch
    driven.tell(Free(("d",)))
    assert driven.wanted() == [CancelFetch(number)]
    check_idle(driven.core)


def test_an_acquisition_goes_on_when_the_run_that_wanted_the_same_key_is_cancelled() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE,))), Acquire((("a", (THERE,)),)))
    start = driven.fetch()
    driven.tell(CancelRuns((RunId(1),)))
    assert driven.wanted() == []
    assert driven.core.fetched(start.fetch, "a", 10)
    assert driven.said() == [Replicas(("a",))]


def test_a_run_here_may_give_what_was_to_be_acquired() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), Acquire((("a", (THERE,)),)))
    start = driven.fetch()
    driven.run_to_end("a")
    effects = driven.core.take_effects()
    assert effects.requests == [CancelFetch(start.fetch)]
    assert effects.messages == [RunFinished(RunId(1), 10, "int", 0.5, None), Replicas(("a",))]


def test_an_acquisition_and_a_run_that_both_get_nothing_both_hear_so() -> None:
    driven = Driven()
    driven.tell(run(1, "b", ("a", (THERE,))), Acquire((("a", (THERE,)),)))
    driven.core.fetch_ended(driven.fetch().fetch, unreachable=True)
    assert driven.said() == [NotAcquired(("a",)), InputMissing(RunId(1), "a", THERE)]
    check_idle(driven.core)


def test_an_acquisition_ends_with_its_session_and_the_scheduler_hears_so() -> None:
    driven = Driven()
    driven.tell(Acquire((("a", (THERE,)),)))
    driven.core.take_effects()
    driven.lose()
    check_idle(driven.core)
    assert driven.come_back() == [Capacity(1), NotAcquired(("a",)), Inventory((), ())]
    driven.lose()
    assert driven.come_back() == [Capacity(1), Inventory((), ())]


# ------------------------------------------------------------------------------------------------- leaving, pausing


def test_a_draining_worker_hands_back_what_has_not_started_and_finishes_the_rest() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b"), run(3, "c", ("a", ())), run(4, "d", ("x", (THERE,))))
    taken = driven.take("a")
    start = driven.fetch()
    driven.core.drain_began("signal")
    check(driven.core)
    effects = driven.core.take_effects()
    assert effects.messages == [RunsReturned((RunId(2), RunId(3), RunId(4))), Drain("signal")]
    assert effects.requests == [CancelFetch(start.fetch)]
    driven.tell(run(5, "e"), Acquire((("y", (THERE,)),)))
    assert driven.said() == [RunsReturned((RunId(5),)), NotAcquired(("y",))]
    assert driven.finish(taken)
    driven.core.drain_began("again")
    assert driven.said() == [RunFinished(RunId(1), 10, "int", 0.5, None)]
    check_idle(driven.core)


def test_a_draining_worker_that_comes_back_says_so_after_its_inventory() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    driven.take("a")
    driven.core.drain_began("lifetime")
    driven.lose()
    assert driven.come_back() == [Capacity(1), inventory(runs=(1,)), Drain("lifetime")]
    driven.tell(run(2, "b"))
    assert driven.said() == [RunsReturned((RunId(2),))]


def test_a_follower_that_a_slot_has_taken_is_finished_by_a_draining_worker() -> None:
    driven = Driven()
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    first = driven.take("a")
    second = driven.core.ready.take_chained(first)
    assert second is not None
    driven.core.drain_began("signal")
    assert driven.said() == [Drain("signal")]
    assert driven.finish(first)
    assert driven.finish(second)


def test_a_paused_worker_hands_back_its_queue_and_takes_nothing_until_it_resumes() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"), run(2, "b"))
    taken = driven.take("a")
    driven.core.set_paused(True)
    driven.core.set_paused(True)
    assert driven.said() == [Capacity(0), RunsReturned((RunId(2),))]
    driven.tell(run(3, "c"), Acquire((("y", (THERE,)),)))
    assert driven.said() == [RunsReturned((RunId(3),)), NotAcquired(("y",))]
    assert driven.finish(taken)
    driven.core.take_effects()
    driven.core.set_paused(False)
    driven.core.set_paused(False)
    assert driven.said() == [Capacity(2)]
    driven.tell(run(4, "d"))
    driven.run_to_end("d")


def test_pauses_stuck_slots_and_draining_compose() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"))
    taken = driven.take("a")
    driven.core.set_paused(True)
    driven.tell(CancelRuns((RunId(1),)))
    driven.core.tick(1.0)
    check(driven.core)
    assert driven.core.capacity == 0
    driven.core.set_paused(False)
    check(driven.core)
    assert driven.said()[-1] == Capacity(1)
    driven.core.drain_began("signal")
    driven.core.set_paused(True)
    driven.core.set_paused(False)
    driven.finish(taken)
    check(driven.core)
    driven.tell(run(2, "b"))
    assert driven.said()[-1] == RunsReturned((RunId(2),))


def test_a_pause_outlives_the_session() -> None:
    driven = Driven()
    driven.core.set_paused(True)
    driven.lose()
    assert driven.come_back() == [Capacity(0), Inventory((), ())]
    driven.lose()
    driven.core.reset(0.0)
    driven.core.session_began(HERE)
    assert driven.said() == [Capacity(0)]


def test_values_that_could_not_be_kept_are_reported_and_not_held() -> None:
    driven = Driven()
    driven.tell(run(1, "a"))
    driven.run_to_end("a")
    driven.core.take_effects()
    driven.core.lost_values(["a", "unknown"])
    check(driven.core)
    assert driven.core.take_effects().messages == [Lost(("a",))]
    driven.core.lost_values(["a"])
    assert driven.said() == []
    driven.lose()
    assert driven.come_back()[-1] == Inventory((), ())


def test_a_run_that_no_slot_may_begin_is_handed_back_with_what_waits_for_it() -> None:
    driven = Driven(slots=2)
    driven.tell(run(1, "a"), run(2, "b", ("a", ())))
    driven.core.declined(driven.take("a"))
    check(driven.core)
    assert driven.said() == [RunsReturned((RunId(1),)), InputMissing(RunId(2), "a", "")]
    check_idle(driven.core)
