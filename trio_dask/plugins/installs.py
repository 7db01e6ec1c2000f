"""Plugins that install software in the environments of workers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

from trio_dask.errors import UsageError
from trio_dask.plugins.bases import WorkerPlugin

LAST_WORDS: Final = 2000


class InstallPlugin(WorkerPlugin):
    """Calls a function that installs something, on one worker of an environment at a time.

    Args:
      install_fn: is called by each worker, also when what it installs is there already.
      restart_workers: whether workers that have a nanny get new processes then.
    """

    idempotent = True

    def __init__(self, install_fn: Callable[[], Any], restart_workers: bool = False) -> None:
        self.install_fn = install_fn
        self.restart_workers = restart_workers

    def setup(self, worker: Any) -> None:
        """Install it."""
        with _alone_in_this_environment():
            self.install_fn()
        importlib.invalidate_caches()  # what is there now can be imported without a new process


class PipInstall(InstallPlugin):
    """Installs packages with pip in the environment of each worker.

    Args:
      packages: as in a file of requirements; `${NAME}` stands for a variable of the worker's environment.
      pip_options: such as `["--upgrade"]`.
      restart_workers: as for `InstallPlugin`.
    """

    def __init__(
        self, packages: Sequence[str], pip_options: Sequence[str] | None = None, restart_workers: bool = False
    ) -> None:
        if isinstance(packages, str):
            raise UsageError("PipInstall() takes a list of packages")
        super().__init__(_PipInstaller(list(packages), list(pip_options or ())), restart_workers)
        self.name = f"pip-install-{hashlib.sha256(repr((packages, pip_options)).encode()).hexdigest()[:12]}"


class _PipInstaller:
    def __init__(self, packages: list[str], options: list[str]) -> None:
        self.packages = packages
        self.options = options

    def __call__(self) -> None:
        with tempfile.NamedTemporaryFile("w+", suffix=".txt") as requirements:
            requirements.write("\n".join(self.packages))
            requirements.flush()
            command = [sys.executable, "-m", "pip", "install", *self.options, "-r", requirements.name]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip install failed: {done.stderr.decode(errors='replace').strip()[-LAST_WORDS:]}")


@contextlib.contextmanager
def _alone_in_this_environment() -> Generator[None]:
    """Two that install into one environment at once may break it."""
    digest = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"trio-dask-install-{os.getuid()}-{digest}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
