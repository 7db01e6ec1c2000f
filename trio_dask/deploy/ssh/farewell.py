"""What hosts answer at the end, and the last line of a launcher, which is made of that."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from trio_dask.parsing import counted

FEW = 8
SLOW_S = 2.0
"""Who waits for an answer for longer is told why."""

log = logging.getLogger("trio_dask.ssh")


class Answer(NamedTuple):
    """What a host said at its end: how long that took, how long it took to say so, and how many processes are left."""

    seconds: float
    asked_s: float
    left: int


class NoAnswer(NamedTuple):
    """A host could not be asked at its end, for this reason."""

    words: str


def tell_end(hosts: Sequence[tuple[str, Answer | NoAnswer | None]]) -> None:
    """Log how long each host took to end, and what is left there; and which hosts could not be asked."""
    answers = [(place, answer) for place, answer in hosts if isinstance(answer, Answer)]
    silent = [(place, answer.words) for place, answer in hosts if isinstance(answer, NoAnswer)]
    told: list[str] = []
    if answers:
        told.append(", ".join(_ended(place, answer.seconds, answer.asked_s) for place, answer in answers))
        if len(answers) > FEW:
            seconds = sorted(answer.seconds for _, answer in answers)
            last = max(answer.asked_s for _, answer in answers)
            told = [_ended(f"{len(answers)} hosts", seconds[-1], last, f"{seconds[0]:.1f} to ")]
        left = sum(answer.left for _, answer in answers)
        told.append(f"{processes(left)} left on {counted(len(answers), 'host')}")
    told += [f"{place} could not be asked: {words}" for place, words in silent[:FEW]]
    if len(silent) > FEW:
        told.append(f"nor could {len(silent) - FEW} more")
    if told:
        log.log(logging.WARNING if silent else logging.INFO, "%s", "; ".join(told))
    for place, answer in answers:
        if answer.left:
            log.warning("%s left on %s: try `dask-ssh --clean %s`", processes(answer.left), place, place)


def _ended(subject: str, seconds: float, asked_s: float, more: str = "") -> str:
    slow = f" and answered after {asked_s:.1f} s" if asked_s > SLOW_S else ""
    return f"{subject} ended in {more}{seconds:.1f} s{slow}"


def processes(number: int) -> str:
    """The number, with its noun."""
    return f"{number} process{'' if number == 1 else 'es'}"
