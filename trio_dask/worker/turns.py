"""Tasks that change definitions take turns, since all tasks of a process share its classes.

A task whose code can be seen to change a class, an enumeration or a named object (`protocol.changing_code`) runs while
no other task that may use definitions runs in its process. When its turn ends, the definitions are as they were sent.
A task that waits for other tasks gives its turn away, and has its changes back when it goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from trio_dask.errors import TaskCancelled
from trio_dask.protocol.rebuilt_classes import Bindings
from trio_dask.worker.task_context import TaskContext

Running = Callable[[], Iterable[TaskContext]]
"""Gives the tasks in the slots of one executor that may use definitions."""


class Turns:
    """The tasks of this process that have the turn or wait, in the order in which they came. For any thread.

    `busy` says whether there are any: all tasks look at it before they begin.
    """

    def __init__(self) -> None:
        self.busy = False
        self._changed = threading.Condition()
        self._queue: deque[tuple[TaskContext, bool]] = deque()
        """Each with whether it is to have a turn. The first one has, or waits until others have ended."""
        self._waiting: set[TaskContext] = set()
        self._executors: list[Running] = []

    def add(self, running: Running) -> None:
        """An executor begins."""
        with self._changed:
            self._executors.append(running)

    def remove(self, running: Running) -> None:
        """An executor has ended; nobody waits for its tasks, which may never return."""
        with self._changed:
            self._executors.remove(running)
            gone = set(running())
            for entry in [entry for entry in self._queue if entry[0] in gone]:
                entry[0].cancelled = True
                self._leave(entry)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those that wait look again: a task has left its slot, or was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def take(self, context: TaskContext) -> None:
        """Wait for the turn. Raises `TaskCancelled`."""
        with self._changed:
            entry = self._enter(context, is_turn=True)
            try:
                while not self._queue or self._queue[0] is not entry or self._others_run(context):
                    self._wait(context)
            except BaseException:  # raised again: it waits no longer
                self._leave(entry)
                raise
            self._waiting.discard(context)

    def wait(self, context: TaskContext) -> None:
        """Wait until the turns that were asked for before have ended. Raises `TaskCancelled`."""
        with self._changed:
            entry = self._enter(context, is_turn=False)
            try:
                while context in self._waiting:
                    self._wait(context)
            except BaseException:  # raised again: it waits no longer
                self._leave(entry)
                raise

    def release(self, context: TaskContext) -> None:
        """End the turn of this task."""
        with self._changed:
            self._leave((context, True))

    def _enter(self, context: TaskContext, *, is_turn: bool) -> tuple[TaskContext, bool]:
        entry = context, is_turn
        self._waiting.add(context)
        self._queue.append(entry)
        self._admit()
        return entry

    def _leave(self, entry: tuple[TaskContext, bool]) -> None:
        self._waiting.discard(entry[0])
        with suppress(ValueError):  # it has been admitted, and cancelled before it saw that
            self._queue.remove(entry)
        self._admit()

    def _admit(self) -> None:
        """Let those go on for which no turn comes first."""
        while self._queue and not self._queue[0][1]:
            self._waiting.discard(self._queue.popleft()[0])
        self.busy = bool(self._queue)
        self._changed.notify_all()

    def _others_run(self, context: TaskContext) -> bool:
        tasks = (task for running in self._executors for task in running())
        return any(task is not context and task not in self._waiting for task in tasks)

    def _wait(self, context: TaskContext) -> None:
        if context.cancelled:
            raise TaskCancelled(f"task {context.key!r} was cancelled while it waited for its turn")
        self._changed.wait()


turns = Turns()
"""Those of this process."""


class Turn:
    """The turn of one task, which has it."""

    def __init__(self, context: TaskContext) -> None:
        self.brought: list[Any] = []
        """The definitions that the call of the task brings."""
        self.restore: Callable[[], object] | None = None
        """Loads the call again, so that the definitions are what they were when they came."""
        self._context = context
        self._changes: Bindings | None = None
        """While the turn is given away."""

    def give_away(self) -> None:
        """Let others have their turns."""
        self._changes = Bindings(self.brought)
        self._end()

    def take_again(self) -> None:
        """Wait for the turn, and have the changes back. Raises `TaskCancelled`."""
        changes = self._changes
        if changes is not None:
            turns.take(self._context)
            self._changes = None
            changes.apply()

    def end(self) -> None:
        """The task has ended."""
        if self._changes is None:
            self._end()
        else:
            turns.wake()

    def _end(self) -> None:
        try:
            if self.restore is not None:
                with suppress(BaseException):  # of the user's code, which has run before: the slot goes on
                    self.restore()
        finally:
            turns.release(self._context)
