"""Complaints become few lines, and their number is always told."""

import logging
import math
import re

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.comm.folded_log import EVERY_S, MOST, FoldedLog


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def new_log() -> tuple[FoldedLog, list[str]]:
    logger = logging.getLogger("trio_dask.test_folded_log")
    logger.setLevel(logging.INFO)
    handler = Lines()
    logger.handlers = [handler]
    return FoldedLog(logger), handler.lines


def complain(log: FoldedLog, now: float, *, host: str = "10.0.0.7", port: int = 1, what: str = "refused: no") -> None:
    log.complain(logging.WARNING, host, f"connection from tcp://{host}:{port}", what, now)


def told(lines: list[str]) -> int:
    """How many complaints these lines stand for."""
    more = [re.search(r"\(and (\d+) more .* in the last \d+ s\)$", line) for line in lines]
    return len(lines) + sum(int(found[1]) for found in more if found)


def test_what_repeats_is_one_line_with_a_count() -> None:
    log, lines = new_log()
    for port in range(314):
        complain(log, port / 100, port=port)
    assert lines == ["connection from tcp://10.0.0.7:0 refused: no"]
    assert log.next_deadline() == EVERY_S
    log.flush(EVERY_S)
    assert lines[1:] == ["connection from tcp://10.0.0.7:313 refused: no (and 312 more from there in the last 10 s)"]


def test_a_single_repetition_is_told_as_it_is() -> None:
    log, lines = new_log()
    complain(log, 0.0)
    complain(log, 1.0)
    log.flush(EVERY_S)
    assert lines == ["connection from tcp://10.0.0.7:1 refused: no"] * 2


def test_hosts_and_reasons_are_told_apart() -> None:
    log, lines = new_log()
    complain(log, 0.0)
    complain(log, 0.0, host="10.0.0.8")
    complain(log, 0.0, what="refused: the name is taken")
    assert len(lines) == 3


def test_after_a_while_of_quiet_a_complaint_is_told_at_once() -> None:
    log, lines = new_log()
    complain(log, 0.0)
    assert log.next_deadline() == math.inf
    complain(log, EVERY_S)
    assert len(lines) == 2


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.floats(0, 3)), max_size=200),
    st.booleans(),
)
def test_nothing_is_swallowed_and_lines_are_few(complaints: list[tuple[int, int, float]], flush: bool) -> None:
    log, lines = new_log()
    now = 0.0
    for reason, host, pause in complaints:
        now += pause
        if flush:
            log.flush(now)
        complain(log, now, host=str(host), what=str(reason))
    log.end(now)
    assert told(lines) == len(complaints)
    assert len(lines) <= (now // EVERY_S + 1) * (2 * MOST + 1)


def test_after_the_end_nothing_is_held() -> None:
    log, lines = new_log()
    complain(log, 0.0)
    complain(log, 1.0)
    log.end(1.0)
    complain(log, 2.0)
    complain(log, 2.0)
    assert len(lines) == 4


def test_a_level_that_is_not_logged_costs_nothing() -> None:
    log, lines = new_log()
    for _ in range(2 * MOST):
        log.complain(logging.DEBUG, "host", "who", "closed", 0.0)
    complain(log, 0.0)
    assert len(lines) == 1


async def test_what_is_held_is_logged_in_time(autojump_clock: trio.testing.MockClock) -> None:
    log, lines = new_log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.sleep(1)
        start = trio.current_time()
        complain(log, start)
        assert len(lines) == 1
        await trio.sleep(3)
        complain(log, trio.current_time())
        complain(log, trio.current_time())
        await trio.sleep_until(start + EVERY_S - 0.01)
        assert len(lines) == 1
        await trio.sleep(0.02)
        assert told(lines) == 3
        nursery.cancel_scope.cancel()
