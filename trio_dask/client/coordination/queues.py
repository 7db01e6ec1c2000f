"""`Queue`: values and futures in order, from any programs and tasks to any others."""

from __future__ import annotations

from typing import Any

from trio_dask.client.call_forms import Timeout, Waiting, awaitable_in_trio, blocking
from trio_dask.client.coordination.requests import ForAnswer, Primitive, RequestId, ask, too_late, wants_at_once
from trio_dask.client.coordination.values import Item, item_for, put_back, values_of
from trio_dask.client.task_options import whole_number


class BaseQueue(Primitive):
    """What both forms of a queue have in common."""

    KIND = "queue"

    def __init__(self, name: str | None = None, client: Any = None, maxsize: int = 0) -> None:
        super().__init__(name, client)
        self.maxsize = whole_number("maxsize", maxsize, 0, 2**31)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, None, self.maxsize)


def _put(queue: BaseQueue, value: Any, timeout: Timeout = None) -> Waiting[None]:
    """Put a value in, once there is room. A task frees its slot while it waits for that.

    The value may be a future, or have futures in lists, tuples, sets, dicts and dataclasses: their results are kept as
    long as it is in the queue.

    Raises:
      TimeoutError: there was no room in time.
      UsageError: the value is larger than 16 MiB, or a future in it belongs to another cluster.
      SerializationError: it cannot be pickled.
      RuntimeError: the queue was closed meanwhile.
    """

    def fail() -> None:
        raise too_late(f"the queue {queue.name!r} had no room", timeout)

    def finish(_: RequestId, has_room: bool) -> None:
        if not has_room:
            fail()

    at_once = wants_at_once(True, timeout)
    arguments = (item_for(value, queue.engine), queue.maxsize, not at_once)
    limit = None if at_once else timeout
    return ForAnswer(queue, "put", arguments, finish, limit, fail, frees_slot=True, must_know=True, futures=value)


def _get(queue: BaseQueue, timeout: Timeout = None, batch: bool | int = False) -> Waiting[Any]:
    """Take the value that was put in first, once there is one. A task frees its slot while it waits.

    Args:
      timeout: how long to wait.
      batch: True for a list of all values that are there, without waiting; a number for a list of so many. It has fewer
        if they are larger than 32 MiB together, each counted with 64 bytes more than it has.

    Raises:
      TimeoutError: no value came in time.
      RuntimeError: the queue was closed meanwhile.
    """

    def fail() -> Any:
        raise too_late(f"the queue {queue.name!r} gave nothing", timeout)

    def finish(request: RequestId, items: tuple[Item, ...]) -> Any:
        if not items and count:
            fail()
        values = values_of(request, items)
        return values[0] if batch is False else values

    at_once = wants_at_once(True, timeout)
    count = int(not batch) if isinstance(batch, bool) else whole_number("batch", batch, 0, 2**31)
    operation, arguments = ("get_all", ()) if batch is True else ("get", (count, not at_once))
    limit = None if at_once else timeout
    return ForAnswer(queue, operation, arguments, finish, limit, fail, undo=put_back, frees_slot=True)


def _qsize(queue: BaseQueue) -> Waiting[int]:
    """How many values are in the queue."""
    return ask(queue, "qsize")


def _close(queue: BaseQueue) -> Waiting[None]:
    """Drop all that is in the queue, and its maximal size; calls that wait raise `RuntimeError`."""
    return ask(queue, "close")


class Queue(BaseQueue):
    """A queue through which programs and tasks of a cluster pass values and futures.

        Queue("results").put(client.submit(f, x))     # in one
        Queue("results").get(timeout=5).result()      # in another

    What is in it lasts as long as the scheduler, or until `close`.

    Args:
      name: by which others know it; without one it is a new queue, to be passed on as an argument.
      client: the client to use; by default that of `get_client()`.
      maxsize: the most values that it takes; 0 means any number. The first one that is put with a maximal size sets it.
    """

    put = blocking(_put)
    get = blocking(_get)
    qsize = blocking(_qsize)
    close = blocking(_close)


class AsyncQueue(BaseQueue):
    """The same for Trio: `await AsyncQueue("results", client).get()`."""

    put = awaitable_in_trio(_put)
    get = awaitable_in_trio(_get)
    qsize = awaitable_in_trio(_qsize)
    close = awaitable_in_trio(_close)
