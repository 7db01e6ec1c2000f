"""Run the cases: one fresh process a measurement, rivals in turn, medians."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from .model import OURS, Case
from .programs import REPOSITORY, environment


@dataclass
class Outcome:
    """What one rival did in one case: a figure of each metric for every repeat, or why there is none."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    reason: str | None = None
    attempts: int = 0
    failures: int = 0

    def remark(self) -> str:
        """A median that stands on fewer repeats than the others says so."""
        return f"failed in {self.failures} of {self.attempts}: {self.reason}" if self.failures and self.samples else ""

    def median(self, metric: str) -> float | None:
        samples = self.samples.get(metric)
        return statistics.median(samples) if samples else None


Outcomes = dict[tuple[str, str], Outcome]
"""By case and rival."""


def run_child(rival: str, case: str, *, quick: bool, timeout_s: float) -> dict[str, object]:
    """The child's JSON line; nothing of the child is left when this returns."""
    arguments = [sys.executable, "-m", "benchmarks.child", rival, case, "--lifeline"]
    if quick:
        arguments.append("--quick")
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=REPOSITORY,
            env={**environment(), "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished after {timeout_s:g} s"}
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        for line in reversed(_lines(out)):
            if line.startswith("{"):
                answer: dict[str, object] = json.loads(line)
                return answer
        last = _lines(err)[-1:] or ["it printed nothing"]
        return {"failed": f"ended with status {process.returncode}: {last[0][:300]}"}


_TOUCH = """
import mmap
memory = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
if hasattr(mmap, "MADV_HUGEPAGE"):
    memory.madvise(mmap.MADV_HUGEPAGE)
for start in range(0, {size}, mmap.PAGESIZE):
    memory[start] = 1
"""


def touch_memory(size: int = 2 << 30) -> None:
    """Have the system own this much memory, and give it back.

    A virtual machine gets memory from its host when it is touched for the first time, at a fraction of the usual
    speed, and may lose it again while it is idle. Who comes first would pay for that, and the figures would say so.
    """
    subprocess.run([sys.executable, "-c", _TOUCH.format(size=size)], check=True)


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").splitlines()


def run_cases(
    cases: Sequence[Case],
    rivals: Sequence[str],
    *,
    repeats: int,
    quick: bool,
    timeout_s: float,
    say: Callable[[str], None],
) -> Outcomes:
    """A B C, A B C, ...: whatever else the machine does meets all of them alike.

    A rival that cannot do a case is not asked again; one that failed is, since the next repeat may do better.
    """
    outcomes: Outcomes = {}
    for number, case in enumerate(cases, 1):
        for repeat in range(repeats):
            for rival in rivals:
                if case.only_ours and rival != OURS:
                    continue
                outcome = outcomes.setdefault((case.name, rival), Outcome())
                if outcome.reason is not None and not outcome.failures:
                    continue
                if case.moves_data:
                    touch_memory()
                started = time.perf_counter()
                answer = run_child(rival, case.name, quick=quick, timeout_s=timeout_s)
                took = time.perf_counter() - started
                told = _record(outcome, answer)
                place = f"[{number}/{len(cases)}] {case.name} {repeat + 1}/{repeats} {rival}"
                say(f"{place}: {told} ({took:.1f} s)")
    return outcomes


def _record(outcome: Outcome, answer: dict[str, object]) -> str:
    outcome.attempts += 1
    figures = answer.get("figures")
    if isinstance(figures, dict):
        for metric, value in figures.items():
            outcome.samples.setdefault(metric, []).append(float(value))
        return ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
    outcome.failures += "unsupported" not in answer
    outcome.reason = str(answer.get("failed") or answer.get("unsupported") or "no answer")
    return f"n/a: {outcome.reason}"
