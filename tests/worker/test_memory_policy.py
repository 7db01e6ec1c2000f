"""What is decided when memory becomes scarce: limits, pauses, and what to do about it, as a model shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.config import WorkerSettings
from trio_dask.worker.core import memory_policy
from trio_dask.worker.core.memory_policy import (
    Figures,
    GiveBack,
    MakeRoom,
    MemoryLimits,
    MemoryPolicy,
    PauseRule,
    RemoveFiles,
    RoomMade,
    SetPaused,
)

MB = 10**6
LIMIT = 100 * MB


def limits(**settings: Any) -> MemoryLimits | None:
    return MemoryLimits.of(WorkerSettings(scheduler="tcp://x", **{"memory_limit_bytes": LIMIT, **settings}))


def test_the_limits_are_shares_of_the_memory_limit() -> None:
    found = limits()
    assert found is not None
    assert (found.managed_high, found.process_high, found.pause_above) == (60 * MB, 70 * MB, 80 * MB)
    assert found.managed_low < found.managed_high
    assert found.process_low < found.process_high
    assert found.process_high < found.pause_below < found.pause_above


def test_each_of_them_can_be_off_and_all_are_without_a_memory_limit() -> None:
    assert limits(memory_limit_bytes=None) is None
    assert limits(spill_managed=None, spill_process=None, pause_process=None) is None
    only_pause = limits(spill_managed=None, spill_process=None)
    assert only_pause is not None
    assert not only_pause.spills
    no_pause = limits(pause_process=None)
    assert no_pause is not None
    assert no_pause.pause_above == float("inf")


def rule() -> PauseRule:
    return PauseRule(80, 75, step_bytes=5, patience_s=10)


def test_a_worker_pauses_above_one_mark_and_resumes_below_a_lower_one() -> None:
    pause = rule()
    readings = [79, 80, 81, 78, 76, 75, 74, 78, 80, 81]
    judged = [pause.judge(0, reading, stuck=False) for reading in readings]
    assert judged == [False, False, True, True, True, True, False, False, False, True]


def test_a_paused_worker_that_is_stuck_resumes_after_a_while_and_pauses_at_the_next_step() -> None:
    pause = rule()
    assert pause.judge(0, 90, stuck=True)
    assert pause.judge(1, 90, stuck=True)
    assert pause.judge(10.9, 90, stuck=True)
    assert not pause.judge(11, 90, stuck=True)
    assert not pause.judge(12, 95, stuck=False)
    assert pause.judge(13, 96, stuck=False)
    assert not pause.judge(14, 89, stuck=False)
    assert not pause.judge(15, 74, stuck=False)  # as usual again
    assert pause.judge(16, 81, stuck=False)


def test_who_is_not_stuck_all_the_time_has_not_waited() -> None:
    pause = rule()
    now = 0.0
    for _ in range(100):
        assert pause.judge(now, 90, stuck=True)
        now += 9.9
        assert pause.judge(now, 90, stuck=False)


@given(st.lists(st.tuples(st.integers(0, 120), st.booleans()), min_size=1))
def test_nobody_is_paused_for_ever_without_a_reason(history: list[tuple[int, bool]]) -> None:
    pause = rule()
    now = 0.0
    for reading, stuck in history:
        now += 1
        pause.judge(now, reading, stuck=stuck)
    for _ in range(12):
        now += 1
        pause.judge(now, history[-1][0], stuck=True)
    assert not pause.paused


@pytest.fixture
def policy() -> MemoryPolicy:
    found = limits()
    assert found is not None
    return MemoryPolicy(found)


AMOUNTS = st.integers(0, 120).map(lambda number: number * MB)


@given(kept=AMOUNTS, process=AMOUNTS, values=AMOUNTS, wanted=AMOUNTS)
def test_kept_memory_is_given_back_before_anything_else(kept: int, process: int, values: int, wanted: int) -> None:
    found = limits()
    assert found is not None
    policy = MemoryPolicy(found)
    figures = Figures(process + kept, kept=kept, values=values, wanted=wanted, has_garbage=True)
    actions = policy.step(0, figures).actions
    if kept and process + kept + wanted > found.scarce_above:
        assert actions == (GiveBack(),)
        assert not policy.paused
        assert not policy.is_working
    else:
        assert GiveBack() not in actions


def test_room_is_made_above_a_high_limit_until_below_the_low_one(policy: MemoryPolicy) -> None:
    asked: list[bool] = []
    for process in (60, 70, 71, 65, 60, 59, 65):
        (action,) = policy.step(0, Figures(process * MB, spillable=50 * MB)).actions or (None,)
        asked.append(isinstance(action, MakeRoom))
        if action is not None:
            policy.work_ended(0, RoomMade(1), 50 * MB)
    assert asked == [False, False, True, True, True, False, False]


def test_what_somebody_waits_for_counts_until_there_is_room(policy: MemoryPolicy) -> None:
    (action,) = policy.step(0, Figures(55 * MB, wanted=20 * MB)).actions
    assert action == MakeRoom(4 * 2**20, also_used=False, may_collect=True)
    policy.work_ended(0, RoomMade(10 * MB), 0)
    assert policy.step(0, Figures(45 * MB)).actions != ()
    policy.work_ended(0, RoomMade(10 * MB), 0)
    assert policy.step(0, Figures(35 * MB)).actions == ()
    assert policy.step(0, Figures(65 * MB)).actions == ()


def test_nothing_else_is_asked_for_before_work_has_ended_but_a_pause(policy: MemoryPolicy) -> None:
    assert policy.step(0, Figures(75 * MB, has_garbage=True)).actions != ()
    assert policy.step(1, Figures(85 * MB, has_garbage=True)).actions == (SetPaused(True, is_news=True),)
    policy.work_ended(2, RoomMade(10 * MB), 0)
    assert policy.step(2, Figures(50 * MB, has_garbage=True)).actions == (
        SetPaused(False, is_news=False),
        RemoveFiles(),
    )
    assert policy.step(2, Figures(50 * MB, has_garbage=True)).actions == ()
    policy.work_ended(3, None, 0)
    assert policy.step(3, Figures(50 * MB)).actions == ()


def test_values_in_use_are_spilled_only_in_need(policy: MemoryPolicy) -> None:
    def also_used(figures: Figures) -> bool:
        (action,) = (found for found in policy.step(0, figures).actions if isinstance(found, MakeRoom))
        policy.work_ended(0, RoomMade(1), 0)
        return action.also_used

    assert not also_used(Figures(75 * MB, values=50 * MB))
    assert also_used(Figures(81 * MB, values=50 * MB))
    assert also_used(Figures(70 * MB, values=61 * MB))
    assert not also_used(Figures(70 * MB, values=61 * MB, spilled=2 * MB))


def test_a_failed_attempt_is_repeated_after_a_while_or_when_there_is_more_to_spill(policy: MemoryPolicy) -> None:
    figures = Figures(75 * MB, spillable=5 * MB, has_garbage=False)
    for start in (0.0, memory_policy.RETRY_S):
        assert len(policy.step(start, figures).actions) == 1
        policy.work_ended(start, RoomMade(0), figures.spillable)
        step = policy.step(start + 0.75, figures)
        assert step.actions == ()
        assert step.next_s <= memory_policy.RETRY_S - 0.75
    assert len(policy.step(1.8, figures._replace(spillable=6 * MB)).actions) == 1


def test_after_a_problem_more_values_are_no_reason_to_try_again(policy: MemoryPolicy) -> None:
    assert policy.step(0, Figures(75 * MB)).actions != ()
    assert policy.work_ended(0, RoomMade(0, "disk full"), 5 * MB) == "disk full"
    assert policy.step(0.5, Figures(75 * MB, spillable=50 * MB)).actions == ()
    assert policy.step(1, Figures(75 * MB)).actions != ()
    assert policy.work_ended(1, RoomMade(0, "disk full"), 5 * MB) == ""
    assert policy.step(61, Figures(75 * MB)).actions != ()
    assert policy.work_ended(61, RoomMade(0, "disk full"), 5 * MB) == "disk full"


@pytest.mark.parametrize(("took_s", "again_s"), [(0.01, 5), (1, 50)])
def test_garbage_is_collected_rarely_and_the_more_so_the_longer_it_takes(
    policy: MemoryPolicy, took_s: float, again_s: float
) -> None:
    def may_collect(now: float, collection_s: float | None = None) -> bool:
        (action,) = policy.step(now, Figures(75 * MB)).actions
        assert isinstance(action, MakeRoom)
        policy.work_ended(now, RoomMade(1, "", collection_s), 0)
        return action.may_collect

    assert may_collect(0, took_s)
    assert not may_collect(again_s - 1)
    assert may_collect(again_s)


def test_a_busy_worker_is_read_often_and_an_idle_one_ever_more_rarely(policy: MemoryPolicy) -> None:
    assert policy.step(0, Figures(10 * MB, is_busy=True)).next_s == memory_policy.BUSY_INTERVAL_S
    now = 0.1
    intervals: list[float] = []
    while now < 30:
        intervals.append(policy.step(now, Figures(10 * MB)).next_s)
        now += intervals[-1]
    assert intervals == sorted(intervals)
    assert intervals[0] == memory_policy.FIRST_IDLE_INTERVAL_S
    assert intervals[-1] == memory_policy.MAX_IDLE_INTERVAL_S
    assert policy.step(now, Figures(12 * MB)).next_s == memory_policy.BUSY_INTERVAL_S


EVENTS = st.tuples(
    st.sampled_from(["leak", "release", "put", "drop", "want"]),
    st.integers(0, 40).map(lambda number: number * MB),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(EVENTS, max_size=30), st.booleans())
def test_a_worker_whatever_happens_makes_room_or_works_on(
    history: list[tuple[str, int, bool, bool]], has_disk: bool
) -> None:
    """A model of a process: other memory, values in memory, values on disk."""
    found = limits() if has_disk else limits(spill_managed=None, spill_process=None)
    assert found is not None
    policy = MemoryPolicy(found)
    other = spillable = spilled = 0
    now, was_paused = 0.0, False
    for event, amount, is_busy, waits in history + [("", 0, False, False)] * 300:
        now += 0.1
        if event == "leak":
            other += amount
        elif event == "release":
            other = max(0, other - amount)
        elif event == "put":
            spillable += amount
        elif event == "drop":
            spillable, spilled = max(0, spillable - amount), max(0, spilled - amount)
        process = other + spillable
        wanted = amount if event == "want" else 0
        figures = Figures(process, 0, spillable + spilled, spilled, spillable, wanted, False, is_busy, waits)
        step = policy.step(now, figures)
        assert 0 < step.next_s <= memory_policy.MAX_IDLE_INTERVAL_S
        for action in step.actions:
            if isinstance(action, SetPaused):
                assert action.paused != was_paused
                was_paused = action.paused
            else:
                assert isinstance(action, MakeRoom)
                in_need = spillable > found.managed_low or process + wanted > min(found.process_low, found.pause_above)
                assert in_need or any(kind == "want" for kind, *_ in history)
                nbytes = min(action.nbytes, spillable) if has_disk else 0
                spillable, spilled = spillable - nbytes, spilled + nbytes
                policy.work_ended(now, RoomMade(nbytes), spillable)
    assert not policy.paused
    if has_disk and spillable:
        assert spillable <= found.managed_high
        assert other + spillable <= found.process_high + 1
