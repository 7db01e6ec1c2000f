"""A board on which the slots of a worker write what they run, for whoever looks at it after their death.

It is memory that two processes share: numbers of eight bytes, in the machine's order. First, for each slot, the run
that it executes, or executed last, or 0; then the same for some places outside, where tasks stand that have given their
slot back and go on. Then, for each slot and each place, the last run of it that is settled: the scheduler has been told
what became of it. A nanny makes the board, the worker inherits its descriptor. What was written there outlives the
writer, however it died. A run whose call has returned is not settled yet: what it has done may be the process's death a
moment later, by a signal, or by the memory that it has spoilt. Tasks' threads write the first half and the event loop
the second, so that neither has to ask the other.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Collection
from types import TracebackType
from typing import Final

from trio_dask.ids import RunId

__all__ = ["Board"]

CELL_BYTES: Final = 8
OUTSIDE: Final = 64
"""Places for tasks that are outside of the slots. Those for whom there is none are not blamed for an end."""


class Board:
    """The cells of `slots` slots and of the places outside.

    It owns its descriptor `fd`, and is a context manager that closes it.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self._slots = slots
        places = slots + OUTSIDE
        self._memory = mmap.mmap(fd, _size(slots))
        self._all = memoryview(self._memory).cast("Q")
        self.cells = self._all[:places]
        """What each slot executes. Slots write here without a call in between: they do so for each task."""
        self._settled = self._all[places:]

    @classmethod
    def create(cls, slots: int) -> Board:
        """A new board on which nothing stands.

        Raises:
          OSError: there is no memory for it, or no descriptor left.
        """
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, _size(slots))
            return cls(fd, slots)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, slots: int) -> Board:
        """The board behind an inherited descriptor.

        Raises:
          OSError, ValueError: that is no board of at least so many slots.
        """
        os.set_inheritable(fd, False)  # it is none of the business of what tasks start
        return cls(fd, slots)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, slot: int, run: RunId) -> None:
        """This slot executes this run now."""
        self.cells[slot] = run

    def settle(self, runs: Collection[int]) -> None:
        """What became of these runs is known."""
        cells = self.cells.tolist()
        # The places outside are many and hardly ever taken, and this happens for each burst of outcomes.
        places = range(len(cells) if any(cells[self._slots :]) else self._slots)
        for place in places:
            if cells[place] in runs:
                self._settled[place] = cells[place]

    def running(self) -> tuple[RunId, ...]:
        """What is not settled of what stands on the board, by slot, and then outside."""
        pairs = zip(self.cells, self._settled, strict=True)
        # Each once: a task that gives its slot back, or gets one, stands in two places for a moment.
        return tuple(dict.fromkeys(RunId(run) for run, settled in pairs if run and run != settled))

    def close(self) -> None:
        """Let go of the memory and the descriptor. Idempotent."""
        if self.fd >= 0:
            for view in (self.cells, self._settled, self._all):
                view.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def _size(slots: int) -> int:
    return 2 * (slots + OUTSIDE) * CELL_BYTES


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("trio_dask board")
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    return fd
