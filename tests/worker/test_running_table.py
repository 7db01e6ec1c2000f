"""The board on which slots write what they run: another process reads it, also when its writer is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trio_dask.ids import RunId
from trio_dask.worker import running_table as board_module
from trio_dask.worker.running_table import OUTSIDE, Board

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["memfd", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.delattr(board_module.os, "memfd_create", raising=False)
    return str(request.param)


@pytest.mark.usefixtures("kind")
def test_what_is_begun_stands_there_until_it_is_settled() -> None:
    with Board.create(3) as board:
        assert board.running() == ()
        board.begin(2, RunId(7))
        board.begin(0, RunId(2**63))
        assert board.running() == (2**63, 7)
        board.settle({7, 9})
        assert board.running() == (2**63,)
        board.begin(2, RunId(9))
        assert board.running() == (2**63, 9)


@pytest.mark.usefixtures("kind")
def test_both_ends_see_the_same() -> None:
    with Board.create(2) as board, Board.attach(os.dup(board.fd), 2) as other:
        other.begin(1, RunId(5))
        assert board.running() == (5,)
        assert not os.get_inheritable(other.fd)


@pytest.mark.slow
def test_it_outlives_its_writer() -> None:
    with Board.create(2) as board:
        code = (
            "import os, signal\n"
            "from trio_dask.worker.running_table import Board\n"
            f"board = Board.attach({board.fd}, 2)\n"
            "board.begin(0, 41); board.begin(1, 42); board.settle({41})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], pass_fds=[board.fd], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        assert board.running() == (42,)


def test_a_descriptor_that_is_no_board_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match=r"."):
        Board.attach(reader, 1)
    os.close(reader)
    os.close(writer)
    with Board.create(1) as board, pytest.raises(ValueError, match="size"):
        Board.attach(board.fd, 1000)


def test_closing_it_twice_is_no_trouble() -> None:
    board = Board.create(1)
    board.close()
    board.close()


def test_who_is_outside_of_the_slots_stands_there_too_and_nobody_twice() -> None:
    with Board.create(1) as board, Board.attach(os.dup(board.fd), 1) as worker:
        worker.begin(0, RunId(5))
        worker.begin(1, RunId(5))  # as in the moment in which it gives its slot back
        assert board.running() == (5,)
        worker.begin(0, RunId(6))
        worker.begin(OUTSIDE, RunId(7))  # the last place
        assert board.running() == (6, 5, 7)
        worker.settle({5, 7})
        assert board.running() == (6,)
