"""The scheduler file: where a scheduler writes its address and its cluster's key, and workers and clients read them.

It also says which process wrote it, and where that process's number counts, so that the file of a scheduler that was
killed is recognised as stale.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple, cast

from trio_dask.errors import NoScheduler, UnavailableError
from trio_dask.procfs import is_hidden, pid_space, start_of
from trio_dask.security.cluster_key import ClusterKey

MAX_SCHEDULER_FILE_BYTES = 1024 * 1024


class FoundScheduler(NamedTuple):
    """The address of a scheduler, and the key of its cluster if a scheduler file names that."""

    address: str
    key: ClusterKey | None


def scheduler_file_text(
    address: str, *others: str, incarnation: str, package: str, python: str, key: ClusterKey | None = None
) -> str:
    """What a scheduler writes into its scheduler file: JSON that `read_scheduler_file` and distributed's tools read.

    They use its address; the `others` are those of its further protocols.
    """
    content: dict[str, object] = {
        "type": "Scheduler",
        "id": incarnation,
        "address": address,
        "addresses": [address, *others],
        "pid": os.getpid(),
        "process": {"start": start_of(os.getpid()), "space": pid_space()},
        "package": package,
        "python": python,
        "services": {},
        "workers": {},
    }
    if key is not None:
        content["cluster_key"] = key.hex()
    return json.dumps(content, indent=2) + "\n"


def copied_scheduler_file_text(address: str, *, incarnation: str, key: ClusterKey | None = None) -> str:
    """What a client writes into a scheduler file: it names no process, since it knows none."""
    content: dict[str, object] = {"type": "Scheduler", "id": incarnation, "address": address, "workers": {}}
    return json.dumps(content if key is None else {**content, "cluster_key": key.hex()}, indent=2) + "\n"


def find_scheduler(address: str | None, path: str | None) -> FoundScheduler:
    """This address, or what is in the scheduler file `path`, if that is given.

    Raises:
      NoScheduler: there is no such file, or the scheduler that wrote it has ended.
      UnavailableError: the file cannot be read, is not a scheduler file, or may not be trusted.
    """
    if path is None and address is not None:
        return FoundScheduler(address, None)
    found = None if path is None else read_scheduler_file(path)
    if found is None:
        raise NoScheduler(f"the scheduler file {path} does not exist")
    return found


def read_scheduler_file(path: str) -> FoundScheduler | None:
    """What is in a scheduler file, or None while there is no such file; raises what `find_scheduler` does."""
    try:
        file, is_link = _open(path)
        with file:
            found = os.fstat(file.fileno())
            if stat.S_ISFIFO(found.st_mode):
                raise OSError(errno.ESPIPE, "it is a pipe")
            data = file.read(MAX_SCHEDULER_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UnavailableError(f"cannot read the scheduler file {path}: {exc.strerror or exc}") from exc
    if len(data) > MAX_SCHEDULER_FILE_BYTES:
        raise UnavailableError(f"{path} is not a scheduler file: it is longer than {MAX_SCHEDULER_FILE_BYTES} bytes")
    if not data.strip():
        return None  # another tool writes it in place and has just begun
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as exc:
        where = f" at byte {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise UnavailableError(f"{path} is not a scheduler file: invalid JSON{where}") from exc
    fields: Mapping[str, object] = cast("Mapping[str, object]", content) if isinstance(content, dict) else {}
    address = fields.get("address")
    if not isinstance(address, str):
        raise UnavailableError(f"{path} is not a scheduler file: it contains no address")
    pid, runs = scheduler_process(fields)
    if runs is False:
        raise NoScheduler(f"the scheduler file {path} is stale: its scheduler, pid {pid}, has ended")
    secret = fields.get("cluster_key")
    if secret is None:
        return FoundScheduler(address, None)
    # Whoever can write the file chooses for which cluster a worker of ours works; whoever can read it joins that one.
    if is_link:  # whoever can write its folder could lead it elsewhere
        raise _untrusted(path, "is a symbolic link", "name the file itself")
    if found.st_uid not in (os.geteuid(), 0):
        raise _untrusted(path, f"belongs to user {found.st_uid}", "use one of yours")
    if found.st_mode & 0o077:
        remedy = f"run `chmod 600 {path}`"
        text = f"others may use the scheduler file {path}, which holds the key of its cluster: {remedy}"
        raise UnavailableError(text, remedy=remedy)
    try:
        return FoundScheduler(address, ClusterKey.from_hex(str(secret), source=f"the one in {path}"))
    except ValueError as exc:
        raise UnavailableError(f"{path} is not a scheduler file: its cluster_key is none, {exc}") from None


def _untrusted(path: str, problem: str, remedy: str) -> UnavailableError:
    text = f"the scheduler file {path} holds the key of a cluster and {problem}: {remedy}"
    return UnavailableError(text, remedy=remedy)


def _open(path: str) -> tuple[BinaryIO, bool]:
    """The file, and whether a symbolic link led to it, told by opening it, since a link may be replaced at any time."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer, and nothing interrupts that.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return open(path, "rb", opener=lambda name, _: os.open(name, flags | os.O_NOFOLLOW)), False
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
    return open(path, "rb", opener=lambda name, _: os.open(name, flags)), True


def scheduler_process(content: Mapping[str, object]) -> tuple[int, bool | None]:
    """The process that a scheduler file names, and whether it runs; None if that cannot be told from here."""
    pid, process = content.get("pid"), content.get("process")
    start = cast("Mapping[str, object]", process).get("start") if isinstance(process, dict) else None
    if type(pid) is not int or pid <= 0 or process != {"start": start, "space": pid_space()} or type(start) is not int:
        return 0, None
    found = start_of(pid)
    if found is None and is_hidden(pid):
        return pid, None
    return pid, found == start
