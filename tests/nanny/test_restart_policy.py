"""What follows the end of a worker's process: plain functions."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.config import NannySettings, WorkerSettings
from trio_dask.nanny.restart_policy import (
    ExitDecision,
    Finish,
    GiveUp,
    NannyCore,
    ProcessExit,
    Restart,
    RestartWindow,
    memory_excess,
)

SETTINGS = NannySettings(WorkerSettings())


def crash(**more: Any) -> ProcessExit:
    return ProcessExit(status=-9, started=True, cause="killed by SIGKILL", **more)


def failed_start(words: str = "ModuleNotFoundError: No module named 'x'") -> ProcessExit:
    return ProcessExit(status=1, started=False, cause=f"ended with status 1: {words}", last_words=words)


@pytest.mark.parametrize(
    ("end", "decision"),
    [
        (ProcessExit(0, True, "", leaving="scheduler"), ExitDecision(True, Finish())),
        (ProcessExit(0, True, "", leaving="signal"), ExitDecision(True, Restart(0))),
        (ProcessExit(0, True, "", leaving="signal", asked="stop"), ExitDecision(True, Finish())),
        (ProcessExit(0, True, ""), ExitDecision(False, Restart(0.5))),
        (ProcessExit(0, True, "", leaving="max-tasks"), ExitDecision(True, Restart(0))),
        (ProcessExit(0, True, "", leaving="restart"), ExitDecision(True, Restart(0))),
        (ProcessExit(0, True, "", leaving="lifetime"), ExitDecision(True, Finish())),
        (ProcessExit(2, False, "what"), ExitDecision(False, GiveUp(2, "what"))),
        (ProcessExit(3, True, "no scheduler for 5 s"), ExitDecision(False, GiveUp(3, "no scheduler for 5 s"))),
        (ProcessExit(4, True, "taken"), ExitDecision(False, GiveUp(4, "taken"))),
        (ProcessExit(2, True, "ended with status 2", explained=False), ExitDecision(False, Restart(0.5))),
        (ProcessExit(3, True, "ended with status 3", explained=False), ExitDecision(False, Restart(0.5))),
        (ProcessExit(4, True, "ended with status 4", explained=False), ExitDecision(False, Restart(0.5))),
        (ProcessExit(-9, True, "killed", asked="stop"), ExitDecision(True, Finish())),
        (ProcessExit(-9, True, "killed", asked="restart"), ExitDecision(True, Restart(0))),
        (ProcessExit(3, True, "no scheduler", asked="stop"), ExitDecision(True, Finish())),
        (ProcessExit(1, True, "a bug"), ExitDecision(False, Restart(0.5))),
        (ProcessExit(-9, True, "killed"), ExitDecision(False, Restart(0.5))),
        (ProcessExit(-9, True, "memory", excused=True), ExitDecision(False, Restart(0.5))),
        (ProcessExit(0, False, "ended with status 0"), ExitDecision(False, Restart(0.5))),
    ],
)
def test_how_a_process_ended_decides_what_follows(end: ProcessExit, decision: ExitDecision) -> None:
    assert NannyCore(SETTINGS).ended(end, 0.0) == decision


def test_a_lifetime_is_followed_by_another_where_the_settings_say_so() -> None:
    core = NannyCore(SETTINGS._replace(lifetime_restart=True))
    assert core.ended(ProcessExit(0, True, "", leaving="lifetime"), 0.0) == ExitDecision(True, Restart(0))


def test_a_refusal_counts_as_a_crash_once_there_was_a_registered_worker() -> None:
    """The scheduler may believe that one to be alive, and its name to be taken."""
    core = NannyCore(SETTINGS)
    core.ended(crash(registered=True), 0.0)
    refused = ProcessExit(4, True, "the name is taken")
    assert core.ended(refused, 1.0).next == Restart(1.0)
    assert NannyCore(SETTINGS).ended(refused, 1.0).next == GiveUp(4, "the name is taken")


def test_pauses_double_up_to_a_limit() -> None:
    window = RestartWindow(SETTINGS._replace(max_restarts=10, restart_window_s=1000))
    pauses = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert [window.crashed("x", now) for now in range(9)] == [Restart(pause) for pause in pauses]


def test_too_many_crashes_end_it_with_the_cause_of_the_first() -> None:
    window = RestartWindow(SETTINGS)
    for number in range(5):
        assert isinstance(window.crashed(f"cause {number}", 10.0 * number), Restart)
    assert window.crashed("cause 5", 50.0) == GiveUp(5, "the worker crashed 6 times within 60 s; first: cause 0")


def test_an_old_crash_is_forgotten() -> None:
    window = RestartWindow(SETTINGS)
    for number in range(5):
        window.crashed(f"cause {number}", 10.0 * number)
    assert window.crashed("cause 5", 60.0) == Restart(8.0)  # the first is out of the window, four are in it
    assert window.crashed("cause 6", 1000.0) == Restart(0.5)


def test_no_restarts_at_all() -> None:
    over = RestartWindow(SETTINGS._replace(max_restarts=0)).crashed("killed by SIGKILL", 0.0)
    assert over == GiveUp(5, "the worker crashed (--max-restarts 0): killed by SIGKILL")


def test_the_same_failure_to_start_twice_ends_it_at_once() -> None:
    core = NannyCore(SETTINGS)
    assert core.ended(failed_start(), 0.0).next == Restart(0.5)
    over = core.ended(failed_start(), 1.0).next
    assert isinstance(over, GiveUp)
    assert over.status == 5
    assert over.reason.startswith("the worker cannot start: ended with status 1: ModuleNotFoundError")


def test_numbers_make_no_difference_between_failures_to_start() -> None:
    core = NannyCore(SETTINGS)
    core.ended(failed_start("pid 17: cannot allocate"), 0.0)
    assert isinstance(core.ended(failed_start("pid 18: cannot allocate"), 1.0).next, GiveUp)


def test_other_failures_to_start_or_a_start_between_them_do_not() -> None:
    core = NannyCore(SETTINGS)
    ends = [failed_start("a"), failed_start("b"), crash(), failed_start("b"), failed_start("a")]
    assert all(isinstance(core.ended(end, 10.0 * now).next, Restart) for now, end in enumerate(ends))


def test_what_tasks_did_to_memory_is_not_held_against_the_worker() -> None:
    core = NannyCore(SETTINGS)
    for now in range(100):
        assert core.ended(crash(excused=True), float(now)).next == Restart(0.5 * 2 ** min(now, 2))


@pytest.mark.parametrize(
    ("used", "limit", "fraction", "reason"),
    [
        (100, None, 0.95, None),
        (10**12, 1000, None, None),
        (950, 1000, 0.95, None),
        (243 * 2**20, 256 * 2**20, 0.95, None),
        (
            244 * 2**20,
            256 * 2**20,
            0.95,
            "killed by its nanny: it used 244 MiB, more than 95% of its memory limit of 256 MiB",
        ),
    ],
)
def test_how_much_memory_is_too_much(used: int, limit: int | None, fraction: float | None, reason: str | None) -> None:
    assert memory_excess(used, limit, fraction) == reason


policies = st.builds(
    NannySettings,
    worker=st.just(WorkerSettings()),
    max_restarts=st.integers(0, 8),
    restart_window_s=st.floats(0.1, 1000),
    backoff_s=st.tuples(st.floats(0, 10), st.floats(10, 100)),
    same_failures=st.integers(2, 4),
)


@given(policies, st.lists(st.floats(0, 300), max_size=40))
def test_never_more_restarts_in_any_window_than_the_policy_says(policy: NannySettings, gaps: list[float]) -> None:
    window = RestartWindow(policy)
    now = 0.0
    crashes = []
    for gap in gaps:
        now += gap
        crashes.append(now)
        decision = window.crashed("x", now)
        inside = [at for at in crashes if at > now - policy.restart_window_s]
        if isinstance(decision, GiveUp):
            assert len(inside) > policy.max_restarts
            assert decision.status == 5
            return
        assert len(inside) <= policy.max_restarts
        pause = policy.backoff_s[0] * 2 ** (len(inside) - 1)
        assert math.isclose(decision.after_s, min(pause, policy.backoff_s[1]))


@given(policies, st.integers(1, 10))
def test_a_start_that_fails_always_in_the_same_way_is_tried_only_so_often(policy: NannySettings, gap: int) -> None:
    window = RestartWindow(policy)
    tries = 0
    while isinstance(window.crashed("x", float(tries * gap), failed_start="x"), Restart):
        tries += 1
    assert tries + 1 <= policy.same_failures


def test_what_would_fail_in_the_same_way_again_is_not_started_again() -> None:
    core = NannyCore(SETTINGS)
    decision = core.ended(ProcessExit(1, started=False, cause="its module raised", hopeless=True), 0.0)
    assert decision == ExitDecision(planned=False, next=GiveUp(1, "its module raised"))
