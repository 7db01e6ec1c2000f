"""`Lock`: held by one program or task at a time."""

from __future__ import annotations

from trio_dask.client.call_forms import Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.leases import Leased, for_lease, release
from trio_dask.client.coordination.requests import ForAnswer, wants_at_once


class BaseLock(Leased):
    """What both forms of a lock have in common."""

    KIND = "lock"

    def _acquire(self) -> Waiting[bool]:
        return _acquire(self)


def _acquire(lock: BaseLock, blocking: bool = True, timeout: Timeout = None) -> Waiting[bool]:
    """Acquire the lock, in the order of the requests; False if it was not free in time.

    It is free again after `release`, and once the session of the client that acquired it has ended: in a task, when
    the task's worker is lost.

    Raises `RuntimeError` if this object holds it for the same thread or Trio task, which would wait for itself.
    """
    at_once = wants_at_once(blocking, timeout)
    if not at_once and timeout is None:
        lock.refuse_reentrance()

    return for_lease(lock, at_once, (), timeout)


def _locked(lock: BaseLock) -> Waiting[bool]:
    """Whether anybody holds the lock."""
    return ForAnswer(lock, "count", (), lambda _, count: bool(count))


class Lock(BaseLock):
    """A lock for all programs and tasks of a cluster.

        with Lock("the file"):              # `async with` under Trio
            ...

    A task that waits for it keeps its slot, so it should not hold a lock while it waits for other tasks.

    Args:
      name: by which others know it; without one it is a new lock, to be passed on as an argument.
      client: the client to use; by default that of `get_client()`.
    """

    acquire = blocking(_acquire)
    release = blocking(release)
    locked = blocking(_locked)


class AsyncLock(BaseLock):
    """The same for Trio: `async with AsyncLock("the file", client)`, or `await lock.acquire(timeout=5)`."""

    acquire = awaitable_in_trio(_acquire)
    release = awaitable_in_trio(release)
    locked = awaitable_in_trio(_locked)
