"""Watches the memory of a worker process and carries out what `worker.core.memory_policy` decides.

All slow work happens in one thread, in portions after which the figures are read again; the watch goes on meanwhile.
Values from peers and clients wait for room before memory is taken for them. So do tasks whose results are known to be
large, and inputs that are to be unpickled (`memory_reservations`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple, TypeVar

import trio

from trio_dask.comm.buffer_pool import BufferPool, pool
from trio_dask.config import WorkerSettings
from trio_dask.parsing import format_bytes
from trio_dask.worker.core.memory_policy import (
    BUSY_INTERVAL_S,
    Action,
    Figures,
    GiveBack,
    MakeRoom,
    MemoryLimits,
    MemoryPolicy,
    RemoveFiles,
    RoomMade,
    SetPaused,
)
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.process_memory import ProcessMemory, collect_garbage, keep_large_blocks_apart, trim
from trio_dask.worker.result_store import ResultStore
from trio_dask.worker.spill_directory import SpillDirectory, remove_leftovers
from trio_dask.worker.spill_files import SpillDisk
from trio_dask.worker.transfer_limit import TransferLimit

log = logging.getLogger("trio_dask.worker")

_T = TypeVar("_T")

CLOSE_S: Final = 1.0
PROBE_S: Final = 0.005
WORTHWHILE_BYTES: Final = 2**20
INCOMING_COUNT: Final = 64
INCOMING_SHARE: Final = 0.1

LARGE_SHARE: Final = 1 / 128
"""Results and values to unpickle wait for room if they are at least this share of the limit."""

KEPT_SHARE: Final = 0.1
"""At most this share of the limit is kept for coming values."""


def keep_nothing_unwatched(settings: WorkerSettings, kept: BufferPool = pool) -> None:
    """Keep no memory in an unwatched process: its nanny may watch it, and cannot have kept memory given back."""
    if settings.memory_limit_bytes is not None:
        kept.keep_at_most(0)


class WorkerCallbacks(NamedTuple):
    """What the monitor asks of the worker, and tells it.

    `held_bytes` is the size of all values, in memory or on disk; `busy` is whether tasks run or values are on their way
    here; `waits_for_itself` is whether a running task may be waiting for tasks that this worker would have to run.
    `report_lost` is called now and then, and takes the keys that the store has lost.
    """

    held_bytes: Callable[[], int]
    busy: Callable[[], bool]
    waits_for_itself: Callable[[], bool]
    set_paused: Callable[[bool], None]
    report_lost: Callable[[], None]


class MemoryMonitor:
    """Watches the memory of this process for one worker, and owns the store's disk.

    `read` gives the memory of the process, and `kept` is the part of it that is kept for coming values; tests replace
    both.
    """

    def __init__(
        self,
        limits: MemoryLimits,
        settings: WorkerSettings,
        worker: WorkerCallbacks,
        read: Callable[[], int] | None = None,
        kept: BufferPool = pool,
    ) -> None:
        self.limits = limits
        self._policy = MemoryPolicy(limits)
        self._worker = worker
        self._process = ProcessMemory()
        self._read = read or self._process.used_bytes
        self._kept = kept
        self._disk: SpillDisk | None = None
        if limits.spills:
            self._disk = SpillDisk(SpillDirectory(settings.local_directory), settings.max_spill_bytes)
        self.reservations = Reservations(self._fits, self._call_for_room)
        self.large_bytes = int(LARGE_SHARE * limits.limit)
        """Less than this needs no reservation."""
        self.store = ResultStore(
            self._disk,
            high_bytes=limits.managed_high,
            request_check=self._request_check,
            reservations=self.reservations,
            reserve_from=self.large_bytes,
        )
        self._incoming = TransferLimit(INCOMING_COUNT, int(INCOMING_SHARE * limits.limit))
        self._incoming_wants = 0
        self._thread = trio.CapacityLimiter(1)
        self._token: trio.lowlevel.TrioToken | None = None
        self._is_check_due = False
        self._is_dozing = False
        self._wake = trio.Event()
        self._work_ended = trio.Event()  # replaced each time
        self.loop_lag_s = 0.0
        """The longest delay of the event loop while values were spilled."""

    async def run(self) -> None:
        """Watch until cancelled; then remove everything from disk."""
        self._token = trio.lowlevel.current_trio_token()
        keep_large_blocks_apart()
        self._kept.keep_at_most(int(KEPT_SHARE * self.limits.limit))
        try:
            async with trio.open_nursery() as nursery:
                if self._disk is not None:
                    nursery.start_soon(self._check_directory, self._disk.directory)
                await self._watch(nursery)
        finally:
            self.reservations.close()
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
            "paused": self._policy.paused,
            "loop_lag_s": round(self.loop_lag_s, 4),
        }

    @asynccontextmanager
    async def room(self, nbytes: int) -> AsyncGenerator[None]:
        """Wait until this many bytes can come in, and hold the room for the block, at whose end they are stored.

        When nothing more can be spilled they come in nevertheless: a task may need just these.
        """
        self.wake()
        async with self._incoming.share(nbytes):
            while not self._fits(nbytes) and not self._is_helpless():
                self._incoming_wants = max(self._incoming_wants, nbytes)
                self._wake.set()
                await self._work_ended.wait()
            yield

    def wake(self) -> None:
        """Something has begun that may take memory. Cheap; for the worker's own thread."""
        if self._is_dozing:
            self._is_dozing = False
            self._wake.set()

    def _fits(self, nbytes: int) -> bool:
        return self._used(nbytes) + nbytes <= self.limits.ceiling

    def _used(self, more: int = 0) -> int:
        """The memory of the process, once it keeps nothing where this many bytes more would be too many."""
        used = self._read()
        if self._policy.must_give_back(used + more, self._kept.kept_bytes):
            self._kept.give_back()
            used = self._read()
        return used

    def _request_check(self) -> bool:
        """Have the watch read the figures now; False if it cannot any more."""
        if not self._is_check_due and self._token is not None:
            self._is_check_due = True
            try:
                self._token.run_sync_soon(self._wake_up, idempotent=True)
            except trio.RunFinishedError:
                return False
        return self._token is not None

    def _call_for_room(self) -> None:
        if not self._request_check():
            self.reservations.close()  # without a watch, room is never made

    def _wake_up(self) -> None:
        self._wake.set()

    async def _watch(self, nursery: trio.Nursery) -> None:
        while True:
            self._is_check_due = self._is_dozing = False
            self._wake = trio.Event()
            self._worker.report_lost()
            wanted = max(self._incoming_wants, self._admit())
            self._incoming_wants = 0
            now = trio.current_time()
            step = self._policy.step(now, self._figures(wanted))
            if step.actions == (GiveBack(),):
                self._kept.give_back()
                # What other threads have returned meanwhile can wait for the next reading.
                step = self._policy.step(now, self._figures(wanted)._replace(kept=0))
            for action in step.actions:
                self._carry_out(action, nursery)
            if not self._policy.is_working:
                self._end_wait()
            self._is_dozing = step.next_s > BUSY_INTERVAL_S
            with trio.move_on_after(step.next_s):
                await self._wake.wait()

    def _figures(self, wanted: int) -> Figures:
        store, worker = self.store, self._worker
        return Figures(
            process=self._read(),
            kept=self._kept.kept_bytes,
            values=worker.held_bytes(),
            spilled=store.spilled_bytes,
            spillable=store.large_bytes,
            wanted=wanted,
            has_garbage=store.has_garbage,
            is_busy=worker.busy(),
            waits_for_itself=worker.waits_for_itself(),
        )

    def _admit(self) -> int:
        """Let in the threads for which there is room; gives the bytes that the next one waits for."""
        return self.reservations.admit(helpless=self._is_helpless(), urgent=self._worker.waits_for_itself())

    def _is_helpless(self) -> bool:
        return self._policy.is_helpless(trio.current_time(), self.store.large_bytes)

    def _end_wait(self) -> None:
        self._work_ended.set()
        self._work_ended = trio.Event()

    def _carry_out(self, action: Action, nursery: trio.Nursery) -> None:
        match action:
            case GiveBack():
                self._kept.give_back()
            case MakeRoom():
                nursery.start_soon(self._work, partial(self._make_room, action))
            case RemoveFiles():
                nursery.start_soon(self._work, self.store.remove_garbage)
            case SetPaused(paused, is_news):
                if is_news:
                    figures = f"{format_bytes(self._read())} of {format_bytes(self.limits.limit)} in use"
                    log.info("Paused: %s" if paused else "Resumed: %s", figures)
                self._worker.set_paused(paused)

    async def _work(self, work: Callable[[], RoomMade | None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe)
            made = await self._in_thread(work)
            nursery.cancel_scope.cancel()
        problem = self._policy.work_ended(trio.current_time(), made, self.store.large_bytes)
        if problem:
            log.warning("Cannot spill results to disk: %s", problem)
        self._end_wait()
        self._wake.set()

    def _make_room(self, request: MakeRoom) -> RoomMade:
        """In the thread: spill a portion, and have its memory return to the system."""
        before = self._used()
        spilled = self.store.spill(request.nbytes)
        if request.also_used and not spilled.nbytes and not spilled.problem:
            spilled = self.store.spill(request.nbytes, also_used=True)
        freed = spilled.nbytes
        collection_s: float | None = None
        if before > self.limits.squeeze_above:
            if not freed and request.may_collect:
                started = time.perf_counter()
                collect_garbage()
                collection_s = time.perf_counter() - started
            if before - self._used() <= freed / 2:
                trim()
            if not freed and before - self._used() > WORTHWHILE_BYTES:
                freed = before - self._used()
        return RoomMade(freed, spilled.problem, collection_s)

    async def _probe(self) -> None:
        """Measure the delays of the event loop."""
        while True:
            due = trio.current_time() + PROBE_S
            await trio.sleep_until(due)
            self.loop_lag_s = max(self.loop_lag_s, trio.current_time() - due)

    async def _check_directory(self, directory: SpillDirectory) -> None:
        for path in await self._in_thread(partial(remove_leftovers, directory.base)):
            log.info("Removed %s, left behind by a worker that was killed", path)
        while not self.store.spilled_count:
            await self._work_ended.wait()
        if await self._in_thread(directory.in_memory):
            log.warning("Spilling to %s, which is itself in memory; choose another --local-directory", directory.base)

    async def _in_thread(self, work: Callable[[], _T], *, in_turn: bool = True) -> _T:
        limiter = self._thread if in_turn else None
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
