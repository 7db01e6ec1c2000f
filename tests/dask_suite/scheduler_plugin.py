"""A pytest plugin for dask's own tests: every scheduler that they name means the one that an option names.

`python -m pytest -c tests/dask_suite/pytest.ini --dask-scheduler client --pyargs dask.bag.tests`
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.dask_suite.exceptions import Exceptions

CHOICES: Final = ("threads", "client", "processes")
"""dask's own threads; our client with workers in this process; our client with processes."""

_cleanup: Final = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which scheduler, and where to write what came of it."""
    parser.addoption("--dask-scheduler", choices=CHOICES, default="client", help="what computes dask's collections")
    parser.addoption(
        "--dask-few-parameters", action="store_true", help="of a test's parameters only the first and last"
    )
    parser.addoption("--dask-outcomes", type=Path, help="write how each test ended into this file, as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Replace dask's schedulers, before any module of dask has taken one of them."""
    stack = config.stash[_cleanup] = ExitStack()
    is_child = hasattr(config, "workerinput")
    outcomes = config.getoption("--dask-outcomes")
    if outcomes is not None and not is_child:
        config.pluginmanager.register(_Outcomes(outcomes))
    if is_child or not config.getoption("numprocesses", None):
        _replace_schedulers(_get_of(config.getoption("--dask-scheduler"), stack))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is listed with a reason may fail."""
    if config.getoption("--dask-few-parameters"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        last = {item.nodeid.partition("[")[0]: item for item in items}
        chosen = {*first.values(), *last.values()}
        items[:] = [item for item in items if item in chosen]
    scheduler = config.getoption("--dask-scheduler")
    if scheduler == "threads":
        return
    exceptions = Exceptions.read(processes=scheduler == "processes")
    for item in items:
        reason = exceptions.reason_of(item.nodeid)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def pytest_runtest_logfinish() -> None:
    """Drop the frames of a test that has failed: with its futures, its keys would stand for its values."""
    if sys.__dict__.pop("last_traceback", None) is not None:
        for name in ("last_exc", "last_value"):
            sys.__dict__.pop(name, None)
        gc.collect()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the cluster."""
    config.stash[_cleanup].close()


class _Outcomes:
    """Notes how tests end. A test with several reports has the worst of their outcomes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed" or report.when == "call":
            before = self._found.get(report.nodeid)
            self._found[report.nodeid] = before if before == "failed" else report.outcome

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._found, indent=0, sort_keys=True))


def _get_of(scheduler: str, stack: ExitStack) -> Callable[..., Any]:
    if scheduler == "threads":
        import dask.threaded

        threads: Callable[..., Any] = dask.threaded.get
        return threads
    from dask import config

    from trio_dask import Client, LocalCluster
    from trio_dask.client.collections.cluster_scheduler import SHUFFLE, ClusterScheduler

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=scheduler == "processes")
    stack.enter_context(cluster)
    stack.enter_context(Client(cluster))
    config.set({SHUFFLE: None})  # dask's tests expect its own choice, and its workers have one disk
    return ClusterScheduler()


def _replace_schedulers(get: Callable[..., Any]) -> None:
    import dask
    import dask.base
    import dask.local
    import dask.multiprocessing
    import dask.threaded

    def multiprocessing_get(*args: Any, **options: Any) -> Any:
        return get(*args, **options)  # dask recognizes this one, and would make locks for it

    for name in dask.base.named_schedulers:
        dask.base.named_schedulers[name] = get
    package: Any = dask  # type checkers do not see that it has `get`
    package.get = dask.threaded.get = dask.local.get_sync = get
    dask.multiprocessing.get = multiprocessing_get
