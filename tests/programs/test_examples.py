"""Every example runs, says what it should, and leaves nothing on stderr that is not about what it shows."""

import re
from pathlib import Path

import pytest

from tests.programs.programs import REPOSITORY, environment, program

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"

OUTPUT = {
    "dask_array.py": [
        "sum: 7999998000000.0",
        "sevenths: [571429, 571429, 571429, 571429, 571428, 571428, 571428]",
        "largest: 6",
    ],
    "dask_dataframe.py": ["{'Oslo': 1081, 'Rome': 542}", "in spring: 446", "wet people: 82600000"],
    "failures.py": [
        "ValueError: could not convert string to float: 'three'",
        "note: in task 'parse",
        "worked the second time",
        "TaskTimeout after 0.2 s",
        "KilledWorker: 4 workers died while running it",
    ],
    "first_steps.py": [
        "sum of squares: 285",
        "done: 0",
        "done: 1",
        "done: 4",
        "all: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
    ],
    "large_arrays.py": ["spreads: [999999.0, 999999.0, 999999.0, 999999.0]", "first and last: [3.0, 2000001.0]"],
    "native_trio.py": ["[3, 8, 4, 10]", "[5, 6]", "[8, 3]", "cancelled: True"],
    "scikit_learn.py": ["best: {'C': 0.1}", "folds: 5"],
    "scheduler_plugin.py": ["sum: 285", "workers: 1", "10 of pow", "1 of sum"],
    "xarray_climate.py": ["by quarter: [15.0, 15.0, 15.0, 15.0]", "the same: True mean: 15.0"],
}
UNORDERED = {"first_steps.py", "native_trio.py"}  # as completed


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(OUTPUT)


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example(name: str, tmp_path: Path) -> None:
    with program(str(EXAMPLES / name), cwd=tmp_path, env=environment(measured=False)) as example:
        assert example.end(50) == 0, example.text  # libraries take seconds to import, in each process
    expected, output = OUTPUT[name], example.output
    if name in UNORDERED:
        expected, output = sorted(expected), sorted(output)
    assert output == expected
    assert [line for line in example.errors if not re.search("ended with status 1; restarting it", line)] == []
