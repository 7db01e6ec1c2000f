"""The units for systemd, in examples/systemd: the documentation shows them, systemd takes them, and they can be run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser, SectionProxy
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import REPOSITORY
from tests.programs.sites import REGISTERED, SCHEDULER_AT, open_site

pytestmark = pytest.mark.slow

UNITS = sorted((REPOSITORY / "examples" / "systemd").glob("*.service"))
verify = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd brings it"
)


def section(unit: Path, name: str) -> SectionProxy:
    parser: Any = ConfigParser()
    parser.optionxform = str
    parser.read_string(unit.read_text())
    found: SectionProxy = parser[name]
    return found


def test_there_is_a_unit_for_each_program() -> None:
    assert [unit.stem for unit in UNITS] == ["dask-scheduler", "dask-worker"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_documentation_shows_the_unit_as_it_is(unit: Path) -> None:
    blocks = re.findall(r"```ini\n(.*?)```", (REPOSITORY / "docs" / "operating.md").read_text(), re.DOTALL)
    assert unit.read_text() in blocks


@verify
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / unit.stem  # systemd looks whether there is such a program
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/cluster/bin", str(tmp_path)))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(copy)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env={"PATH": os.environ["PATH"], "HOME": "/"}
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.stem in line]) == (0, []), done.stderr


def test_what_the_units_start_finds_each_other(tmp_path: Path) -> None:
    boss_line, worker_line = (shlex.split(section(unit, "Service")["ExecStart"]) for unit in UNITS)
    assert [os.path.basename(line[0]) for line in (boss_line, worker_line)] == ["dask-scheduler", "dask-worker"]
    with open_site(tmp_path) as site:
        here = ["127.0.0.1" if word == "10.0.0.5" else word for word in boss_line[1:]]
        boss = site.start("scheduler", *here, "--port", "0")
        address = boss.wait_for(SCHEDULER_AT)
        words = [address if word.startswith("tcp://") else word for word in worker_line[1:]]
        site.start("worker", *words, "--nthreads", "1").wait_for(REGISTERED)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_at_boot_after_the_network_for_a_user_and_again_after_every_end(unit: Path) -> None:
    assert section(unit, "Unit")["After"] == section(unit, "Unit")["Wants"] == "network-online.target"
    assert section(unit, "Install")["WantedBy"] == "multi-user.target"
    service = section(unit, "Service")
    assert (service["Restart"], service["KillMode"]) == ("always", "mixed")
    assert "2" in service["RestartPreventExitStatus"].split(), "wrong usage stays wrong"
    assert service["User"] not in ("", "root")
