"""What a task can ask about itself and about its worker."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, ContextVar
from time import perf_counter
from typing import Any, Protocol

import trio

from trio_dask.errors import TaskCancelled
from trio_dask.hooks import hooks
from trio_dask.ids import Key, given_name
from trio_dask.parsing import counted
from trio_dask.protocol.logged_events import log_message
from trio_dask.protocol.messages import LogEvent, Run
from trio_dask.worker.named_executors import NamedExecutors
from trio_dask.worker.spill_directory import SpillDirectory


class WorkerHandle:
    """The worker, as tasks (`get_worker()`) and functions called by `client.run` (`dask_worker=`) see it.

    `address`, `scheduler_address` and `incarnation` are those of the present session, and empty between sessions.
    `data` maps the keys held here to their values, `plugins` the names of plugins to these. `state` belongs to the
    user: what one task puts there, the next one finds, as long as this process lives. So do `executors`, in which tasks
    run that name one of them, beside "default", the worker's own threads.
    """

    def __init__(
        self,
        *,
        name: str,
        nthreads: int,
        memory_limit_bytes: int | None = None,
        resources: Mapping[str, float] | None = None,
        local_directory: str | None = None,
        data: Mapping[Key, Any] | None = None,
        log: Callable[[LogEvent], object] | None = None,
        call_stacks: Callable[[Collection[Key] | None], dict[Key, list[str]]] | None = None,
    ) -> None:
        self.name = given_name(name)
        self.nthreads = nthreads
        self.memory_limit_bytes = memory_limit_bytes
        self.resources: Mapping[str, float] = resources or {}
        self._directory = SpillDirectory(local_directory)
        self.address = ""
        self.scheduler_address = ""
        self.incarnation = ""
        self.data: Mapping[Key, Any] = {} if data is None else data
        self.state: dict[str, Any] = {}
        self.executors = NamedExecutors()
        self.plugins: Mapping[str, Any] = {}
        self.forget_functions: Callable[[], None] = lambda: None
        """Have the functions of tasks unpickled anew, as modules have changed. From any thread."""
        self.actors: Any = None
        self.profiler: Any = None
        self.figures: Callable[[], dict[str, float]] = dict
        """Figures for people; for its event loop."""
        self.fetch_and_drop: Callable[[str, Key], Awaitable[None]] | None = None
        """Fetches a value from the worker at an address, to measure how long that takes; for its event loop."""
        self.tables: Callable[[], dict[str, Any]] = dict
        """All that the worker knows, as plain values; for its event loop."""
        self.client: Any = None
        self._log = log
        self._call_stacks = call_stacks
        self._client_lock = threading.Lock()
        """Held for a moment only, also in the event loop."""
        self._making = threading.Lock()
        """Held by a thread while it makes the client, so that only one does."""

    def __repr__(self) -> str:
        return f"<worker {self.name!r} {self.address or 'without a scheduler'}, {counted(self.nthreads, 'thread')}>"

    @property
    def id(self) -> str:
        """What `scheduler_info` has as the worker's `id`; empty between sessions."""
        return self.incarnation

    @property
    def local_directory(self) -> str:
        """A directory of this worker, which is made when it is first asked for, and removed when the worker ends."""
        return self._directory.make()

    def remove_directory(self) -> None:
        """The worker has ended."""
        self._directory.remove()

    def get_current_task(self) -> Key:
        """The key of the task that calls this. Raises `ValueError` if no task is running here."""
        return _task("get_current_task()").key

    def log_event(self, topic: str | Collection[str], msg: Any) -> None:
        """Keep anything that pickles as an event of a topic, or of several, and tell the clients that subscribe to it.

        It does not wait. Clients hear of it before the result of the task that calls this.

        Raises:
          UsageError: it is larger than 1 MiB.
          SerializationError: it cannot be pickled.
        """
        message = log_message(topic, msg)
        if self._log is not None:
            self._log(message)

    def call_stacks(self, keys: Collection[Key] | None = None) -> dict[Key, list[str]]:
        """Where these tasks are, or all that run here: a text for each frame, the outermost first."""
        return {} if self._call_stacks is None else self._call_stacks(keys)

    def get_client(self, make: Callable[[str], Any]) -> Any:
        """The one client that all tasks here share, made by `make(scheduler_address)` at the first call.

        In a thread `make` may have to wait for the event loop, so a task in the loop waits for no thread.
        """
        client = self.client
        if client is not None:
            return client
        if trio.lowlevel.in_trio_run():
            return self._share(make(self.scheduler_address))
        with self._making:
            client = self.client
            return client if client is not None else self._share(make(self.scheduler_address))

    def _share(self, made: Any) -> Any:
        with self._client_lock:
            if self.client is None:
                self.client = made
            client = self.client
        if client is not made:  # another task was faster; closing may have to wait for the event loop, too
            threading.Thread(target=made.close, name="surplus client", daemon=True).start()
        return client

    def take_client(self) -> Any:
        """The client that tasks share, if there is one; the next call makes a new one."""
        with self._client_lock:
            client, self.client = self.client, None
            return client


class Slots(Protocol):
    """Where a task can give its slot back, and get another: `secede.SecededTasks`."""

    def secede(self, context: TaskContext) -> bool:
        """Give the slot of this task back; False if it has none."""
        ...

    def rejoin(self, context: TaskContext) -> None:
        """Block until this task has a slot again."""
        ...

    def rejoin_async(self, context: TaskContext) -> Awaitable[None]:
        """Wait until this task has a slot again."""
        ...


class TaskContext:
    """One run in one slot, from the moment the slot took it; or code of an actor, which has no slot.

    `slot` is None while the run has seceded, too. `started_at` is infinite while it waits, for memory or its turn, to
    start.
    """

    __slots__ = ("_on_cancel", "cancelled", "has_memory", "run", "slot", "slots", "started_at", "turn", "worker")

    def __init__(self, run: Run, worker: WorkerHandle, slots: Slots, slot: int | None) -> None:
        self.run = run
        self.worker = worker
        self.slots = slots
        self.slot = slot
        self.started_at = perf_counter()
        self.cancelled = False
        self.has_memory = False
        self._on_cancel: Callable[[], object] | None = None
        self.turn: Any = None

    @property
    def key(self) -> Key:
        """The task's key."""
        return self.run.key

    @property
    def attempt(self) -> int:
        """1 for the first attempt at this task."""
        return int(self.run.extra.get("attempt", 1)) if self.run.extra else 1

    def cancel(self) -> None:
        """Ask the run to end. For the worker's own thread."""
        self.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    def on_cancel(self, hook: Callable[[], object]) -> None:
        """Have `cancel` call `hook`; at once if the run is cancelled already. For the worker's own thread."""
        self._on_cancel = hook
        if self.cancelled:
            hook()


_current: ContextVar[TaskContext] = ContextVar("trio_dask task")

enter = _current.set
"""Make a context the current one of this thread or Trio task."""


def context_in(context: Context) -> TaskContext | None:
    """The context of the task for which a Trio task runs, by that one's `context`. From any thread."""
    return context.get(_current)


def current_task() -> TaskContext | None:
    """The context of the task that is running here, or None outside of tasks."""
    return _current.get(None)


def check_cancelled() -> None:
    """End this task if it has been cancelled or is out of time; call it now and then in long-running code.

    A task that runs in a thread cannot be stopped from outside. Outside of a task this does nothing, so that a function
    with this call can also be called directly.

    Raises:
      TaskCancelled: the result is not wanted any more.
    """
    context = _current.get(None)
    if context is not None and context.cancelled:
        raise TaskCancelled(f"task {context.key!r} was cancelled")


def secede() -> None:
    """Give the slot of this task back, so that the worker runs another task meanwhile; this one goes on.

    For tasks that wait for other tasks. Waiting for results of the worker's own client (`get_client`) does this by
    itself. A second call does nothing.

    Raises:
      ValueError: no task is running here.
    """
    context = _task("secede()")
    context.slots.secede(context)


def rejoin() -> None:
    """Block until this task, which gave its slot back, has one again.

    Raises:
      ValueError: no task is running here.
      RuntimeError: it is an `async def` task, which must not block.
    """
    context = _task("rejoin()")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("rejoin() blocks; an `async def` task stays outside of the slots until it ends")
    context.slots.rejoin(context)


@contextmanager
def outside_of_slots(client: object) -> Generator[None]:
    """A block that waits for results of this client: a task of its worker gives its slot back meanwhile."""
    context = _current.get(None)
    if context is None or context.worker.client is not client or not context.slots.secede(context):
        yield
        return
    try:
        yield
    finally:
        context.slots.rejoin(context)


@asynccontextmanager
async def outside_of_slots_async(client: object) -> AsyncGenerator[None]:
    """The same for an `async def` task."""
    context = _current.get(None)
    if context is None or context.worker.client is not client or not context.slots.secede(context):
        yield
        return
    try:
        yield
    except Exception:  # not `Cancelled`: a task that is ending needs no slot
        await context.slots.rejoin_async(context)  # noqa: ASYNC120 - if this is cancelled, the other error may go
        raise
    await context.slots.rejoin_async(context)


def _task(what: str) -> TaskContext:
    context = _current.get(None)
    if context is None:
        raise ValueError(f"no task is running here: {what} works inside a task")
    return context


def get_worker() -> WorkerHandle:
    """The worker that runs this task.

    Raises:
      ValueError: no task is running here.
    """
    context = _current.get(None)
    if context is None:
        raise ValueError("no worker found: get_worker() works inside a task")
    return context.worker


class _TaskHooks:
    outside_of_slots = staticmethod(outside_of_slots)
    outside_of_slots_async = staticmethod(outside_of_slots_async)

    @staticmethod
    def current_worker() -> WorkerHandle | None:
        context = _current.get(None)
        return None if context is None else context.worker


hooks.tasks = _TaskHooks()
