"""Runs dask's own tests twice, with dask's threads and with our client, and compares: `python -m tests.dask_suite`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.dask_suite.exceptions import Exceptions

CONFIGURATION: Final = Path(__file__).with_name("pytest.ini")

SUITES: Final = (
    "dask.array",
    "dask.bag",
    "dask.bytes",
    "dask.dataframe",
    "dask.tests.test_base",
    "dask.tests.test_core",
    "dask.tests.test_delayed",
    "dask.tests.test_graph_manipulation",
    "dask.tests.test_highgraph",
    "dask.tests.test_hlgexpr",
    "dask.tests.test_layers",
    "dask.tests.test_optimization",
    "dask.tests.test_task_spec",
)
"""What computes collections. Other tests of dask are about its own schedulers, or about no scheduler."""

REQUIRED: Final = 0.99
"""Of the tests that pass with dask's threads."""


def pytest_arguments(scheduler: str, *more: str) -> list[str]:
    """The program that runs dask's tests with this scheduler."""
    spec = find_spec("dask")
    assert spec is not None, "the extra `dask` is installed"
    assert spec.origin is not None, "dask is a package"
    root = Path(spec.origin).parents[1]  # test ids begin there
    return [
        *(sys.executable, "-m", "pytest", "-c", str(CONFIGURATION), "--rootdir", str(root)),
        *("--dask-scheduler", scheduler, *more),
    ]


def main() -> int:
    """Compare the schedulers. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.dask_suite", description=__doc__)
    parser.add_argument("--processes", action="store_true", help="have the workers be processes")
    parser.add_argument("-n", "--numprocesses", default="2", help="how many processes run tests")
    parser.add_argument("suites", nargs="*", default=SUITES, help="modules or packages of dask")
    given = parser.parse_args()
    ours = "processes" if given.processes else "client"
    with_threads, with_ours = [_run(scheduler, given.numprocesses, given.suites) for scheduler in ("threads", ours)]
    return _compare(with_threads, with_ours, Exceptions.read(processes=given.processes))


def _run(scheduler: str, processes: str, suites: list[str]) -> dict[str, str]:
    print(f"dask's tests with {scheduler}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        options = ("--numprocesses", processes, "--dist", "worksteal", "--dask-outcomes", str(file))
        subprocess.run(pytest_arguments(scheduler, *options, "--pyargs", *suites), check=False)
        found: dict[str, str] = json.loads(file.read_text())
        return found


def _compare(threads: dict[str, str], ours: dict[str, str], exceptions: Exceptions) -> int:
    passed = [test for test, outcome in threads.items() if outcome == "passed"]
    failed = [test for test in passed if ours.get(test) != "passed"]
    unlisted = [test for test in failed if exceptions.reason_of(test) is None]
    for suite, count in Counter(map(_suite_of, passed)).items():
        less = sum(_suite_of(test) == suite for test in failed)
        print(f"{suite}: {count - less} of {count}")
    share = 1 - len(failed) / max(1, len(passed))
    print(f"all: {len(passed) - len(failed)} of {len(passed)}, {share:.2%}; at least {REQUIRED:.0%} are required")
    for test in unlisted:
        print(f"fails without a reason in {CONFIGURATION.with_name('exceptions.txt').name}: {test}")
    for test in passed:
        if ours.get(test) == "passed" and exceptions.reason_of(test) is not None:
            print(f"passes, and is listed: {test}")
    return int(bool(unlisted) or share < REQUIRED or not passed)


def _suite_of(test: str) -> str:
    return ".".join(test.split("::")[0].split("/")[:2])


if __name__ == "__main__":
    sys.exit(main())
