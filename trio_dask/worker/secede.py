"""Tasks that wait for other tasks give their slot back meanwhile, so that these can run here.

    in a slot --secede--> outside --rejoin--> in a slot          the task's thread goes on, and the slot gets another
                             `--the task ends                    and its thread ends too

A task that rejoins gets the slot of the next thread that would take a run: that thread hands its slot over, and ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, MutableSequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import trio

from trio_dask.protocol.messages import Run
from trio_dask.protocol.wire_constants import MAX_SECEDED
from trio_dask.worker.task_context import TaskContext
from trio_dask.worker.turns import turns

NO_SLOT: Final = -1
"""Handed to tasks that rejoin when the slots are closed."""


class Seceded(NamedTuple):
    """A run has given its slot back and goes on."""

    run: Run


class Rejoined(NamedTuple):
    """A seceded run has a slot again, or is about to end."""

    run: Run


class _Claim:
    """A task waits for a slot; it may be handed one just when it stops waiting."""

    def __init__(self, take: Callable[[int], object]) -> None:
        self._lock = threading.Lock()
        self._take: Callable[[int], object] | None = take

    def hand_over(self, number: int) -> bool:
        with self._lock:
            take, self._take = self._take, None
            if take is not None:
                take(number)
        return take is not None

    def withdraw(self) -> bool:
        """Stop waiting; False if a slot has been handed over already."""
        with self._lock:
            waiting, self._take = self._take is not None, None
        return waiting


class SecededTasks:
    """The tasks outside of the slots, and those that want to rejoin. Any thread may call any method.

    `slots` and `cells` belong to the executor: what each slot executes, for itself and for the nanny. The cells beyond
    those of the slots are for seceded tasks, which may kill the process as well.
    """

    def __init__(
        self,
        slots: list[TaskContext | None],
        cells: MutableSequence[int] | memoryview,
        *,
        start: Callable[[int], None],
        post: Callable[[Any], None],
        wake: Callable[[int], None],
    ) -> None:
        self._slots = slots
        self._cells = cells
        self._start = start
        self._post = post
        self._wake = wake
        self._lock = threading.Lock()
        self._outside: dict[int, TaskContext] = {}
        self._free_cells = list(range(len(cells) - 1, len(slots) - 1, -1))
        self._cell_of: dict[int, int] = {}
        self._claims: deque[_Claim] = deque()
        self._closed = False

    @property
    def outside(self) -> Iterable[TaskContext]:
        """The tasks that are outside of the slots."""
        return list(self._outside.values())

    def secede(self, context: TaskContext) -> bool:
        """Give the slot of this task back; False if it has none.

        Raises `RuntimeError`, and the task keeps its slot, if too many have done so or there can be no more threads.
        """
        with self._lock:
            number = context.slot
            if number is None or self._closed:
                return False
            if len(self._outside) >= MAX_SECEDED:
                raise RuntimeError(f"{MAX_SECEDED} tasks of this worker have already seceded; no more are allowed")
            # In this order: a thread that searches a task without the lock finds it in one place or the other.
            self._outside[id(context)] = context
            context.slot = None
            self._slots[number] = None
            if self._free_cells:
                cell = self._cell_of[id(context)] = self._free_cells.pop()
                self._cells[cell] = context.run.run
            self._cells[number] = 0
            try:
                self._start(number)
            except RuntimeError:  # there can be no more threads: the slot would not be served
                self._take_slot(context, number)
                raise
        self._post(Seceded(context.run))
        if context.turn is not None:
            context.turn.give_away()
        elif turns.busy:
            turns.wake()
        return True

    def rejoin(self, context: TaskContext) -> None:
        """Block until this task has a slot again."""
        if context.slot is not None:
            return
        handed: SimpleQueue[int] = SimpleQueue()
        self._claim(handed.put)
        self._enter(context, handed.get())
        if context.turn is not None:
            context.turn.take_again()
        elif turns.busy:
            context.on_cancel(turns.wake)
            turns.wait(context)

    async def rejoin_async(self, context: TaskContext) -> None:
        """Wait until this task has a slot again; cancelled, it stays outside."""
        if context.slot is not None:
            await trio.lowlevel.checkpoint()
            return
        token = trio.lowlevel.current_trio_token()
        handed: list[int] = []
        came = trio.Event()

        def take(number: int) -> None:
            handed.append(number)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(came.set)

        claim = self._claim(take)
        try:
            await came.wait()
        except trio.Cancelled:
            if not claim.withdraw() and handed[0] != NO_SLOT:
                self._start(handed[0])
            raise
        self._enter(context, handed[0])

    def hand_over(self, number: int) -> bool:
        """A thread is about to take a run: True if it has to end, as its slot was handed over."""
        while self._claims:
            try:
                claim = self._claims.popleft()
            except IndexError:  # another slot was faster
                return False
            if claim.hand_over(number):
                return True
        return False

    def ended(self, context: TaskContext) -> None:
        """A task has ended outside of the slots."""
        with self._lock:
            self._leave_outside(context)  # it stays in the running table until it is reported
        self._post(Rejoined(context.run))

    def close(self) -> None:
        """The slots are closed: no task gets one any more, or waits."""
        with self._lock:
            self._closed = True
        for context in self.outside:
            context.cancel()
        while self._claims:
            self._claims.popleft().hand_over(NO_SLOT)

    def _claim(self, take: Callable[[int], object]) -> _Claim:
        claim = _Claim(take)
        with self._lock:
            if self._closed:
                claim.hand_over(NO_SLOT)
                return claim
            self._claims.append(claim)
        self._wake(1)
        return claim

    def _enter(self, context: TaskContext, number: int) -> None:
        if number == NO_SLOT:
            return
        with self._lock:
            self._take_slot(context, number)
        self._post(Rejoined(context.run))

    def _take_slot(self, context: TaskContext, number: int) -> None:
        self._slots[number] = context
        self._cells[number] = context.run.run
        context.slot = number
        cell = self._leave_outside(context)
        if cell is not None:
            self._cells[cell] = 0

    def _leave_outside(self, context: TaskContext) -> int | None:
        """Free the cell of a seceded task. Its content in the running table is left to the caller."""
        self._outside.pop(id(context), None)
        cell = self._cell_of.pop(id(context), None)
        if cell is not None:
            self._free_cells.append(cell)
        return cell
