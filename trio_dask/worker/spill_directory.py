"""The directory in which a worker process keeps spilled values.

It is made when first needed, only its owner can read it, and an orderly end removes it. A killed process leaves it
behind; the next worker that starts there removes it. Its name identifies the process: machine, boot, namespace of
process numbers, the number, and the start time of the process, since numbers are used again. Directories of containers
or other machines on a shared disk are left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

from trio_dask.errors import UnavailableError

_NAME = re.compile(r"trio-dask-([0-9a-f]{12})-([0-9a-f]{12})-([0-9]+)-([0-9]+)-[^-]+")


class SpillDirectory:
    """One directory for this process, below `base`, or below the system's temporary directory."""

    def __init__(self, base: str | None = None) -> None:
        self.base = Path(base or tempfile.gettempdir()).absolute()
        self._path: str | None = None

    def make(self) -> str:
        """Make sure that the directory exists, even if somebody has removed it, and return its path.

        Raises:
          OSError: it cannot be made.
        """
        if self._path is None or not os.path.isdir(self._path):
            self.base.mkdir(parents=True, exist_ok=True)
            machine, boot = _place()
            prefix = f"trio-dask-{machine}-{boot}-{os.getpid()}-{_start_of(os.getpid())}-"
            self._path = tempfile.mkdtemp(prefix=prefix, dir=self.base)
        return self._path

    def remove(self) -> None:
        """Remove it with its content. Idempotent."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None

    def in_memory(self) -> bool:
        """Whether files here are in memory, so that spilling to them gains nothing."""
        kind, longest = "", -1
        for line in _read(Path("/proc/self/mounts")).splitlines():
            words = line.split()
            if len(words) > 2 and len(words[1]) > longest and self.base.is_relative_to(words[1]):
                kind, longest = words[2], len(words[1])
        return kind in ("tmpfs", "ramfs")


def check_base(base: str) -> None:
    """Find out at the start whether spill directories can be made in `base`, and make `base` if needed.

    Raises:
      UnavailableError: they cannot.
    """
    try:
        os.makedirs(base, exist_ok=True)
        if not os.access(base, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        raise UnavailableError(f"--local-directory: cannot write to {base}: {error.strerror or error}") from error


def remove_leftovers(base: Path) -> list[Path]:
    """Remove the directories of this user's dead worker processes, and return their paths."""
    machine, boot = _place()
    removed: list[Path] = []
    try:
        entries = [entry for entry in os.scandir(base) if entry.name.startswith("trio-dask-")]
    except OSError:
        return removed
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None or match[1] != machine or not _is_ours(entry):
            continue
        pid, start = int(match[3]), match[4]
        # Of the same boot but another namespace, this process cannot tell whether that one lives.
        gone = _start_of(pid) != start if match[2] == boot else match[2][:6] != boot[:6]
        if gone:
            shutil.rmtree(entry.path, ignore_errors=True)
            removed.append(Path(entry.path))
    return removed


def _is_ours(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _place() -> tuple[str, str]:
    """Digests of this machine, and of its present boot (6 digits) with this namespace of process numbers (6 more)."""
    machine = f"{socket.gethostname()} {_read(Path('/etc/machine-id'))}"
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    return _digest(machine, 12), _digest(boot, 6) + _digest(namespace, 6)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _start_of(pid: int) -> str:
    """When the process with this number started, in ticks of its system; empty if there is none."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    if stat:
        return stat.rpartition(")")[2].split()[19]
    if Path("/proc/self/stat").exists():
        return ""
    import psutil

    try:
        return str(int(psutil.Process(pid).create_time() * 100))
    except psutil.Error:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
