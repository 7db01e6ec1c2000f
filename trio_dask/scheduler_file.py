"""Small files by which programs find one another: the scheduler file and the pid file.

They appear at once and whole (written under another name, then renamed), only their owner can read them, and whoever
wrote one removes it again, unless somebody else has replaced it meanwhile.

A program that was killed leaves its files behind. They are recognised as stale by the process that they name: none has
that number now, or one that started at another time. A scheduler file says when its process started, and where its
number counts. A pid file has to be a bare number, for those who write `kill $(cat FILE)`, so its time of modification
is set to the start of the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from trio_dask.errors import NoScheduler, UnavailableError, UsageError

__all__ = ["check_writable", "present", "read_scheduler_file", "remove_present", "scheduler_file_text"]

MAX_SCHEDULER_FILE_BYTES = 1024 * 1024
SAME_START_S = 2.0
"""Some file systems keep times in steps of two seconds, and the kernel tells its start in whole ones."""
_present: dict[Path, os.stat_result] = {}
"""The files of the blocks of `present` that this process is in."""


@contextmanager
def present(path: str | None, text: str) -> Generator[None]:
    """Have `text` stand in the file `path` for as long as the block lasts; without a path, do nothing.

    Raises:
      FileExistsError: the file is that of another program, which is running.
      UnavailableError: the file cannot be written.
    """
    if path is None:
        yield
        return
    target = Path(path).absolute()  # the program may change its folder meanwhile
    owner = _running_owner(target)
    if owner is not None:
        belongs = f"{path} belongs to a running program, pid {owner}; stop that program, or give another file"
        raise FileExistsError(errno.EEXIST, belongs)
    try:
        file = _write(target, text)
    except OSError as exc:
        raise UnavailableError(f"cannot write {path}: {exc.strerror or exc}") from exc
    # While it is open, no other file can get its number, so that ours is told from what may have taken its place.
    with file:
        own = os.fstat(file.fileno())
        _present[target] = own
        try:
            yield
        finally:
            _present.pop(target, None)
            _remove_own(target, own)


def remove_present() -> None:
    """Remove the files of all blocks of `present`: for a process that is about to end without leaving them."""
    for target, own in list(_present.items()):
        _remove_own(target, own)


def check_writable(path: str) -> None:
    """Find out early whether `path` can be written by `present`.

    Raises:
      UnavailableError: it cannot.
    """
    try:
        target = Path(path).absolute()
    except FileNotFoundError:
        raise UnavailableError(f"cannot write {path}: the folder in which this program was started is gone") from None
    if target.is_dir():
        raise UnavailableError(f"cannot write {path}: it is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise UnavailableError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UnavailableError(f"cannot write {path}: no permission to write in {target.parent}")


def _write(target: Path, text: str) -> TextIO:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # of a program that had this pid before and was killed here
    file = open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        file.write(text)
        file.flush()
        _date_back(draft)
        draft.replace(target)
    except BaseException:
        file.close()
        draft.unlink(missing_ok=True)
        raise
    return file


def _date_back(draft: Path) -> None:
    start = _start_of(os.getpid())
    if start is not None:
        with suppress(OSError):  # a file system that does not let us; then it will always be taken for stale
            os.utime(draft, (_time_of(start), _time_of(start)))


def _running_owner(target: Path) -> int | None:
    """The process that wrote this file, if it runs, and is not this one."""
    try:
        if not target.is_file():
            return None
        with open(target, "rb") as file:
            written_at = os.fstat(file.fileno()).st_mtime
            content: Any = json.loads(file.read(MAX_SCHEDULER_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        pid, runs = _scheduler_of(cast("Mapping[str, object]", content))
    elif type(content) is int:
        start = _start_of(content)
        pid, runs = content, start is not None and abs(_time_of(start) - written_at) <= SAME_START_S
    else:
        return None
    return pid if runs and pid != os.getpid() else None


def _scheduler_of(content: Mapping[str, object]) -> tuple[int, bool | None]:
    """The process that a scheduler file names, and whether it runs; None if that cannot be told from here."""
    pid, process = content.get("pid"), content.get("process")
    start = cast("Mapping[str, object]", process).get("start") if isinstance(process, dict) else None
    if type(pid) is not int or pid <= 0 or process != {"start": start, "place": _place()} or type(start) is not int:
        return 0, None
    found = _start_of(pid)
    if found is None and _is_hidden(pid):
        return pid, None
    return pid, found == start


def _start_of(pid: int) -> int | None:
    """When the process with this number started, in ticks since the machine did; None if there is none that lives.

    Also None where there is no `/proc`: then nothing is known of anybody.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _time_of(ticks: int) -> float:
    """When so many ticks had passed since the machine started, in seconds since 1970, give or take one."""
    with open("/proc/stat", "rb") as file:
        booted = next((line.split()[1] for line in file if line.startswith(b"btime ")), b"0")
    return int(booted) + ticks / os.sysconf("SC_CLK_TCK")


def _is_hidden(pid: int) -> bool:
    """Whether a process may be there that `/proc` does not show us."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return not os.path.exists("/proc/self/stat")
    except (OSError, OverflowError):
        return True
    return not os.path.exists(f"/proc/{pid}")


def _place() -> str:
    """A name for where process numbers and start times count: this machine, since it started, and this namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


def _remove_own(target: Path, own: os.stat_result) -> None:
    try:
        if os.path.samestat(target.lstat(), own):
            target.unlink()
    except OSError:
        pass  # gone already, or its folder is: nothing is left to remove


def scheduler_file_text(address: str, *, incarnation: str, package: str, python: str) -> str:
    """What a scheduler writes into its scheduler file: JSON that `read_scheduler_file` and distributed's tools read."""
    content: dict[str, object] = {
        "type": "Scheduler",
        "id": incarnation,
        "address": address,
        "pid": os.getpid(),
        "process": {"start": _start_of(os.getpid()), "place": _place()},
        "package": package,
        "python": python,
        "services": {},
        "workers": {},
    }
    return json.dumps(content, indent=2) + "\n"


def read_scheduler_file(path: str) -> str | None:
    """The scheduler's address from a scheduler file, or None while there is no such file.

    Raises:
      NoScheduler: the scheduler that wrote it has ended.
      UnavailableError: the file cannot be read.
      UsageError: it is not a scheduler file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SCHEDULER_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UnavailableError(f"cannot read the scheduler file {path}: {exc.strerror or exc}") from exc
    if len(data) > MAX_SCHEDULER_FILE_BYTES:
        raise UsageError(f"{path} is not a scheduler file: it is longer than {MAX_SCHEDULER_FILE_BYTES} bytes")
    if not data.strip():
        return None  # somebody else's tool writes it in place and has just begun
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as exc:
        where = f" at byte {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise UsageError(f"{path} is not a scheduler file: invalid JSON{where}") from exc
    fields: Mapping[str, object] = cast("Mapping[str, object]", content) if isinstance(content, dict) else {}
    address = fields.get("address")
    if not isinstance(address, str):
        raise UsageError(f"{path} is not a scheduler file: it contains no address")
    pid, runs = _scheduler_of(fields)
    if runs is False:
        raise NoScheduler(f"the scheduler file {path} is stale: its scheduler, pid {pid}, has ended")
    return address
