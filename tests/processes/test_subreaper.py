"""What a guard does when its worker or its parent ends. Over pipes, without processes."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from trio_dask.processes.subreaper import Guard


class Worker:
    """One that has ended when the pipe is closed, as it is when it is killed."""

    def __init__(self) -> None:
        self.fd, alive = os.pipe()
        self._alive = [alive]
        self.steps: list[str] = []

    def die(self) -> None:
        with suppress(IndexError):  # test and guard may both end it
            os.close(self._alive.pop())

    def kill(self) -> None:
        self.steps.append("kill")
        self.die()

    def reap(self) -> tuple[int, int]:
        assert os.read(self.fd, 1) == b""
        self.steps.append("reap")
        return -9, 2**20

    def sweep(self) -> None:
        self.steps.append("sweep")


class Guarding:
    """A guard in a thread, and the other ends of its pipes."""

    def __init__(self, *, with_parent: bool = True) -> None:
        self.worker = Worker()
        self.parent_fd: int | None
        self.parent: int | None
        self.parent_fd, self.parent = os.pipe() if with_parent else (None, None)
        self.reports: int | None
        self.reports, self.report_fd = os.pipe()
        guard = Guard(self.worker, self.parent_fd, self.report_fd, self.worker.sweep)
        self.thread = threading.Thread(target=guard.run)
        self.thread.start()

    def end_parent(self) -> None:
        assert self.parent is not None
        os.close(self.parent)
        self.parent = None

    def report(self) -> Any:
        """What it reported before it ended."""
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.reports is not None
        return json.loads(os.read(self.reports, 4096))

    def close(self) -> None:
        self.worker.die()
        self.thread.join(10)
        for fd in (self.worker.fd, self.parent_fd, self.parent, self.reports, self.report_fd):
            if fd is not None:
                os.close(fd)


@pytest.fixture(params=[True, False], ids=["parent", "no descriptor of the parent"])
def guarding(request: pytest.FixtureRequest) -> Iterator[Guarding]:
    guarding = Guarding(with_parent=request.param)
    yield guarding
    guarding.close()


def test_a_guard_stays_while_worker_and_parent_live(guarding: Guarding) -> None:
    guarding.thread.join(0.05)
    assert guarding.thread.is_alive()
    assert guarding.worker.steps == []


def test_the_end_of_the_worker_ends_what_is_left_of_it_and_is_reported(guarding: Guarding) -> None:
    guarding.worker.die()
    assert guarding.report() == {"status": -9, "peak_bytes": 2**20}
    # Its group first, because its number is free once it is reaped; then what it left to the guard.
    assert guarding.worker.steps == ["kill", "reap", "sweep"]


def test_the_end_of_the_parent_ends_the_worker() -> None:
    guarding = Guarding()
    try:
        guarding.end_parent()
        assert guarding.report()["status"] == -9
        assert guarding.worker.steps == ["kill", "reap", "sweep"]
    finally:
        guarding.close()


def test_a_parent_that_no_longer_hears_the_report_does_not_keep_the_guard(guarding: Guarding) -> None:
    assert guarding.reports is not None
    os.close(guarding.reports)
    guarding.reports = None
    guarding.worker.die()
    guarding.thread.join(10)
    assert guarding.worker.steps == ["kill", "reap", "sweep"]
