"""The reconnect policy alone, with a clock and dice of the test's own."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.errors import NoScheduler, ProtocolError, ProvenRefusal, RefusedError, UnavailableError, UsageError
from trio_dask.retry_policy import CLIENTS, SOUND_SESSION_S, UNPROVEN_REFUSAL_S, WORKERS, Backoff, RetryPolicy


def longest(low: float, high: float) -> float:
    return high


def shortest(low: float, high: float) -> float:
    return low


def policy(
    backoff: Backoff = WORKERS,
    uniform: Callable[[float, float], float] = longest,
    now: float = 0.0,
    give_up_s: float = 60.0,
    **options: Any,
) -> RetryPolicy:
    return RetryPolicy(backoff, uniform, now, give_up_s=give_up_s, **options)


@pytest.mark.parametrize("backoff", [WORKERS, CLIENTS])
def test_pauses_double_up_to_the_longest(backoff: Backoff) -> None:
    found = policy(backoff)
    pauses = [found.next_pause_s() / backoff.spread[1] for _ in range(10)]
    assert pauses[0] == pytest.approx(backoff.first_s)
    assert all(after == pytest.approx(min(2 * before, backoff.longest_s)) for before, after in pairwise(pauses))
    assert pauses[-1] == pytest.approx(backoff.longest_s)


@pytest.mark.parametrize("backoff", [WORKERS, CLIENTS])
def test_the_dice_decide_within_the_spread(backoff: Backoff) -> None:
    low, high = backoff.spread
    assert policy(backoff, shortest).next_pause_s() == pytest.approx(low * backoff.first_s)
    assert policy(backoff, longest).next_pause_s() == pytest.approx(high * backoff.first_s)
    assert low < high


def test_time_runs_out_from_the_last_contact_and_not_during_a_session() -> None:
    found = policy(now=5.0)
    assert found.deadline == 65.0
    found.connected(10.0)
    assert found.deadline == found.away_since == math.inf
    found.lost_contact(100.0)
    assert (found.away_since, found.deadline) == (100.0, 160.0)


def test_a_scheduler_that_fell_silent_is_away_since_then() -> None:
    found = policy()
    found.connected(0.0)
    found.lost_contact(100.0, silent_s=20.0)
    assert found.deadline == 140.0


def test_without_a_limit_it_never_gives_up() -> None:
    assert policy(give_up_s=math.inf).deadline == math.inf


def lose_after(found: RetryPolicy, began_at: float, seconds: float) -> bool:
    found.connected(began_at)
    found.lost_contact(began_at + seconds)
    return found.session_lost(began_at + seconds)


def test_only_the_second_short_session_in_a_row_is_paused_for_longer() -> None:
    found = policy()
    assert lose_after(found, 0.0, 1.0)
    first = found.next_pause_s()
    assert not lose_after(found, 10.0, SOUND_SESSION_S - 0.1)
    assert found.next_pause_s() == pytest.approx(2 * first)
    assert lose_after(found, 30.0, SOUND_SESSION_S)
    assert found.next_pause_s() == pytest.approx(first)


def test_a_session_that_ended_in_good_order_begins_anew() -> None:
    found = policy()
    first = found.next_pause_s()
    assert found.next_pause_s() > first
    found.begin_anew()
    assert found.next_pause_s() == first


def caused_by(cause: BaseException) -> NoScheduler:
    error = NoScheduler("no answer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error", [UsageError("wrong address"), UnavailableError("no such file"), OSError("in use")])
def test_what_is_wrong_at_the_start_is_final_and_later_is_not(error: Exception) -> None:
    assert policy().is_final(error, 0.0)
    assert not policy(was_connected=True).is_final(error, 0.0)
    found = policy()
    found.connected(0.0)
    assert not found.is_final(error, 1.0)


def test_a_scheduler_that_does_not_answer_is_tried_again() -> None:
    assert not policy().is_final(NoScheduler("no answer"), 0.0)
    assert not policy(was_connected=True).is_final(NoScheduler("no answer"), 0.0)


def test_what_answers_in_another_language_is_hopeless_for_those_that_say_so() -> None:
    error = caused_by(ProtocolError("another version"))
    assert policy(hopeless=(ProtocolError,)).is_final(error, 0.0)
    assert not policy(hopeless=(ProtocolError,), was_connected=True).is_final(error, 0.0)
    assert not policy(hopeless=(ProtocolError,)).is_final(caused_by(TimeoutError()), 0.0)
    assert not policy().is_final(error, 0.0)


def test_a_refusal_is_final_unless_the_scheduler_may_not_have_noticed_a_lost_session_yet() -> None:
    refused = ProvenRefusal("there is such a worker")
    assert policy(refusal_may_pass_s=60.0).is_final(refused, 0.0)
    found = policy(refusal_may_pass_s=60.0)
    found.connected(0.0)
    found.lost_contact(100.0)
    assert not found.is_final(refused, 159.0)
    assert found.is_final(refused, 160.0)
    assert policy(was_connected=True).is_final(refused, 0.0)


@given(away_s=st.integers(0, 10**9), refused_s=st.integers(0, int(UNPROVEN_REFUSAL_S) - 1))
def test_a_refusal_without_proof_is_final_only_at_the_start_or_after_an_hour_of_them(
    away_s: int, refused_s: int
) -> None:
    """Whatever listens at the scheduler's port after it is gone cannot soon end what was connected."""
    refused = RefusedError("versions do not match, says what listens there")
    assert policy(refusal_may_pass_s=60.0).is_final(refused, 0.0)
    found = policy(refusal_may_pass_s=60.0)
    found.connected(0.0)
    found.lost_contact(0.0)
    assert not found.is_final(refused, away_s)
    assert not found.is_final(NoScheduler("nothing listens there for a moment"), away_s)
    assert not found.is_final(refused, away_s + refused_s)
    assert found.is_final(refused, away_s + UNPROVEN_REFUSAL_S)
    found.connected(away_s + 5000.0)
    found.lost_contact(away_s + 6000.0)
    assert not found.is_final(refused, away_s + 6000.0)
