"""A cluster over SSH: four hosts, which are addresses of this machine, with OpenSSH's server."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .model import Case, Context, Kind, Metric, Unsupported, absolute

if TYPE_CHECKING:
    from tests.programs.sshd import Sshd

HOSTS = 4
BOUND = absolute(2.5, "at most 2.5 s")


def ready(context: Context) -> dict[str, float]:
    """From the start of `dask-ssh` until its last host has joined; without a terminal, so without a table."""
    from tests.programs.sshd import program, sshd

    if program() is None:
        raise Unsupported("needs openssh-server")
    folder = Path(context.folder, "ssh")
    folder.mkdir()
    with sshd(folder, "MaxStartups 100") as server:
        return {client: _time(server, client) for client in ("asyncssh", "openssh")}


def _time(server: Sshd, client: str) -> float:
    from tests.programs.programs import program

    login = ("--ssh-client", client, "--ssh-config", server.configuration)
    options = ("--scheduler-port", "0", "--nthreads", "1")
    started = time.perf_counter()
    with program("-m", "trio_dask", "ssh", *server.hosts(HOSTS), *login, *options, env=server.environment()) as running:
        running.wait_for("^Stop ", running.output, timeout_s=60)
        elapsed = time.perf_counter() - started
        assert running.stop(signal.SIGINT) == 0, running.text
    assert re.search(rf"0 processes left on {HOSTS} hosts", running.text), running.text
    return elapsed


CASES = (
    Case(
        "ssh",
        "start of a cluster over SSH",
        ready,
        (
            Metric("asyncssh", "dask-ssh ready, four hosts", Kind.TIME, (BOUND,)),
            Metric("openssh", "the same with OpenSSH's client", Kind.TIME, (BOUND,)),
        ),
        cluster=False,
        only_ours=True,
    ),
)
