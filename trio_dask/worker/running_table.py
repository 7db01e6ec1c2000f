"""A table of the runs that a worker's slots execute, which its nanny reads when the worker has died.

It is memory that two processes share: numbers of eight bytes, in the machine's order. The first half has a cell for
each slot, with the run that it executes, or executed last, or 0; and some more cells for tasks that have seceded. The
second half has, for each of these cells, its last run that was reported to the scheduler. A nanny makes the table, the
worker inherits its descriptor, and what stands there outlives the writer, however it died.

A run whose call has returned counts until it is reported: it may have caused the death of the process a moment later,
by a signal, or by memory that it has corrupted. Tasks' threads write the first half and the event loop the second, so
that neither has to ask the other.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Collection
from typing import Final

from trio_dask.ids import RunId

CELL_BYTES: Final = 8
SECEDED_CELLS: Final = 64
"""Cells for tasks that have seceded. A task beyond that number is not blamed for the death of the process."""


class RunningTable:
    """The table of `slots` slots and of seceded tasks.

    It owns its descriptor `fd`, and is a context manager that closes it.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self._slots = slots
        count = slots + SECEDED_CELLS
        self._memory = mmap.mmap(fd, _size(slots))
        self._all = memoryview(self._memory).cast("Q")
        self.cells = self._all[:count]
        """What each slot executes. Slots write here directly, as they do so for each task."""
        self._reported = self._all[count:]

    @classmethod
    def create(cls, slots: int) -> RunningTable:
        """A new, empty table.

        Raises:
          OSError: there is no memory for it, or no descriptor left.
        """
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, _size(slots))
            return cls(fd, slots)
        except BaseException:  # raised again
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, slots: int) -> RunningTable:
        """The table behind an inherited descriptor.

        Raises:
          OSError, ValueError: it is no table for this many slots.
        """
        os.set_inheritable(fd, False)  # tasks may start programs, which are to know nothing of it
        return cls(fd, slots)

    def __enter__(self) -> RunningTable:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, slot: int, run: RunId) -> None:
        """This slot executes this run now."""
        self.cells[slot] = run

    def mark_reported(self, runs: Collection[int]) -> None:
        """The scheduler has been told what became of these runs."""
        cells = self.cells.tolist()
        # The cells of seceded tasks are many and hardly ever used, and this happens for each burst of outcomes.
        used = len(cells) if any(cells[self._slots :]) else self._slots
        for number in range(used):
            if cells[number] in runs:
                self._reported[number] = cells[number]

    def running(self) -> tuple[RunId, ...]:
        """The runs that were not reported: those of slots, then those of seceded tasks."""
        pairs = zip(self.cells, self._reported, strict=True)
        # Each once: a task that secedes or rejoins stands in two cells for a moment.
        return tuple(dict.fromkeys(RunId(run) for run, reported in pairs if run and run != reported))

    def close(self) -> None:
        """Let go of the memory and the descriptor. Idempotent."""
        if self.fd >= 0:
            for view in (self.cells, self._reported, self._all):
                view.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def _size(slots: int) -> int:
    return 2 * (slots + SECEDED_CELLS) * CELL_BYTES


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("trio_dask running_table")
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    return fd
