"""The versions of what a program runs with."""

from __future__ import annotations

import locale
import os
import platform
import struct
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final

PACKAGES: Final = ("trio_dask", "dask", "trio", "msgpack", "cloudpickle", "numpy", "pandas", "lz4")


def versions(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Of this host, and of these packages besides the usual ones; None for one that is not installed."""
    return {
        "host": {
            "python": platform.python_version(),
            "python-bits": struct.calcsize("P") * 8,
            "OS": platform.system(),
            "OS-release": platform.release(),
            "machine": platform.machine(),
            "byteorder": sys.byteorder,
            "LC_ALL": os.environ.get("LC_ALL", "None"),
            "LANG": ".".join(filter(None, locale.getlocale())) or "None",
        },
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, *packages)}},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
