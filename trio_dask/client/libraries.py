"""Libraries that only some calls need: imported where they are used, and asked for in one line where they are not."""

from __future__ import annotations

import importlib
from typing import Any

from trio_dask.errors import UnavailableError


def library(module: str, package: str = "") -> Any:
    """A module of a package that is not required; its name is that of the module, if it is not given.

    Raises:
      UnavailableError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise not_installed(package or module, error) from error


def not_installed(package: str, error: ImportError) -> UnavailableError:
    """What tells a user to install a package."""
    return UnavailableError(f"this needs {package}; run: python -m pip install {package} ({error})")
