"""``python -m benchmarks.child RIVAL CASE [--quick]``: measure one case of one rival once; print one JSON line.

It runs as a session of its own, and ends with all it started when its stdin ends, however its parent died.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from . import work
from .cases import CASES
from .model import FULL, QUICK, Context, Unsupported
from .rivals import RIVALS, load
from .rivals.base import WORKERS, Rival

WARM_UP_TASKS = 200


def end_with_parent() -> None:
    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait_for_end, name="lifeline", daemon=True).start()


def warm_up(rival: Rival) -> None:
    """Both workers have run tasks, and know the functions, before a clock starts."""
    rival.gather(rival.map(work.nap, [0.05 + number / 1000 for number in range(2 * WORKERS)]))
    rival.gather(rival.map(work.increment, range(-WARM_UP_TASKS, 0)))


def measure(rival_name: str, case_name: str, *, quick: bool) -> dict[str, float]:
    case = CASES[case_name]
    try:
        rival = load(rival_name)
    except ImportError as exc:
        raise Unsupported(f"not installed: {exc}") from exc
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as name:
        context = Context(rival, QUICK if quick else FULL, Path(name))
        try:
            if case.encrypted:
                rival.encrypt(context.folder)
            if case.cluster:
                rival.start(context.folder)
                if rival.has_workers:
                    warm_up(rival)
            return case.run(context)
        finally:
            rival.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("rival", choices=list(RIVALS))
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lifeline", action="store_true", help="end, with all that was started, when stdin ends")
    options = parser.parse_args()
    if options.lifeline:
        end_with_parent()
    outcome: dict[str, object]
    try:
        outcome = {"figures": measure(options.rival, options.case, quick=options.quick)}
    except Unsupported as exc:
        outcome = {"unsupported": str(exc)}
    except Exception as exc:
        import traceback

        traceback.print_exc()
        words = " ".join(str(exc).split())
        outcome = {"failed": f"{type(exc).__name__}: {words[:300]}" if words else type(exc).__name__}
    print(json.dumps(outcome), flush=True)
    # Nothing that a system's threads or exit handlers still do may hold the run up.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
