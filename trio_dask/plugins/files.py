"""Plugins that bring files to workers, and make the modules in them importable."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pkgutil
import sys
import zipfile
import zipimport
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from trio_dask.errors import UsageError
from trio_dask.plugins.bases import WorkerPlugin

ARCHIVES: Final = (".zip", ".egg", ".pyz")
_SKIPPED_WORDS: Final = (".git", ".github", ".pytest_cache", "tests", "docs")


class UploadFile(WorkerPlugin):
    """A file in the directory of each worker: `client.upload_file` registers it."""

    def __init__(self, filepath: str | os.PathLike[str], load: bool = True) -> None:
        path = Path(filepath)
        self.filename = path.name
        self.load = load
        self.data = path.read_bytes()

    def setup(self, worker: Any) -> None:
        """Write the file, and import what is in it."""
        path = Path(worker.local_directory) / self.filename
        path.write_bytes(self.data)
        if self.load:
            import_file(path)
            worker.forget_functions()


class UploadDirectory(WorkerPlugin):
    """A directory with modules or packages, in the directory of each worker.

    Args:
      path: of the directory.
      restart_workers: whether workers that have a nanny get new processes then, so that they import everything anew.
      update_path: whether the modules in the directory can be imported by their own names; else only the directory
        itself, as a package.
      skip_words: directories and files of these names are left out.
      skip: functions; a path for which one returns True is left out.
      mode: "workers"; nothing is sent to the scheduler, which imports no code of users.
      restart: what `restart_workers` was once called.

    Raises `UsageError` if there is no such directory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        restart_workers: bool = False,
        update_path: bool = False,
        skip_words: Sequence[str] = _SKIPPED_WORDS,
        skip: Sequence[Callable[[str], bool]] = (lambda path: path.endswith(".pyc"),),
        mode: str = "workers",
        restart: bool = False,
    ) -> None:
        if mode not in ("workers", "all"):
            raise ValueError(f"mode {mode!r} is not supported: files go to the workers, none to the scheduler")
        top = Path(path).expanduser().absolute()
        if not top.is_dir():
            raise UsageError(f"UploadDirectory() takes a directory, and {str(top)!r} is none")
        self.path = top.name
        self.name = f"upload-directory-{top.name}"
        self.restart_workers = restart_workers or restart
        self.update_path = update_path
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for file in sorted(top.rglob("*")):
                inside = file.relative_to(top)
                skipped = not set(inside.parts).isdisjoint(skip_words) or any(test(str(file)) for test in skip)
                if file.is_file() and not skipped:
                    archive.write(file, Path(top.name) / inside)
        self.data = packed.getvalue()

    def setup(self, worker: Any) -> None:
        """Unpack the directory."""
        base = Path(worker.local_directory)
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            archive.extractall(base)
        _add_to_path(str(base / self.path) if self.update_path else str(base))
        importlib.invalidate_caches()


def import_file(path: Path) -> None:
    """Import the module in a `.py` file, or the packages and modules in an archive, again if they were already."""
    if path.suffix == ".py":
        _add_to_path(str(path.parent))
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        names = [path.stem]
    elif path.suffix in ARCHIVES:
        _forget_archive(str(path))
        _add_to_path(str(path))
        names = [module.name for module in pkgutil.iter_modules([str(path)])]
    else:
        return
    importlib.invalidate_caches()
    for name in names:
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
    for name in names:
        importlib.import_module(name)


def _add_to_path(place: str) -> None:
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)


def _forget_archive(path: str) -> None:
    """Have Python read the list of files of an archive again."""
    for known in [known for known in sys.path_importer_cache if known == path or known.startswith(path + os.sep)]:
        del sys.path_importer_cache[known]
    cache: dict[str, Any] = getattr(zipimport, "_zip_directory_cache", {})
    cache.pop(path, None)
