"""`Event`: set or not, for all programs and tasks of a cluster."""

from __future__ import annotations

from trio_dask.client.call_forms import Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.requests import ForAnswer, Primitive, answered, ask, wants_at_once


class BaseEvent(Primitive):
    """What both forms of an event have in common."""

    KIND = "event"


def _wait(event: BaseEvent, timeout: Timeout = None) -> Waiting[bool]:
    """Wait until the event is set; False if it was not set in time.

    A task keeps its slot meanwhile, as with distributed, so what sets the event must not wait for that slot; a task
    that calls `secede()` before gives it to others.
    """
    if wants_at_once(True, timeout):
        return _is_set(event)
    return ForAnswer(event, "wait", (), answered, timeout, lambda: False)


def _set(event: BaseEvent) -> Waiting[None]:
    """Set the event, and wake all that wait for it."""
    return ask(event, "set")


def _clear(event: BaseEvent) -> Waiting[None]:
    """Make it an event that is not set."""
    return ask(event, "clear")


def _is_set(event: BaseEvent) -> Waiting[bool]:
    """Whether the event is set."""
    return ask(event, "is_set")


class Event(BaseEvent):
    """An event that any program or task of the cluster can set, and any number of them can wait for.

        Event("data is there").wait()       # in one
        Event("data is there").set()        # in another

    Args:
      name: by which others know it; without one it is a new event, to be passed on as an argument.
      client: the client to use; by default that of `get_client()`.
    """

    wait = blocking(_wait)
    set = blocking(_set)
    clear = blocking(_clear)
    is_set = blocking(_is_set)


class AsyncEvent(BaseEvent):
    """The same for Trio: `await AsyncEvent("data is there", client).wait()`."""

    wait = awaitable_in_trio(_wait)
    set = awaitable_in_trio(_set)
    clear = awaitable_in_trio(_clear)
    is_set = awaitable_in_trio(_is_set)
