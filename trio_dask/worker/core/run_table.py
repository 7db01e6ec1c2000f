"""The current runs in all their states, and the inputs that waiting runs wait for."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import InputMissing, Run
from trio_dask.worker.core.ready_queue import ReadyQueue


class Waiting(NamedTuple):
    """A run that lacks inputs."""

    run: Run
    missing: dict[Key, None]


class RunTable:
    """Every current run is in `current`, oldest first; those that wait are in `waiting`, those on offer in `ready`.

    `pending` are the keys that peers are asked for. `unawaited(key)` is called when no run waits for a key any more.
    """

    def __init__(self, pending: Container[Key], unawaited: Callable[[Key], None]) -> None:
        self.current: dict[RunId, Run] = {}
        self.ready = ReadyQueue()
        self.waiting: dict[RunId, Waiting] = {}
        self.producers: dict[Key, RunId] = {}
        """The run that computes each key; of several the newest."""
        self.waiters: dict[Key, dict[RunId, None]] = {}  # the inverse of Waiting.missing
        self.predecessors: dict[RunId, RunId] = {}  # of chained waiting runs
        self._pending = pending
        self._unawaited = unawaited

    @property
    def executing(self) -> int:
        """How many of them slots have taken."""
        return len(self.current) - len(self.waiting) - len(self.ready)

    def begin(self, run: Run) -> None:
        """Add a run that lacks nothing."""
        self.current[run.run] = run
        self.producers[run.key] = run.run
        self.ready.push(run)

    def begin_waiting(self, run: Run, missing: Iterable[Key]) -> None:
        """Add a run that lacks these keys."""
        number = run.run
        waiting = self.waiting[number] = Waiting(run, dict.fromkeys(missing))
        for key in waiting.missing:
            self.waiters.setdefault(key, {})[number] = None
        self._try_chain(waiting)
        self.current[number] = run
        self.producers[run.key] = number

    def input_arrived(self, key: Key) -> None:
        """This key is here now: runs that wait for nothing else are ready."""
        for number in list(self.waiters.pop(key, ())):
            waiting = self.waiting[number]
            del waiting.missing[key]
            if not self.claim(number):
                continue
            if waiting.missing:
                self._try_chain(waiting)
            else:
                del self.waiting[number]
                self.ready.push(waiting.run)

    def remove(self, run: Run) -> None:
        """This run is over, or not wanted. A slot that has taken it keeps it."""
        number = run.run
        del self.current[number]
        if self.producers.get(run.key) == number:
            del self.producers[run.key]
        if self.waiting and number in self.waiting:
            self.predecessors.pop(number, None)
            self._end_wait(number)

    def claim(self, number: RunId) -> bool:
        """Make sure that no slot takes this waiting run; False if one has, then it is executing."""
        predecessor = self.predecessors.pop(number, None)
        if predecessor is None or self.ready.unchain(predecessor, number):
            return True
        self._end_wait(number)
        return False

    def withdraw(self, number: RunId) -> bool:
        """Make sure that no slot takes this run; False if one has."""
        return self.claim(number) if number in self.waiting else self.ready.withdraw(number)

    def withdraw_all(self) -> list[Run]:
        """Remove and return every run that no slot has taken."""
        unstarted = [run for run in list(self.current.values()) if self.withdraw(run.run)]
        for run in unstarted:
            self.remove(run)
        return unstarted

    def return_dependents(self, lacking: Iterable[tuple[Key, str]]) -> list[InputMissing]:
        """Hand back the runs that wait for these keys, those that wait for the results of such runs, and so on.

        Each key comes with the address that could not give it, or with nothing if the run that computed it here is
        gone. A key that a peer is still asked for, or that another run computes, is not lacking.
        """
        missing: list[InputMissing] = []
        queue = list(lacking)
        for key, address in queue:  # it grows on the way
            if key not in self.waiters or key in self.producers or key in self._pending:
                continue
            for number in list(self.waiters[key]):
                if self.claim(number):
                    run = self.waiting[number].run
                    self.remove(run)
                    missing.append(InputMissing(number, key, address))
                    queue.append((run.key, ""))
        return missing

    def _try_chain(self, waiting: Waiting) -> None:
        """Chain a run that lacks only one key after the run that computes it here."""
        if len(waiting.missing) == 1:
            (key,) = waiting.missing
            predecessor = self.producers.get(key)
            if predecessor is None or key in self._pending:
                return
            if self.ready.chain_after(self.current[predecessor], waiting.run):
                self.predecessors[waiting.run.run] = predecessor

    def _end_wait(self, number: RunId) -> None:
        for key in self.waiting.pop(number).missing:
            waiters = self.waiters[key]
            del waiters[number]
            if not waiters:
                del self.waiters[key]
                self._unawaited(key)
