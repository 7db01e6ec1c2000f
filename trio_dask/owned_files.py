"""Files that a program keeps while it runs: the scheduler file and the pid file.

Each appears at once and whole (written under another name, then renamed), and only its owner can read it. The program
that wrote it removes it again, unless another program has replaced it meanwhile.

A program that was killed leaves its files behind. Such a file is stale: no process has the number that it names, or
that process started at another time. A pid file has to be a bare number, for scripts that run `kill $(cat FILE)`, so
its time of modification is set to the start of the process.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from trio_dask.errors import UnavailableError
from trio_dask.procfs import start_of, time_of
from trio_dask.scheduler_file import MAX_SCHEDULER_FILE_BYTES, scheduler_process

SAME_START_S = 2.0
"""Some file systems keep times in steps of two seconds, and the kernel gives its own start in whole seconds."""
_kept: dict[Path, os.stat_result] = {}
"""The files of the blocks of `keep_file` that this process is in."""


@contextmanager
def keep_file(path: str | None, text: str) -> Generator[None]:
    """Keep `text` in the file `path` for as long as the block lasts; without a path, do nothing.

    Raises:
      FileExistsError: the file belongs to another program, which is running.
      UnavailableError: the file cannot be written.
    """
    if path is None:
        yield
        return
    target = Path(path).absolute()  # the program may change its folder meanwhile
    if target.exists() and not target.is_file():  # else a folder would be in the way, and a device would be lost
        raise UnavailableError(f"cannot write {path}: it is not a regular file")
    owner = _running_owner(target)
    if owner is not None:
        belongs = f"{path} belongs to a running program, pid {owner}; stop that program, or give another file"
        raise FileExistsError(errno.EEXIST, belongs)
    try:
        file = _write(target, text)
    except OSError as exc:
        raise UnavailableError(f"cannot write {path}: {exc.strerror or exc}") from exc
    # While it is open, no other file can get its inode number, which tells ours from a file that has replaced it.
    with file:
        own = os.fstat(file.fileno())
        _kept[target] = own
        try:
            yield
        finally:
            _kept.pop(target, None)
            _remove_own(target, own)


def write_file(path: str, text: str) -> None:
    """Write a file that only its owner can read, and that stays. Raises `UnavailableError` if that is impossible."""
    try:
        _write(Path(path).absolute(), text).close()
    except OSError as exc:
        raise UnavailableError(f"cannot write {path}: {exc.strerror or exc}") from exc


def remove_kept_files() -> None:
    """Remove the files of all blocks of `keep_file`, in a process that is about to end without leaving them."""
    for target, own in list(_kept.items()):
        _remove_own(target, own)


def _write(target: Path, text: str) -> TextIO:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # left by a program that had this pid before and was killed here
    file = open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        file.write(text)
        file.flush()
        _date_back(draft)
        draft.replace(target)
    except BaseException:  # a draft that was not finished must not stay, whatever ended it
        file.close()
        draft.unlink(missing_ok=True)
        raise
    return file


def _date_back(draft: Path) -> None:
    start = start_of(os.getpid())
    if start is not None:
        with suppress(OSError):  # the file system does not allow it; then the file always counts as stale
            os.utime(draft, (time_of(start), time_of(start)))


def _running_owner(target: Path) -> int | None:
    """The process that wrote this file, if it runs and is not this one."""
    try:
        if not target.is_file():
            return None
        with open(target, "rb") as file:
            written_at = os.fstat(file.fileno()).st_mtime
            content: Any = json.loads(file.read(MAX_SCHEDULER_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        pid, runs = scheduler_process(cast("Mapping[str, object]", content))
    elif type(content) is int:
        start = start_of(content)
        pid, runs = content, start is not None and abs(time_of(start) - written_at) <= SAME_START_S
    else:
        return None
    return pid if runs and pid != os.getpid() else None


def _remove_own(target: Path, own: os.stat_result) -> None:
    try:
        if os.path.samestat(target.lstat(), own):
            target.unlink()
    except OSError:
        pass  # gone already, or its folder is: nothing is left to remove
