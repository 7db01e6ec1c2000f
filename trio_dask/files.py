"""Small files by which programs find one another: the scheduler file and the pid file.

They appear at once and whole (written under another name, then renamed), only their owner can read them, and whoever
wrote one removes it again, unless somebody else has replaced it meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from trio_dask.errors import UsageError

__all__ = ["check_writable", "present", "read_scheduler_file", "scheduler_file_text"]

MAX_SCHEDULER_FILE_BYTES = 1024 * 1024


@contextmanager
def present(path: str | None, text: str) -> Generator[None]:
    """Have `text` stand in the file `path` for as long as the block lasts; without a path, do nothing.

    Raises:
      UsageError: the file cannot be written.
    """
    if path is None:
        yield
        return
    target = Path(path).absolute()  # the program may change its folder meanwhile
    try:
        file = _write(target, text)
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror or exc}") from exc
    # While it is open, no other file can get its number, so that ours is told from what may have taken its place.
    with file:
        try:
            yield
        finally:
            _remove_own(target, os.fstat(file.fileno()))


def check_writable(path: str) -> None:
    """Find out early whether `path` can be written by `present`.

    Raises:
      UsageError: it cannot.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission to write in {target.parent}")


def _write(target: Path, text: str) -> TextIO:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # of a program that had this pid before and was killed here
    file = open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        file.write(text)
        file.flush()
        draft.replace(target)
    except BaseException:
        file.close()
        draft.unlink(missing_ok=True)
        raise
    return file


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
        "package": package,
        "python": python,
        "services": {},
        "workers": {},
    }
    return json.dumps(content, indent=2) + "\n"


def read_scheduler_file(path: str) -> str | None:
    """The scheduler's address from a scheduler file, or None while there is no such file.

    Raises:
      UsageError: the file cannot be read, or is not a scheduler file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SCHEDULER_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"cannot read the scheduler file {path}: {exc.strerror or exc}") from exc
    if len(data) > MAX_SCHEDULER_FILE_BYTES:
        raise UsageError(f"{path} is not a scheduler file: it is longer than {MAX_SCHEDULER_FILE_BYTES} bytes")
    if not data.strip():
        return None  # somebody else's tool writes it in place and has just begun
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as exc:
        where = f" at byte {exc.pos}" if isinstance(exc, json.JSONDecodeError) else ""
        raise UsageError(f"{path} is not a scheduler file: invalid JSON{where}") from exc
    address = cast("Mapping[str, object]", content).get("address") if isinstance(content, dict) else None
    if not isinstance(address, str):
        raise UsageError(f"{path} is not a scheduler file: it names no address")
    return address
