"""The keywords of `submit` and `map` that say how a task runs; wrong values raise in the caller."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, SupportsFloat, TypeAlias, TypedDict, cast

from trio_dask.client.core.outbox import NO_EXTRA
from trio_dask.client.spans import Span
from trio_dask.client.wait_signals import as_seconds
from trio_dask.errors import UsageError
from trio_dask.ids import WorkerName
from trio_dask.parsing import checked_text
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

Workers: TypeAlias = WorkerName | Iterable[WorkerName] | None

FORWARD: Final = "forward"
ANNOTATIONS: Final = frozenset(
    {"workers", "allow_other_workers", "resources", "retries", "priority", "time_limit", "executor"}
)
"""What `dask.annotate` can say here; other annotations are for other libraries."""
DEFAULT_EXECUTOR: Final = "default"


class Options(TypedDict, total=False):
    """How tasks run.

    workers: names, addresses or hosts of the workers that may run them.
    allow_other_workers: treat `workers` as a preference.
    resources: what each needs of its worker, such as `{"GPU": 1}`.
    retries: how often one that raises runs again.
    priority: any number, larger first; tasks of the same priority run in the order of submission.
    time_limit: seconds, or a text such as "5 min"; one that runs longer fails with `TaskTimeout`.
    actor: keep what each returns on its worker, and have a proxy of it for the result.
    output: "forward" to have what they print shown by the clients as well.
    executor: the name of one that their worker has (`get_worker().executors`), or "default": the worker's own threads.
    fifo_timeout: accepted for compatibility; submissions of one client always run in their order.
    """

    workers: Workers
    allow_other_workers: bool
    resources: Mapping[str, float] | None
    retries: int | None
    priority: SupportsFloat
    time_limit: float | str | datetime.timedelta | None
    fifo_timeout: float | str
    actor: bool
    output: Literal["forward"] | None
    executor: str | None


def pop_forward(kwargs: dict[str, Any]) -> Literal["forward"] | None:
    """Take `output="forward"` out of the keywords of a call; any other `output` is for the function."""
    if not is_forward(kwargs.get("output")):
        return None
    del kwargs["output"]
    return FORWARD


def is_forward(value: Any) -> bool:
    """Whether this is the value of `output` that is meant for us. Arrays cannot be compared with a text."""
    return type(value) is str and value == FORWARD


def each_worker(workers: Workers) -> tuple[WorkerName, ...]:
    """Workers as a user names them, one or several, as a tuple. Raises `UsageError`."""
    if workers is None:
        return ()
    if isinstance(workers, str | int):
        return (workers,)
    if not isinstance(workers, Iterable):
        raise UsageError(f'workers is a name, an address or a host, or a list such as ["alice"], not {workers!r:.60}')
    return tuple(workers)


def worker_names(workers: Workers) -> tuple[str, ...]:
    """The same, as the scheduler names them: texts, also where a name is a number."""
    return tuple([checked_text("the name of a worker", str(worker), MAX_KEY_LENGTH) for worker in each_worker(workers)])


IGNORED: Final = frozenset({"actors", "asynchronous", "direct"})


def drop_ignored_options(options: Mapping[str, Any]) -> Options:
    """The keywords of `get`, without those of distributed that mean nothing here."""
    if options.get("actors"):
        raise UsageError("actors are not supported")
    return cast("Options", {name: value for name, value in options.items() if name not in IGNORED})


def known_options(options: Mapping[str, Any]) -> Options:
    """The keywords of a computation by dask that say how tasks run; the others are for other schedulers."""
    return cast("Options", {name: value for name, value in options.items() if name in Options.__annotations__})


def annotations_here() -> Mapping[str, Any]:
    """What `dask.annotate` says around the code that calls this. It does not import dask."""
    find = getattr(sys.modules.get("dask.base"), "get_annotations", None)
    return {} if find is None else find()


def annotated(options: Options, around: Mapping[str, Any]) -> Options:
    """The options of a call, and where it gives none, those of these annotations."""
    if not around:
        return options
    found = {name: value for name, value in around.items() if name in ANNOTATIONS and value is not None}
    found |= {name: value for name, value in options.items() if value}
    if "workers" not in found and not options.get("allow_other_workers"):
        found.pop("allow_other_workers", None)  # of an annotation around another one that names workers
    return cast("Options", found)


def extra_from(options: Options, span: Span | None = None) -> Mapping[str, Any]:
    """These options as the scheduler reads them, without those that are None or 0. Raises `UsageError`."""
    extra: dict[str, Any] = {}
    workers, resources, retries = options.get("workers"), options.get("resources"), options.get("retries")
    priority, time_limit = options.get("priority"), options.get("time_limit")
    if workers is not None and (names := worker_names(workers)):
        extra["workers"] = names
    if others := options.get("allow_other_workers"):
        if "workers" not in extra:
            raise UsageError("allow_other_workers=True needs workers= as well")
        if not isinstance(others, bool):
            raise TypeError(f"allow_other_workers is True or False, not {others!r:.60}")
        extra["allow_other_workers"] = True
    if resources is not None:
        if not isinstance(resources, Mapping):
            raise UsageError(f'resources must be a dict such as {{"GPU": 1}}, not {resources!r}')
        amounts = {
            checked_text("the name of a resource", str(name), MAX_KEY_LENGTH): _amount(f"resources[{name!r}]", amount)
            for name, amount in resources.items()
        }
        if amounts:
            extra["resources"] = amounts
    if retries:
        extra["retries"] = whole_number("retries", retries, 0, 2**31)
    if priority is not None and (number := _priority(priority)):
        extra["priority"] = number
    if time_limit is not None:
        extra["time_limit"] = _amount("time_limit", as_seconds(time_limit))
    if options.get("actor"):
        extra["actor"] = True
    if (output := options.get("output")) is not None:
        if output != FORWARD:
            raise UsageError(f'output is "forward" or None, not {output!r:.60}')
        extra["output"] = FORWARD
    if (executor := options.get("executor")) is not None and (name := _executor(executor)) != DEFAULT_EXECUTOR:
        if "actor" in extra:
            raise UsageError(f"an actor has a thread of its own, and cannot run in executor {name!r:.60}")
        extra["executor"] = name
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"there is no option {min(unknown)!r}")
    if span is None:
        return extra or NO_EXTRA
    return {**extra, **span.extra} if extra else span.extra


def whole_number(name: str, number: Any, least: int, most: int) -> int:
    """This number as an `int`. Raises `UsageError` if it is not whole, or out of this range."""
    try:
        found = int(number)
    except (TypeError, ValueError, OverflowError):
        found = least - 1
    if isinstance(number, bool | str) or found != number or not least <= found <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, not {number!r:.60}")
    return found


def _executor(executor: Any) -> str:
    if type(executor) is not str or not executor:
        raise UsageError(f'executor is the name of one that the worker has, such as "gpu", not {executor!r:.60}')
    return checked_text("the name of an executor", executor, MAX_KEY_LENGTH)


def _priority(priority: Any) -> float:
    """The nearest finite float."""
    number = math.nan if isinstance(priority, str | bytes | bytearray) else _nearest(priority)
    if math.isnan(number) or (math.isinf(number) and priority == number):
        raise UsageError(f"priority must be a finite number (larger runs first), not {priority!r}")
    return min(max(number, -sys.float_info.max), sys.float_info.max)


def _nearest(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer or a fraction
        return math.inf if number > 0 else -math.inf
    except (TypeError, ValueError):
        return math.nan


def _amount(name: str, amount: Any) -> float:
    try:
        number = float(amount)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"{name} must be 0 or more, such as 1, not {amount!r:.60}")
    return number
