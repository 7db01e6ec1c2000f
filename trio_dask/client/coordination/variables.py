"""`Variable`: one value or future that all programs and tasks of a cluster can read and set."""

from __future__ import annotations

from typing import Any

from trio_dask.client.call_forms import Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.requests import (
    ForAnswer,
    Primitive,
    RequestId,
    answered,
    ask,
    too_late,
    wants_at_once,
)
from trio_dask.client.coordination.values import Item, forget, item_for, values_of


class BaseVariable(Primitive):
    """What both forms of a variable have in common."""

    KIND = "variable"


def _set(variable: BaseVariable, value: Any, timeout: Timeout = None) -> Waiting[None]:
    """Set the value. Futures in it are kept, as in a queue, until it is replaced or deleted.

    Raises:
      TimeoutError: the scheduler did not answer in time.
      UsageError: the value is larger than 16 MiB, or a future in it belongs to another cluster.
      SerializationError: it cannot be pickled.
    """

    def fail() -> None:
        raise too_late(f"the variable {variable.name!r} was not set", timeout)

    return ForAnswer(variable, "set", (item_for(value, variable.engine),), answered, timeout, fail, futures=value)


def _get(variable: BaseVariable, timeout: Timeout = None) -> Waiting[Any]:
    """The value, once there is one. A task frees its slot while it waits.

    Raises `TimeoutError` if there was none in time.
    """

    def fail() -> Any:
        raise too_late(f"the variable {variable.name!r} had no value", timeout)

    def finish(request: RequestId, items: tuple[Item, ...]) -> Any:
        return values_of(request, items)[0] if items else fail()

    at_once = wants_at_once(True, timeout)
    limit = None if at_once else timeout
    return ForAnswer(variable, "get", (not at_once,), finish, limit, fail, undo=forget, frees_slot=True)


def _delete(variable: BaseVariable) -> Waiting[None]:
    """Take the value away. Calls that wait for one go on waiting."""
    return ask(variable, "delete")


class Variable(BaseVariable):
    """A variable that programs and tasks of a cluster share.

        Variable("stop").set(True)                    # in one
        Variable("stop").get(timeout=5)               # in another

    Its value lasts as long as the scheduler, or until `delete`.

    Args:
      name: by which others know it; without one it is a new variable, to be passed on as an argument.
      client: the client to use; by default that of `get_client()`.
    """

    set = blocking(_set)
    get = blocking(_get)
    delete = blocking(_delete)


class AsyncVariable(BaseVariable):
    """The same for Trio: `await AsyncVariable("stop", client).get()`."""

    set = awaitable_in_trio(_set)
    get = awaitable_in_trio(_get)
    delete = awaitable_in_trio(_delete)
