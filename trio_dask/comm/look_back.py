"""What a program tells a caller that checks the way between the two: its clock, its packages, whether it gets back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final

import trio

from trio_dask.errors import UsageError

PACKAGES: Final = ("trio_dask", "trio", "msgpack", "cloudpickle", "dask", "numpy", "pandas")
REACH_S: Final = 3.0


def package_versions() -> dict[str, str]:
    """The versions of the packages that both ends of a cluster may use, those that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


async def look_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The command. `unreached` says why `host` and `port` cannot be reached from here; it is empty if they can.

    Raises:
      UsageError: they are no host and port.
    """
    host, port = arguments.get("host"), arguments.get("port")
    if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536:
        raise UsageError("look_back needs a host and a port")
    now = time.time()
    unreached = ""
    try:
        with trio.fail_after(REACH_S):
            stream = await trio.open_tcp_stream(host, port)
            await stream.aclose()
    except trio.TooSlowError:
        unreached = f"no answer within {REACH_S:g} s"
    except (OSError, ValueError) as error:  # ValueError: text that can be no host
        unreached = str(error)
    return {"time": now, "packages": package_versions(), "unreached": unreached}
