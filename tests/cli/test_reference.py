"""The tables of options in docs/reference.md have the options that the programs have, and their defaults."""

import re
from pathlib import Path

import pytest

from trio_dask.cli.check import check
from trio_dask.cli.config import config
from trio_dask.cli.legacy_options import LEGACY
from trio_dask.cli.options import OTHER, Program, SectionOption
from trio_dask.cli.scheduler import scheduler
from trio_dask.cli.ssh import ssh
from trio_dask.cli.status import status
from trio_dask.cli.worker import worker

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")


def options_of(command: Program) -> list[SectionOption]:
    return [each for each in command.params if isinstance(each, SectionOption) and each.section not in (LEGACY, OTHER)]


def rows(heading: str) -> list[tuple[str, str]]:
    """The first cell and the last of each row about options."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].replace(r"\|", "/")
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `-")]
    return [(each[0], each[-1].strip()) for each in cells]


COMMANDS = pytest.mark.parametrize(
    ("command", "heading"),
    [
        (scheduler, "dask-scheduler"),
        (worker, "dask-worker"),
        (ssh, "dask-ssh"),
        (status, "trio-dask status"),
        (check, "trio-dask check"),
        (config, "trio-dask config"),
    ],
)


@COMMANDS
def test_the_reference_has_every_option_and_no_other(command: Program, heading: str) -> None:
    listed = {name for names, _ in rows(heading) for name in re.findall(r"--[a-z-]+", names)} - {"--debug", "--verbose"}
    names = [{*option.opts, *option.secondary_opts} for option in options_of(command)]
    assert [found for found in names if not found & listed] == []
    assert listed - {name for each in names for name in each} == set()


@COMMANDS
def test_the_reference_has_the_default_that_the_help_shows(command: Program, heading: str) -> None:
    shown = {option.opts[0]: option.default for option in options_of(command) if option.show_default}
    listed: dict[str, str] = {}
    for names, defaults in rows(heading):
        options = [name for name in re.findall(r"--[a-z-]+", names) if name in shown]
        values = [value.replace(" ", "") for value in re.split(", ", defaults)]
        listed.update(zip(options, values, strict=False))
    for name, default in shown.items():
        if name in listed:
            assert (name, listed[name].split("(")[0]) == (name, str(default))
    assert len(set(listed) & set(shown)) == len(shown)
