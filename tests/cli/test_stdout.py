"""What the programs say before anything that is slow to import."""

from __future__ import annotations

from trio_dask.cli import stdout
from trio_dask.deploy.program_runner import ExitStatus


def test_the_statuses_that_are_known_without_an_import_are_those_of_the_programs() -> None:
    known = {status.name: getattr(stdout, status.name) for status in ExitStatus if hasattr(stdout, status.name)}
    assert known == {
        "STOPPED": ExitStatus.STOPPED,
        "WRONG_USAGE": ExitStatus.WRONG_USAGE,
        "REFUSED": ExitStatus.REFUSED,
    }
