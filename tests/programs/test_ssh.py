"""A launcher over real SSH servers: what it starts, what it says, and that nothing is left however it ends."""

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import Program, program
from tests.programs.sshd import Sshd, need, processes_of, sshd
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need()
    with sshd(tmp_path_factory.mktemp("ssh"), "MaxStartups 100") as running:
        yield running


def launcher(server: Sshd, *hosts: str, **settings: Any) -> AbstractContextManager[Program]:
    """A launcher on these hosts."""
    return program(
        "-m", "tests.programs.launch_ssh", json.dumps(settings), *hosts, env=server.environment(), cwd=Path.cwd()
    )


def ready(running: Program) -> tuple[str, str]:
    """The name of the run, and the scheduler's address, once everything is ready."""
    address = running.wait_for(r"^ready (.*)", running.output, timeout_s=60)
    return running.wait_for(r"^run (.*)", running.output), address


def test_a_host_runs_a_job_and_nothing_is_left_after_ctrl_c(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(server.home))
    with launcher(server, *server.hosts(1)) as running:
        run, address = ready(running)
        assert processes_of(run)
        with Client(address) as client:
            assert client.submit(pow, 2, 10).result() == 1024
        began = time.monotonic()
        assert running.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 10
        assert processes_of(run) == []
    assert re.search(r"ended in [\d.]+ s; 0 processes left on 1 host$", running.errors[-1])
    assert len(running.errors) == 2, running.text
