"""dask's own tests compute on our clusters: a part of them, in a minute. `nox -s dask-suite` runs all.

Every test of the modules named here runs, with two of its parameters: eight kinds of one groupby meet the same code of
ours, and take most of the time.
"""

import subprocess

import pytest

from tests.dask_suite.__main__ import pytest_arguments
from tests.dask_suite.exceptions import Exceptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.mark.parametrize(
    ("scheduler", "modules"),
    [
        ("client", "dask.tests.test_delayed dask.bag.tests.test_bag dask.bag.tests.test_text"),
        ("client", "dask.array.tests.test_overlap dask.array.tests.test_rechunk dask.array.tests.test_slicing"),
        ("client", "dask.dataframe.dask_expr.tests.test_concat dask.dataframe.dask_expr.tests.test_repartition"),
        ("processes", "dask.tests.test_delayed dask.bag.tests.test_random dask.array.tests.test_stats"),
    ],
    ids=["bag", "array", "dataframe", "processes"],
)
def test_tests_of_dask_pass_with_our_client_but_for_the_listed_exceptions(scheduler: str, modules: str) -> None:
    pytest.importorskip("dask.dataframe")
    program = pytest_arguments(scheduler, "--dask-few-parameters", "--numprocesses", "0", "--pyargs", *modules.split())
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=270)
    assert ended.returncode == 0, f"{' '.join(program)}\n{ended.stdout[-10_000:]}{ended.stderr[-2_000:]}"


def test_each_exception_has_a_reason_and_stands_there_once() -> None:
    assert Exceptions.read(processes=True).reason_of("dask/tests/test_delayed.py::test_callable_obj")
    with pytest.raises(ValueError, match="no reason"):
        Exceptions.read(processes=True, lines=["dask/tests/test_delayed.py::test_callable_obj"])
    with pytest.raises(ValueError, match="twice"):
        Exceptions.read(processes=True, lines=["# Why", "dask/a.py::test", "dask/a.py::test"])


def test_an_exception_may_hold_for_processes_alone_and_for_all_parameters() -> None:
    lines = ["# processes: Why", "dask/a.py::test"]
    assert Exceptions.read(processes=False, lines=lines).reason_of("dask/a.py::test[1]") is None
    assert Exceptions.read(processes=True, lines=lines).reason_of("dask/a.py::test[1]") == "processes: Why"
