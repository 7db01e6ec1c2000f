"""The processes of a run on this host: found by what each of them carries, counted, and ended.

Every process that a run starts inherits an environment variable with its name. The first one, whose own environment is
older than the run, carries the name as its process name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trio_dask.deploy.ssh.orders import RUN_VARIABLE

NAME = "tds-"
"""With the name of a run, 11 characters, behind it: the longest name of a process that Linux has."""
KILL_S = 2.0
PAUSE_S = 0.01
INIT = frozenset(("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit"))


class Found(NamedTuple):
    """A process of a run; `leads` it if the launcher talks to this process."""

    pid: int
    run: str
    leads: bool


def name_this_process(run: str) -> None:
    """Carry the name of the run."""
    with suppress(OSError):  # there is no /proc
        Path("/proc/self/comm").write_text(f"{NAME}{run}", encoding="ascii")
    os.environ[RUN_VARIABLE] = run


def processes_of(run: str | None = None) -> list[Found]:
    """The living processes of this run, or of every run, except this process."""
    return [found for found in _all() if run is None or found.run == run]


def _all() -> Iterator[Found]:
    with suppress(OSError):  # there is no /proc
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with suppress(OSError, ValueError):  # it has just ended, or is another user's
                    found = _read(int(entry))
                    if found is not None:
                        yield found


def _read(pid: int) -> Found | None:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    comm, _, rest = text.partition("(")[2].rpartition(")")
    if rest.split()[0] in "ZX":
        return None
    if os.stat(f"/proc/{pid}").st_uid != os.getuid():
        return None
    if comm.startswith(NAME):
        return Found(pid, comm.removeprefix(NAME), leads=True)
    prefix = f"{RUN_VARIABLE}=".encode()
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(prefix):
            return Found(pid, entry.removeprefix(prefix).decode(errors="replace"), leads=False)
    return None


def abandoned() -> list[Found]:
    """The processes of every run whose launcher cannot reach them any more: no living SSH server is above them."""
    everything = processes_of()
    held = {found.run for found in everything if found.leads and not _is_orphan(found.pid)}
    return [found for found in everything if found.run not in held]


def _is_orphan(pid: int) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        return parent <= 1 or Path(f"/proc/{parent}/comm").read_text(errors="replace").strip() in INIT
    except OSError:
        return True


def sweep(run: str) -> tuple[int, int]:
    """End what is left of this run, or, without a run, what is abandoned. Gives how many there were, and are still."""
    found = _targets(run)
    before = len(found)
    give_up_at = time.monotonic() + KILL_S
    while found and time.monotonic() < give_up_at:
        for one in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
        found = _targets(run)
    return before, len(found)


def _targets(run: str) -> list[Found]:
    return processes_of(run) if run else abandoned()
