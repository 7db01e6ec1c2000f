"""What programs announce on machines without a default route: addresses that others can reach, and all that may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.programs.network import Machine, why_not
from tests.programs.sites import REGISTERED, SCHEDULER_AT, open_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}: apt-get install iproute2 util-linux, as root"),
]

ONE, OTHER = "10.1.0.5", "10.2.0.5"


@contextmanager
def machine_with(*addresses: str) -> Iterator[Machine]:
    """A machine with one network interface for each of these: eth0, eth1, ..."""
    machine = Machine()
    try:
        for number, address in enumerate(addresses):
            name, end = f"eth{number}", f"end{number}"
            machine.ip("link", "add", name, "type", "veth", "peer", "name", end)
            machine.ip("address", "add", f"{address}/24", "dev", name)
            for each in (name, end):
                machine.ip("link", "set", each, "up")
        yield machine
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("addresses", "arguments", "announced", "others"),
    [
        ([], [], "127.0.0.1", None),
        ([ONE], [], ONE, None),
        ([ONE, OTHER], [], ONE, OTHER),
        ([ONE, OTHER], ["--interface", "eth1"], OTHER, None),
        ([ONE, OTHER], ["--host", OTHER], OTHER, None),
    ],
)
def test_a_scheduler_announces_what_others_reach(
    tmp_path: Path, addresses: list[str], arguments: list[str], announced: str, others: str | None
) -> None:
    with machine_with(*addresses) as machine, open_site(tmp_path) as site:
        boss = site.start("scheduler", "--port", "8786", "--scheduler-file", "s.json", *arguments, machine=machine)
        assert boss.wait_for(SCHEDULER_AT) == f"tcp://{announced}:8786"
        assert json.loads((site.cwd / "s.json").read_text())["address"] == f"tcp://{announced}:8786"
        file = ["--scheduler-file", "s.json", "--nthreads", "1"]
        worker = site.start("worker", *file, machine=machine)
        assert worker.wait_for(REGISTERED) == f"tcp://{announced}:8786"
        for what in ("nanny", "worker"):
            assert worker.wait_for(rf"^Start {what} at: tcp://(\S+):\d+$") == announced
        several = [line for line in boss.errors if "several addresses" in line]
        if others is None:
            assert several == []
        else:
            assert f"tcp://{others}:8786" in several[0]
            assert "choose one with --interface or --host" in several[0]


def test_a_scheduler_can_be_kept_on_this_machine(tmp_path: Path) -> None:
    with machine_with(ONE) as machine, open_site(tmp_path) as site:
        for arguments in (["--host", "127.0.0.1"], ["--interface", "lo"]):
            boss = site.start("scheduler", "--port", "0", *arguments, machine=machine)
            assert boss.wait_for(SCHEDULER_AT).startswith("tcp://127.0.0.1:")
        site.finish()


def test_nannies_and_workers_that_listen_everywhere_announce_the_way_to_their_scheduler(tmp_path: Path) -> None:
    with machine_with(ONE, OTHER) as machine, open_site(tmp_path) as site:
        boss = site.start("scheduler", "--host", OTHER, "--port", "8786", machine=machine)
        boss.wait_for(SCHEDULER_AT)
        worker = site.start("worker", f"{OTHER}:8786", "--nthreads", "1", "--host", "0.0.0.0", machine=machine)
        worker.wait_for(REGISTERED)
        for what in ("nanny", "worker"):
            assert worker.wait_for(rf"^Start {what} at: tcp://(\S+):\d+$") == OTHER


def test_a_worker_that_has_no_route_to_its_scheduler_yet_does_not_hide_on_loopback(tmp_path: Path) -> None:
    with machine_with(ONE) as machine, open_site(tmp_path) as site:
        worker = site.start("worker", "192.0.2.9:8786", "--nthreads", "1", machine=machine)
        for what in ("nanny", "worker"):
            assert worker.wait_for(rf"^Start {what} at: tcp://(\S+):\d+$") == ONE
