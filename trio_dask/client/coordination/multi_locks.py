"""`MultiLock`: several locks at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from trio_dask.client.call_forms import Done, Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.leases import Leased, release
from trio_dask.client.coordination.requests import ForAnswer, RequestId, name_to_send, wants_at_once
from trio_dask.client.task_options import whole_number
from trio_dask.errors import UsageError

LARGEST_NAMES_BYTES: Final = 2**22
NAME_BYTES: Final = 16
"""What a name takes in a message beside its text."""


class BaseMultiLock(Leased):
    """What both forms of a lock of several names have in common."""

    KIND = "multilock"

    def __init__(self, names: Iterable[str] = (), client: Any = None) -> None:
        super().__init__("", client)  # one table in the scheduler has all names
        if isinstance(names, str):
            raise UsageError(
                f"MultiLock({names!r:.40}) is given a text: write MultiLock([{names!r:.40}]), or Lock({names!r:.40})"
            )
        self.names = list(dict.fromkeys(names))
        if not self.names:
            raise UsageError('MultiLock needs at least one name, such as MultiLock(["left", "right"])')
        if not all(isinstance(name, str) for name in self.names):
            raise UsageError(f"MultiLock takes a list of names, which are texts, not {names!r:.60}")
        self.names_sent = tuple([name_to_send(name, "lock") for name in self.names])
        if sum(map(len, self.names_sent)) + NAME_BYTES * len(self.names) > LARGEST_NAMES_BYTES:
            raise UsageError(f"{len(self.names)} names are too many, or too long, for one MultiLock")

    def _acquire(self) -> Waiting[bool]:
        return _acquire(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.names,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.names!r}>"


def _acquire(
    lock: BaseMultiLock, blocking: bool = True, timeout: Timeout = None, num_locks: int | None = None
) -> Waiting[bool]:
    """Acquire the locks of all names at once, or of any `num_locks` of them; False if they were not free in time.

    No request overtakes an earlier one that wants the same name. They are free again as a lock would be: see
    `Lock.acquire`. Locks of several names know nothing of a `Lock` of one of these names.

    Raises `RuntimeError` if this object holds them for the same thread or Trio task, which would wait for itself.
    """
    at_once = wants_at_once(blocking, timeout)
    number = len(lock.names) if num_locks is None else whole_number("num_locks", num_locks, 1, len(lock.names))
    if not at_once and timeout is None:
        lock.refuse_reentrance()

    def finish(request: RequestId, got: tuple[str, ...]) -> bool:
        if got:
            lock.add(request)
        return bool(got)

    arguments = (lock.names_sent, number, not at_once)
    return ForAnswer(lock, "acquire", arguments, finish, None if at_once else timeout, lambda: False)


def _locked(lock: BaseMultiLock) -> Waiting[bool]:
    """Whether this object holds its locks."""
    return Done(bool(lock.leases))


class MultiLock(BaseMultiLock):
    """Locks of several names, acquired together, so that no two programs or tasks can wait for each other.

        with MultiLock(["left", "right"]):       # `async with` under Trio
            ...

    Args:
      names: by which others know the locks.
      client: the client to use; by default that of `get_client()`.
    """

    acquire = blocking(_acquire)
    release = blocking(release)
    locked = blocking(_locked)


class AsyncMultiLock(BaseMultiLock):
    """The same for Trio: `async with AsyncMultiLock(["left", "right"], client)`."""

    acquire = awaitable_in_trio(_acquire)
    release = awaitable_in_trio(release)
    locked = awaitable_in_trio(_locked)
