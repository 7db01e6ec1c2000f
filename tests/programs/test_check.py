"""`trio-dask check` with a real scheduler: the way there and back, and what a wrong key gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import environment, program, scheduler

pytestmark = pytest.mark.slow


def check(*arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what was found, by name."""
    with program("-m", "trio_dask", "--check", "--json", *arguments, env=environment() | variables) as running:
        ended = running.end()
    assert running.errors == []
    return ended, {each["name"]: each for each in json.loads(running.output[0])}


def test_the_way_to_a_scheduler_and_back_is_in_order(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with scheduler("--scheduler-file", str(file)) as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        for arguments in ([address], ["--scheduler-file", str(file)]):
            _, found = check(*arguments)
            remote = ("key", "scheduler", "TLS", "route", "versions", "clocks", "way back")
            assert [found[name]["ok"] for name in remote] == [True] * len(remote), found
            assert "the scheduler reaches 127.0.0.1:" in found["way back"]["text"]


def test_a_wrong_key_is_the_line_of_the_key(tmp_path: Path) -> None:
    with scheduler() as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        ended, found = check(address, XDG_CONFIG_HOME=str(tmp_path))
    assert ended == 4
    assert "this cluster asks for its key" in found["key"]["text"]
    assert "scheduler" not in found


def test_no_scheduler_is_status_3() -> None:
    ended, found = check("127.0.0.1:1", "--timeout", "1s")
    assert ended == 3 or not all(each["ok"] for name, each in found.items() if name != "scheduler")
    assert found["scheduler"]["remedy"].startswith("start dask-scheduler there")


def test_an_address_without_a_protocol_has_that_of_the_option() -> None:
    with scheduler("--protocol", "tls") as boss:
        address = boss.wait_for(r"Scheduler at: +tls://(\S+)")
        _, found = check(address, "--protocol", "tls")
    assert found["scheduler"]["ok"]
