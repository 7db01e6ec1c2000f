"""What `trio-dask check` looks at: each thing is in order, or has one remedy."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trio_dask._version import __version__
from trio_dask.errors import TrioDaskError, UnavailableError
from trio_dask.exit_status import ExitStatus
from trio_dask.host_limits import cpus, memory
from trio_dask.parsing import LEAST_MEMORY_BYTES, format_bytes

FILES_WANTED: Final = 4096
"""What a scheduler needs for some thousand peers, and each worker for as many others."""
PROCESSES_WANTED: Final = 512
SPILL_BYTES_WANTED: Final = 2**30
LARGEST_SKEW_S: Final = 5.0


class Check(NamedTuple):
    """One thing that was looked at, and what to do if it is wrong; `status` is then that of a program that needs it.

    With a remedy and without such a status it is a warning: programs run, and may fail later.
    """

    name: str
    text: str
    remedy: str = ""
    status: ExitStatus = ExitStatus.STOPPED

    @property
    def word(self) -> str:
        """How it is, in one word."""
        return "wrong" if self.status else "warn" if self.remedy else "ok"

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.word:5}  {self.name:10}  {self.text}{self.remedy and f'; {self.remedy}'}"


def _wrong(name: str, text: str, remedy: str) -> Check:
    return Check(name, text, remedy, ExitStatus.REFUSED)


def refused(name: str, error: TrioDaskError, remedy: str = "", *, otherwise: str = "") -> Check:
    """What an error says. Without a `remedy` it is the error's own, or `otherwise`."""
    text = str(error).removesuffix(error.remedy).rstrip("; :")
    return _wrong(name, text, remedy or error.remedy or otherwise)


def remedy_of_lack(error: Exception, scheduler_file: str | None) -> str:
    """What to do where no scheduler was found, for this reason."""
    from trio_dask.comm import ConnectionLost
    from trio_dask.errors import ProtocolError

    match error.__cause__:
        case None if scheduler_file is not None and "scheduler file" in str(error):
            return f"run: dask-scheduler --scheduler-file {scheduler_file}"
        case socket.gaierror():
            return "give the address that the scheduler logs as it starts, or add the name to /etc/hosts"
        case ProtocolError() | ConnectionLost():
            return "give the address that the scheduler logs as it starts"
        case OSError():
            return "start dask-scheduler there, or open its port in the firewall there"
        case _:
            return "open the scheduler's port in the firewall there, or see whether dask-scheduler hangs"


def check_name() -> Check:
    """Whether this machine knows its own name."""
    name = socket.gethostname()
    try:
        found = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError:
        remedy = f"run: echo '127.0.1.1 {name}' | sudo tee -a /etc/hosts"
        return _wrong("names", f"nothing knows the name of this machine, {name}", remedy)
    return Check("names", f"{name} is {', '.join(found)}")


def check_open_files() -> Check:
    """Whether a program may open enough files; ours raise their limit to the hard one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit" if hard == resource.RLIM_INFINITY else f"{hard}"
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        remedy = f"run: ulimit -Hn {16 * FILES_WANTED} (as root, or in /etc/security/limits.conf)"
        return _wrong("open files", f"at most {shown} (now {soft})", remedy)
    return Check("open files", f"{shown} (now {soft})")


def check_processes() -> Check:
    """Whether this user may start enough processes and threads."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY and hard < PROCESSES_WANTED:
        remedy = f"run: ulimit -Hu {4 * PROCESSES_WANTED} (as root, or in /etc/security/limits.conf)"
        return _wrong("processes", f"at most {hard} processes and threads of this user", remedy)
    shown = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    return Check("processes", f"{shown}, on {cpus().number} CPUs ({cpus().source})")


def check_memory() -> Check:
    """Whether a worker has room."""
    found = memory()
    text = f"{format_bytes(found.number)} ({found.source})"
    if found.number < LEAST_MEMORY_BYTES:
        return _wrong("memory", text, f"a worker needs {format_bytes(LEAST_MEMORY_BYTES)}: raise that limit")
    return Check("memory", text)


def check_disk(folder: str | None) -> Check:
    """Whether the folder to spill to can be used, is on a disk, and has room."""
    from trio_dask.worker.spill_directory import SpillDirectory, check_base

    directory = SpillDirectory(folder)
    base = directory.base
    other = "start workers with --local-directory FOLDER, a folder on a large disk"
    try:
        if folder is not None:
            check_base(folder)
        free = shutil.disk_usage(base).free
    except (UnavailableError, OSError) as error:
        return _wrong("disk", f"{base} cannot be used: {getattr(error, 'strerror', None) or error}", other)
    if directory.in_memory():
        return _wrong("disk", f"{base} is in memory, so that spilling gains nothing", other)
    if not os.access(base, os.W_OK):
        return _wrong("disk", f"no permission to write in {base}", other)
    if free < SPILL_BYTES_WANTED:
        return _wrong("disk", f"{base} has {format_bytes(free)} left", other)
    return Check("disk", f"{base} has {format_bytes(free)} left")


def check_versions(theirs: Mapping[str, Any], packages: Mapping[str, str]) -> Check:
    """Whether Python and trio_dask are those of the scheduler; `packages` are ours."""
    python = ".".join(map(str, sys.version_info[:2]))
    if theirs["package"] != __version__:
        remedy = f"run: python -m pip install trio_dask=={theirs['package']}"
        return _wrong("versions", f"trio_dask {__version__} here, {theirs['package']} at the scheduler", remedy)
    if theirs["python"] != python:
        text = f"Python {python} here, {theirs['python']} at the scheduler"
        return _wrong("versions", text, f"use an environment with Python {theirs['python']} here")
    others: Mapping[str, str] = theirs["packages"]
    differing = {name: version for name, version in packages.items() if others.get(name, version) != version}
    shown = [f"{name} {version} here and {others[name]} there" for name, version in differing.items()]
    wanted = " ".join(f"{name}=={others[name]}" for name in differing)
    remedy = f"run: python -m pip install {wanted}" if differing else ""
    return Check("versions", ", ".join([f"Python {python}, trio_dask {__version__}", *shown]), remedy)


def check_clocks(theirs: float, sent: float, received: float) -> Check:
    """Whether both clocks agree, as far as the time between question and answer tells."""
    skew = max(0.0, sent - theirs, theirs - received)
    if skew > LARGEST_SKEW_S:
        return _wrong("clocks", f"they differ by {skew:.0f} s", "run: sudo timedatectl set-ntp true (on both machines)")
    return Check("clocks", f"they agree within {max(skew, received - sent):.1f} s")


def check_way_back(host: str, port: int, unreached: str) -> Check:
    """Whether the scheduler reaches what listens here, as it and other workers reach a worker."""
    if unreached:
        text = f"the scheduler does not reach {host}:{port}, which listens here: {unreached}"
        remedy = "open a range of ports in the firewall here, and give it to workers: --worker-port FIRST:LAST"
        return _wrong("way back", text, remedy)
    return Check("way back", f"the scheduler reaches {host}:{port} on this machine")
