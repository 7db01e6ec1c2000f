"""The table in which slots write what they run: another process reads it, also when the writer is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trio_dask.ids import RunId
from trio_dask.worker.running_table import SECEDED_CELLS, RunningTable

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["memfd", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return str(request.param)


@pytest.mark.usefixtures("kind")
def test_what_is_begun_stands_there_until_it_is_reported() -> None:
    with RunningTable.create(3) as running_table:
        assert running_table.running() == ()
        running_table.begin(2, RunId(7))
        running_table.begin(0, RunId(2**63))
        assert running_table.running() == (2**63, 7)
        running_table.mark_reported({7, 9})
        assert running_table.running() == (2**63,)
        running_table.begin(2, RunId(9))
        assert running_table.running() == (2**63, 9)


@pytest.mark.usefixtures("kind")
def test_both_ends_see_the_same() -> None:
    with RunningTable.create(2) as running_table, RunningTable.attach(os.dup(running_table.fd), 2) as other:
        other.begin(1, RunId(5))
        assert running_table.running() == (5,)
        assert not os.get_inheritable(other.fd)


@pytest.mark.slow
def test_it_outlives_its_writer() -> None:
    with RunningTable.create(2) as running_table:
        code = (
            "import os, signal\n"
            "from trio_dask.worker.running_table import RunningTable\n"
            f"running_table = RunningTable.attach({running_table.fd}, 2)\n"
            "running_table.begin(0, 41); running_table.begin(1, 42); running_table.mark_reported({41})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], pass_fds=[running_table.fd], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        assert running_table.running() == (42,)


def test_a_descriptor_that_is_no_board_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match=r"."):
        RunningTable.attach(reader, 1)
    os.close(reader)
    os.close(writer)
    with RunningTable.create(1) as running_table, pytest.raises(ValueError, match="size"):
        RunningTable.attach(running_table.fd, 1000)


def test_closing_it_twice_is_no_trouble() -> None:
    running_table = RunningTable.create(1)
    running_table.close()
    running_table.close()


def test_who_is_outside_of_the_slots_stands_there_too_and_nobody_twice() -> None:
    with RunningTable.create(1) as running_table, RunningTable.attach(os.dup(running_table.fd), 1) as worker:
        worker.begin(0, RunId(5))
        worker.begin(1, RunId(5))  # as in the moment in which it gives its slot back
        assert running_table.running() == (5,)
        worker.begin(0, RunId(6))
        worker.begin(SECEDED_CELLS, RunId(7))  # the last place
        assert running_table.running() == (6, 5, 7)
        worker.mark_reported({5, 7})
        assert running_table.running() == (6,)
