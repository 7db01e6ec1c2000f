"""The memory of a worker process: what is done when it becomes scarce.

    more than `spill_managed` of the limit in values    the least recently used go to disk
    more than `spill_process` in the whole process      the same; then garbage is collected and free pages given back
    more than `pause_process` in the whole process      no more tasks: what has not started goes elsewhere

Each can be off. Before anything of this happens, memory that is kept for values to come (`comm.buffer_pool`) is given
back, so that only what is used counts.

All slow things happen in a thread, one after the other, in portions after which the figures are read anew; the watch
goes on meanwhile. Values from peers and clients wait for room before memory is taken for them, and so do tasks whose
results are known to be large, and inputs that are to be unpickled (`gate`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import NamedTuple, TypeVar

import trio

from trio_dask.comm.buffer_pool import BufferPool, pool
from trio_dask.config import WorkerSettings, format_bytes
from trio_dask.worker.memory_reservations import Gate
from trio_dask.worker.pause_rule import PauseRule
from trio_dask.worker.process_memory import ProcessMemory, collect_garbage, keep_large_blocks_apart, trim
from trio_dask.worker.result_store import Spilled, Store
from trio_dask.worker.spill_directory import ScratchFolder, remove_leftovers
from trio_dask.worker.spill_files import SpillDisk
from trio_dask.worker.transfer_limit import Budget

__all__ = ["MemoryLimits", "MemoryMonitor", "WorkerHooks", "keep_nothing_unwatched"]

log = logging.getLogger("trio_dask.worker")

_T = TypeVar("_T")

BUSY_INTERVAL_S = 0.1
FIRST_IDLE_INTERVAL_S, MAX_IDLE_INTERVAL_S = 0.5, 5.0
"""Doubled from one to the other: of an idle process even waking up would be most of what it does."""

MIN_PORTION_BYTES, MAX_PORTION_BYTES = 4 * 2**20, 64 * 2**20
PORTIONS = 32
"""In so many portions what the limit allows would be written to disk; after each the worker may go on."""

PAUSE_PATIENCE_S = 5.0
RETRY_S = 1.0
"""After this long without success, spilling is tried anew."""

COLLECT_INTERVAL_S = 5.0
COLLECT_SHARE = 0.02
"""Of the time of this process, at most, in which the garbage collector may be at work because of us."""

COMPLAINT_INTERVAL_S = 60.0
NEWS_INTERVAL_S = 10.0
CLOSE_S = 1.0
PROBE_S = 0.005
WORTHWHILE_BYTES = 2**20
INCOMING_COUNT = 64
INCOMING_SHARE = 0.1

LARGE_SHARE = 1 / 128
"""Of the limit: a task with a result from this size on, and a value whose unpickling takes that much, wait for room."""

KEPT_SHARE = 0.1
KEPT_BELOW = 0.6
"""What of the limit is kept at most for values to come, and up to which use of it: a nanny does not see the difference
between what is kept and what is used."""


class MemoryLimits(NamedTuple):
    """In bytes; what is off is infinite. Where something is done above a limit, it is done until below the lower."""

    limit: int
    managed_high: float = inf
    managed_low: float = inf
    process_high: float = inf
    process_low: float = inf
    pause_above: float = inf
    pause_below: float = inf

    @classmethod
    def of(cls, settings: WorkerSettings) -> MemoryLimits | None:
        """None if there is nothing to watch."""
        limit = settings.memory_limit_bytes
        managed, process, pause = settings.spill_managed, settings.spill_process, settings.pause_process
        if limit is None or (managed is None and process is None and pause is None):
            return None

        def part(share: float | None, factor: float = 1.0) -> float:
            return inf if share is None else limit * share * factor

        return cls(
            limit,
            managed_high=part(managed),
            managed_low=part(managed, 0.95),
            process_high=part(process),
            process_low=part(process, 0.85),
            pause_above=part(pause),
            pause_below=part(pause, 0.94),
        )

    @property
    def ceiling(self) -> float:
        """What the process may come to by what it takes in; where it spills anyway it would wait each time."""
        return (
            self.process_high
            if self.pause_above == inf
            else min(self.pause_above, (self.process_high + self.pause_above) / 2)
        )

    @property
    def scarce_above(self) -> float:
        """Where nothing is kept any more that is not used; nothing else happens below."""
        return min(self.process_low, self.pause_below, self.limit * KEPT_BELOW)

    @property
    def spills(self) -> bool:
        """Whether anything goes to disk."""
        return min(self.managed_high, self.process_high) < inf


def keep_nothing_unwatched(settings: WorkerSettings, kept: BufferPool = pool) -> None:
    """Where a worker does not watch its memory, a nanny may, which cannot have anything given back."""
    if settings.memory_limit_bytes is not None:
        kept.keep_at_most(0)


class WorkerHooks(NamedTuple):
    """What the monitor asks of the worker, and tells it.

    `held_bytes` is the size of all values, in memory or on disk; `busy` is whether tasks run or values are on their way
    here; `waits_for_itself` is whether a task that runs may be waiting for others that this worker would have to run;
    `lose` is called now and then, and takes what the store has lost.
    """

    held_bytes: Callable[[], int]
    busy: Callable[[], bool]
    waits_for_itself: Callable[[], bool]
    pause: Callable[[], None]
    resume: Callable[[], None]
    lose: Callable[[], None]


class MemoryMonitor:
    """Watches the memory of this process for one worker, and owns the store's disk.

    `used` says how much the process has, and `kept` is what of it is kept for values to come; tests replace both.
    """

    def __init__(
        self,
        limits: MemoryLimits,
        settings: WorkerSettings,
        hooks: WorkerHooks,
        used: Callable[[], int] | None = None,
        kept: BufferPool = pool,
    ) -> None:
        self.limits = limits
        self._hooks = hooks
        self._process = ProcessMemory()
        self._read = used or self._process.used_bytes
        self._kept = kept
        self._disk: SpillDisk | None = None
        if limits.spills:
            self._disk = SpillDisk(ScratchFolder(settings.local_directory), settings.max_spill_bytes)
        self.gate = Gate(self._fits, self._call_for_room)
        self.large_bytes = int(LARGE_SHARE * limits.limit)
        """What is smaller need not pass the gate."""
        self.store = Store(
            self._disk, high_bytes=limits.managed_high, press=self._press, gate=self.gate, gate_from=self.large_bytes
        )
        self._rule = PauseRule(
            limits.pause_above, limits.pause_below, step_bytes=0.05 * limits.limit, patience_s=PAUSE_PATIENCE_S
        )
        self._incoming = Budget(INCOMING_COUNT, int(INCOMING_SHARE * limits.limit))
        self._thread = trio.CapacityLimiter(1)
        self._token: trio.lowlevel.TrioToken | None = None
        self._pressed = False
        self._dozing = False
        self._wake = trio.Event()
        self._work = trio.Event()
        self._turn = trio.Event()  # replaced after each turn of the thread
        self._making_room = False
        self._wanted = 0
        self._exhausted = False  # the last turn made no room at all
        self._portion_bytes = min(max(limits.limit // PORTIONS, MIN_PORTION_BYTES), MAX_PORTION_BYTES)
        self._rest_until = -inf
        self._rest_at_bytes = 0
        self._collect_from = -inf
        self._complained_at = -inf
        self._told_at = -inf
        self.loop_lag_s = 0.0
        """The longest that the event loop was late while values were spilled."""

    async def run(self) -> None:
        """Watch until cancelled; then remove what is on disk."""
        self._token = trio.lowlevel.current_trio_token()
        keep_large_blocks_apart()
        self._kept.keep_at_most(int(KEPT_SHARE * self.limits.limit))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._make_room_when_needed)
                if self._disk is not None:
                    nursery.start_soon(self._look_at_folder, self._disk.folder)
                await self._watch()
        finally:
            self.gate.close()
            self._process.close()
            if self._disk is not None:
                with trio.move_on_after(CLOSE_S, shield=True):
                    await self._in_thread(self._disk.close, in_turn=False)

    def metrics(self) -> dict[str, float]:
        """Figures for the heartbeat."""
        return {
            "spilled_bytes": self.store.spilled_bytes,
            "spilled_count": self.store.spilled_count,
            "spill_disk_bytes": 0 if self._disk is None else self._disk.used_bytes,
            "paused": self._rule.paused,
            "loop_lag_s": round(self.loop_lag_s, 4),
        }

    @asynccontextmanager
    async def room(self, nbytes: int) -> AsyncGenerator[None]:
        """Wait until so many bytes can come in, and hold the place for the block, at whose end they are stored.

        When nothing more can be moved out of the way they come in all the same: a task may need just these.
        """
        self.stir()
        async with self._incoming.share(nbytes):
            while not self._fits(nbytes) and not self._resting():
                self._wanted = max(self._wanted, nbytes)
                self._work.set()
                await self._turn.wait()
            yield

    def _fits(self, nbytes: int) -> bool:
        """Whether there is room for so much. From any thread."""
        return self._used(nbytes) + nbytes <= self.limits.ceiling

    def _call_for_room(self) -> None:
        """Somebody waits at the gate. From any thread."""
        try:
            if self._token is None:
                self.gate.close()  # which `run` has not opened, and will not: nobody makes room
            else:
                self._token.run_sync_soon(self._look_at_gate, idempotent=True)
        except trio.RunFinishedError:
            self.gate.close()

    def _look_at_gate(self) -> None:
        resting = self._resting()
        wanted = self.gate.look(helpless=resting, urgent=self._hooks.waits_for_itself())
        if wanted and not resting:
            self._wanted = max(self._wanted, wanted)
            self._work.set()

    def _used(self, more: int = 0) -> int:
        """What the process has; where that, and so much more, is not little, it keeps nothing. From any thread."""
        used = self._read()
        if used + more > self.limits.scarce_above and self._kept.kept_bytes:
            self._kept.give_back()
            used = self._read()
        return used

    # ------------------------------------------------------------------------------------------ the watch

    def stir(self) -> None:
        """Something has begun that may take memory. Cheap; for the worker's own thread."""
        if self._dozing:
            self._dozing = False
            self._wake.set()

    def _press(self) -> None:
        """Have the watch look now. Any thread may call this."""
        if not self._pressed and self._token is not None:
            self._pressed = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake_up, idempotent=True)

    def _wake_up(self) -> None:
        self._wake.set()

    async def _watch(self) -> None:
        before, interval_s = 0, BUSY_INTERVAL_S
        while True:
            self._pressed = self._dozing = False
            self._wake = trio.Event()
            self._hooks.lose()
            self._look_at_gate()
            used = self._used(self._wanted)
            scarce = self._excess(used) > 0 and not self._resting()
            if scarce or self.store.has_garbage:
                self._work.set()
            self._judge(used)
            active = self._hooks.busy() or self._rule.paused or used > before + 0.01 * self.limits.limit
            before = used
            if active:
                interval_s = BUSY_INTERVAL_S
            else:
                interval_s = max(FIRST_IDLE_INTERVAL_S, min(2 * interval_s, MAX_IDLE_INTERVAL_S))
                self._dozing = True
            with trio.move_on_after(interval_s):
                await self._wake.wait()

    def _judge(self, used: int) -> None:
        now = trio.current_time()
        hooks, was_paused = self._hooks, self._rule.paused
        at_rest = not hooks.busy() or hooks.waits_for_itself()
        paused = self._rule.judge(now, used, stuck=at_rest and self._exhausted)
        if paused == was_paused:
            return
        if now >= self._told_at + NEWS_INTERVAL_S:
            self._told_at = now
            figures = f"{format_bytes(used)} of {format_bytes(self.limits.limit)} in use"
            log.info("Paused: %s" if paused else "Resumed: %s", figures)
        (hooks.pause if paused else hooks.resume)()

    def _excess(self, used: int) -> float:
        """How many bytes are too many, by values or by process; less is tolerated while room is being made."""
        limits = self.limits
        managed = self._hooks.held_bytes() - self.store.spilled_bytes
        process = used + self._wanted
        going = self._making_room
        return max(
            managed - limits.managed_low if managed > (limits.managed_low if going else limits.managed_high) else 0,
            process - limits.process_low if process > (limits.process_low if going else limits.process_high) else 0,
            process - limits.pause_above,
        )

    # ------------------------------------------------------------------------------------------ making room

    async def _make_room_when_needed(self) -> None:
        while True:
            await self._work.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe)
                await self._make_room()
                nursery.cancel_scope.cancel()

    async def _make_room(self) -> None:
        """Go on as long as it helps."""
        while True:
            self._work = trio.Event()
            excess = self._excess(self._used(self._wanted))
            if excess <= 0 or self._resting():
                break
            self._making_room = True
            now = trio.current_time()
            turn = partial(self._take_turn, excess, also_used=self._is_severe(), may_collect=now >= self._collect_from)
            portion, collection_s = await self._in_thread(turn)
            if collection_s is not None:
                self._collect_from = now + max(COLLECT_INTERVAL_S, collection_s / COLLECT_SHARE)
            if portion.problem:
                self._complain(portion.problem)
            self._exhausted = portion.nbytes <= 0
            if self._exhausted:
                self._rest_until = trio.current_time() + RETRY_S
                self._rest_at_bytes = sys.maxsize if portion.problem else self.store.large_bytes
            self._end_turn()
        if self.store.has_garbage:
            await self._in_thread(self.store.sweep)
        self._making_room = False
        self._wanted = 0
        self._end_turn()

    def _resting(self) -> bool:
        """Whether room cannot be made just now: there is no more to spill than when it could not be made."""
        return trio.current_time() < self._rest_until and self.store.large_bytes <= self._rest_at_bytes

    def _is_severe(self) -> bool:
        """Whether to spill also what is in use: it makes no room before its users are done, but then at once."""
        managed = self._hooks.held_bytes() - self.store.spilled_bytes
        return managed > self.limits.managed_high or self._used() > self.limits.pause_above

    def _end_turn(self) -> None:
        self._turn.set()
        self._turn = trio.Event()
        self._look_at_gate()
        if self._rule.paused:
            self._wake.set()  # every moment counts

    def _take_turn(self, excess: float, *, also_used: bool, may_collect: bool) -> tuple[Spilled, float | None]:
        """In the thread: spill a portion, and see that memory comes back to the system.

        Returns: what came of it, and how long garbage was collected, if it was.
        """
        collection_s: float | None = None
        before = self._used()
        nbytes = int(min(excess, self._portion_bytes))
        spilled = self.store.spill(nbytes)
        if also_used and not spilled.nbytes and not spilled.problem:
            spilled = self.store.spill(nbytes, also_used=True)
        freed = spilled.nbytes
        if before > min(self.limits.process_low, self.limits.pause_below):
            if not freed and may_collect:
                started = time.perf_counter()
                collect_garbage()
                collection_s = time.perf_counter() - started
            if before - self._used() <= freed / 2:
                trim()
            if not freed and before - self._used() > WORTHWHILE_BYTES:
                freed = before - self._used()
        return Spilled(freed, spilled.problem), collection_s

    def _complain(self, problem: str) -> None:
        now = trio.current_time()
        if now >= self._complained_at + COMPLAINT_INTERVAL_S:
            self._complained_at = now
            log.warning("Cannot spill results to disk: %s", problem)

    async def _probe(self) -> None:
        """Measure how late the event loop comes to what it has to do."""
        while True:
            due = trio.current_time() + PROBE_S
            await trio.sleep_until(due)
            self.loop_lag_s = max(self.loop_lag_s, trio.current_time() - due)

    async def _look_at_folder(self, folder: ScratchFolder) -> None:
        for path in await self._in_thread(partial(remove_leftovers, folder.base)):
            log.info("Removed %s, left behind by a worker that was killed", path)
        while not self.store.spilled_count:
            await self._turn.wait()
        if await self._in_thread(folder.in_memory):
            log.warning("Spilling to %s, which is itself in memory; choose another --local-directory", folder.base)

    async def _in_thread(self, work: Callable[[], _T], *, in_turn: bool = True) -> _T:
        limiter = self._thread if in_turn else None
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
