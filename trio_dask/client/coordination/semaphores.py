"""`Semaphore`: a number of leases that programs and tasks share."""

from __future__ import annotations

from typing import Any

from trio_dask.client.call_forms import Done, Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.leases import Leased, for_lease, release
from trio_dask.client.coordination.requests import ask, wants_at_once
from trio_dask.client.task_options import whole_number


class BaseSemaphore(Leased):
    """What both forms of a semaphore have in common."""

    KIND = "semaphore"

    def __init__(self, max_leases: int = 1, name: str | None = None, client: Any = None) -> None:
        super().__init__(name, client)
        self.max_leases = whole_number("max_leases", max_leases, 1, 2**31)
        self.is_closed = False

    def _acquire(self) -> Waiting[bool]:
        return _acquire(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_leases, self.name)


def _acquire(semaphore: BaseSemaphore, timeout: Timeout = None) -> Waiting[bool]:
    """Acquire a lease, in the order of the requests; False if none was free in time.

    It is free again as a lock would be: see `Lock.acquire`.

    Raises:
      UsageError: it is in use with another number of leases.
      RuntimeError: it was closed.
    """
    if semaphore.is_closed:
        raise RuntimeError(f"the semaphore {semaphore.name!r} was closed")
    at_once = wants_at_once(True, timeout)
    return for_lease(semaphore, at_once, (semaphore.max_leases,), timeout)


def _release(semaphore: BaseSemaphore) -> Waiting[bool]:
    """Let the next one have the lease that this object acquired first, and still holds. Always True.

    Raises `RuntimeError` if it holds none.
    """
    release(semaphore)
    return Done(True)


def _get_value(semaphore: BaseSemaphore) -> Waiting[int]:
    """How many leases are held."""
    return ask(semaphore, "count")


def _close(semaphore: BaseSemaphore) -> Waiting[None]:
    """Forget the semaphore with all its leases; calls that wait for one raise `RuntimeError`."""
    semaphore.is_closed = True
    semaphore.leases.clear()
    return ask(semaphore, "close")


class Semaphore(BaseSemaphore):
    """At most so many programs and tasks of a cluster at a time.

        with Semaphore(2, "the database"):       # `async with` under Trio
            ...

    Args:
      max_leases: how many; the first one that is acquired sets it, until `close`.
      name: by which others know it; without one it is a new semaphore, to be passed on as an argument.
      client: the client to use; by default that of `get_client()`.
    """

    acquire = blocking(_acquire)
    release = blocking(_release)
    get_value = blocking(_get_value)
    close = blocking(_close)


class AsyncSemaphore(BaseSemaphore):
    """The same for Trio: `async with AsyncSemaphore(2, "the database", client)`."""

    acquire = awaitable_in_trio(_acquire)
    release = awaitable_in_trio(_release)
    get_value = awaitable_in_trio(_get_value)
    close = awaitable_in_trio(_close)
