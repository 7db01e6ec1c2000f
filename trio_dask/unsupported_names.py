"""The names that `dask.distributed` has and trio_dask does not, each with the reason or with what to use instead.

Reading such a name raises an `AttributeError` with that sentence; `hasattr` is False, as for any other name that does
not exist. `docs/differences.md` has the same sentences. A test compares them, and the names with those of a
released version of distributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

PAGE: Final = "docs/differences.md"

INTERNAL = "it is internal to distributed"
NO_DASHBOARD = "there is no dashboard"
NO_ASYNCIO = "there is no asyncio; use AsyncClient under Trio"


def _reasons(names: Mapping[str, str]) -> Mapping[str, str]:
    """The reason for each name, from the names for each reason."""
    return {name: reason for reason, those in names.items() for name in those.split()}


MODULE: Final = _reasons(
    {
        "use Client.get_executor": "CompatibleExecutor",
        "use PipInstall, or InstallPlugin with a function that calls conda": "CondaInstall",
        "use LocalCluster or dask-worker": "SpecCluster",
        "states are words; see Client.status and Future.status": "Status",
        "use LocalCluster, whose workers are processes of their own": "SubprocessCluster",
        "use Python's own TimeoutError": "TimeoutError",
        "use dask.config; docs/configuration.md has the keys": "config",
        INTERNAL: "connect dask",
        NO_DASHBOARD: "widgets",
        "use worker_client": "local_client",
        NO_ASYNCIO: "sync",
    }
)

CLIENT: Final = _reasons({})

FUTURE: Final = _reasons(
    {
        "a future belongs to the client that made it": "bind_client",
        "use client": "executor",
    }
)

AS_COMPLETED: Final = _reasons(
    {
        INTERNAL: "condition",
    }
)

CLUSTER: Final = _reasons(
    {
        NO_ASYNCIO: "called_from_running_loop",
        "connect to a cluster by its address": "from_name",
        INTERNAL: "new_worker_spec",
        "use scale": "start_worker",
    }
)


def unsupported_error(owner: str, name: str, reasons: Mapping[str, str]) -> AttributeError:
    """The error to raise for a name that `owner` does not have; it gives the reason if distributed has the name."""
    reason = reasons.get(name)
    if reason is None:
        return AttributeError(f"{owner} has no attribute {name!r}")
    return AttributeError(f"{owner} has no attribute {name!r}, which distributed has: {reason} (see {PAGE})")


class UnsupportedName:
    """A descriptor for an attribute that distributed has and this class does not.

    For classes whose attributes are read for each task: a `__getattr__` would slow down every one of them.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise unsupported_error(owner.__name__, self._name, self._reasons)
