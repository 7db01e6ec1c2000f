"""What workers, nannies and clients say of themselves in their hellos.

Every field is checked, since a peer can write anything there: each function raises `ProtocolError` for an invalid one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.parsing import MAX_NAME_LENGTH, MAX_THREADS
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.wire_constants import LONGEST_GRACE_S
from trio_dask.scheduler.core.state import WorkerInfo

MAX_ADDRESS_LENGTH = 512
MAX_RESOURCES = 1000
MAX_METRICS = 100
MAX_MESSAGES = 2**62


def worker_info(hello: Hello) -> WorkerInfo:
    """The worker behind a hello. A worker without a name of its own is called by its address."""
    details = hello.details
    address = _text(details, "address", MAX_ADDRESS_LENGTH)
    if not address:
        raise ProtocolError("a worker must name the address at which it serves its data")
    return WorkerInfo(
        name=hello.name or address,
        address=address,
        host=_text(details, "host", MAX_NAME_LENGTH),
        nthreads=_number(details, "nthreads", 1, MAX_THREADS),
        memory_limit=_number(details, "memory_limit", 0, 2**62),
        resources=_resources(details),
        incarnation=hello.incarnation,
        pid=_number(details, "pid", 0, 2**31),
        reconnect=details.get("reconnect") is True,
        process=_text(details, "process", MAX_NAME_LENGTH),
        nanny=_text(details, "nanny", MAX_ADDRESS_LENGTH),
        metrics=_metrics(details),
    )


def worker_session(hello: Hello, scheduler: Incarnation) -> Incarnation:
    """The session that a worker says it had with this scheduler; empty if there was none."""
    if _text(hello.details, "scheduler", MAX_NAME_LENGTH) != scheduler:
        return Incarnation("")
    return Incarnation(_text(hello.details, "previous", MAX_NAME_LENGTH))


def client_session(hello: Hello, scheduler: Incarnation) -> tuple[bool, int]:
    """Whether a client had a session with this scheduler, and how many messages of it the client has handled."""
    details = hello.details
    received = details.get("received", 0)
    if type(received) is not int or not 0 <= received <= MAX_MESSAGES:
        raise ProtocolError("the number of messages that a client has received is a whole number")
    # A client keeps its incarnation for life: what it names as its previous session can only be its own.
    return details.get("scheduler") == scheduler and details.get("previous") == hello.incarnation, received


def client_grace_s(hello: Hello) -> float:
    """How long a client may be away, in seconds."""
    grace_s = hello.details.get("grace_s", 0)
    if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s < math.inf:
        raise ProtocolError("the grace of a client is a number of seconds")
    return min(float(grace_s), LONGEST_GRACE_S)


def client_worker(hello: Hello) -> str:
    """The incarnation of the worker whose tasks use this client; empty if it is a program's."""
    return _text(hello.details, "worker", MAX_NAME_LENGTH)


def nanny_process(hello: Hello) -> str:
    """The name that a nanny gives to its worker process; empty if it has none at the moment."""
    return _text(hello.details, "process", MAX_NAME_LENGTH)


def _text(details: Mapping[str, Any], name: str, longest: int) -> str:
    value = details.get(name, "")
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise ProtocolError(f"a worker's {name} is text of at most {longest} printable characters")
    return value


def _number(details: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = details.get(name)
    value = least if value is None else value
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"a worker's {name} is a whole number from {least} to {most}")
    return value


def _table(details: Mapping[str, Any], name: str, longest: int) -> Mapping[object, object]:
    value: object = details.get(name) or {}
    table = cast("dict[object, object]", value)  # `isinstance` alone would leave the types of its items unknown
    if not isinstance(value, dict) or len(table) > longest:
        raise ProtocolError(f"a worker's {name} are at most {longest} names with numbers")
    return table


def _resources(details: Mapping[str, Any]) -> dict[str, float]:
    resources: dict[str, float] = {}
    for name, amount in _table(details, "resources", MAX_RESOURCES).items():
        if not isinstance(name, str) or isinstance(amount, bool) or not isinstance(amount, int | float):
            raise ProtocolError(f"a worker's resource is a name with a number, not {name!r}")
        if not 0 <= amount < math.inf:
            raise ProtocolError(f"a worker must have 0 or more of a resource, not {amount!r} of {name!r}")
        resources[name] = float(amount)
    return resources


def _metrics(details: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, number in _table(details, "metrics", MAX_METRICS).items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH or not isinstance(number, int | float):
            raise ProtocolError("a worker's metric is a name with a number")
        metrics[name] = number
    return metrics
