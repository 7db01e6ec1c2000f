"""Samples the threads of tasks: in which functions they spend their time. Off unless the configuration switches it on.

A slot notes nothing for this. A thread of the profiler looks at the frames of the slots' threads now and then, and
sleeps while no task runs. After each sample it rests for at least 130 times as long as that has taken.
"""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from trio_dask.ids import name_of
from trio_dask.worker.call_stacks import EXECUTE
from trio_dask.worker.executor import Executor
from trio_dask.worker.task_context import TaskContext

SHARE: Final = 0.0075
"""The profiler takes at most this part of one processor. Its switches cost the tasks about as much."""

MOST_CALLS: Final = 50_000
"""Further calls count for their callers."""

MOST_FRAMES: Final = 200
"""Of deeper stacks the outermost ones."""

KEPT_COUNTS: Final = 100_000
KEPT_CYCLES: Final = 3600
IDLE_SAMPLES: Final = 50
"""After so many samples without a task the profiler sleeps until `wake`."""

Call: TypeAlias = tuple[int, str, str, int]
"""The number of the caller (0: the slot itself), and the name, the file and the first line of the function."""

Rows: TypeAlias = tuple[list[tuple[int, str, str, int, str]], dict[int, int]]
"""Calls, each with its text, and samples by the number of the innermost call. The first call has the number 1."""

_CALL_ASYNC: Final[CodeType] = Executor._call_async.__code__  # pyright: ignore[reportPrivateUsage] - its frames are found
"""A thread in it waits for an `async def` task, which runs in the event loop."""


class _Cycle(NamedTuple):
    """Samples of some time, by name of the task's function and number of the innermost call."""

    began: float
    ended: float
    counts: Mapping[tuple[str, int], int]


class Samples:
    """What was sampled, in cycles. Any thread may call any method."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._calls: dict[Call, int] = {}
        self._cycles: deque[_Cycle] = deque()
        self._kept = 0
        self._began = now
        self._counts: dict[tuple[str, int], int] = {}

    def add(self, name: str, codes: Sequence[CodeType]) -> None:
        """Count a stack, from the innermost frame to the task's own call."""
        calls, number = self._calls, 0
        with self._lock:
            for code in codes[: -MOST_FRAMES - 1 : -1]:
                call = number, code.co_name, code.co_filename, code.co_firstlineno
                called = calls.get(call)
                if called is None:
                    if len(calls) >= MOST_CALLS:
                        break
                    called = calls[call] = len(calls) + 1
                number = called
            if not codes and len(calls) < MOST_CALLS:  # a function without frames of its own, as `pow`
                number = calls.setdefault((0, name, "", 0), len(calls) + 1)
            self._counts[name, number] = self._counts.get((name, number), 0) + 1

    def end_cycle(self, now: float) -> None:
        """Further samples belong to the next cycle. Old cycles are dropped."""
        with self._lock:
            if self._counts:
                self._cycles.append(_Cycle(self._began, now, self._counts))
                self._kept += len(self._counts)
                self._counts = {}
                while len(self._cycles) > KEPT_CYCLES or self._kept > KEPT_COUNTS:
                    self._kept -= len(self._cycles.popleft().counts)
            self._began = now

    def between(self, start: float, stop: float, name: str | None) -> Rows:
        """The samples of the cycles between two times, perhaps only those of tasks of one name."""
        with self._lock:
            counts: dict[int, int] = {}
            for cycle in self._cycles:
                if cycle.ended >= start and cycle.began <= stop:
                    for (of, number), count in cycle.counts.items():
                        if name in (None, of):
                            counts[number] = counts.get(number, 0) + count
            calls = list(self._calls)
        needed: set[int] = set()
        for innermost in counts:
            number = innermost
            while number and number not in needed:
                needed.add(number)
                number = calls[number - 1][0]
        renamed = {0: 0} | {number: at for at, number in enumerate(sorted(needed), 1)}
        rows = [(renamed[calls[number - 1][0]], *calls[number - 1][1:]) for number in sorted(needed)]
        return (
            [(*row, linecache.getline(row[2], row[3]).strip()) for row in rows],
            {renamed[number]: count for number, count in counts.items()},
        )


class Profiler:
    """The thread that takes samples of the threads of one executor. `threads` are their identifiers, as they come."""

    def __init__(
        self,
        threads: Iterable[int],
        is_busy: Callable[[], bool],
        *,
        interval_s: float,
        cycle_s: float,
        frames: Callable[[], Mapping[int, FrameType]] = sys._current_frames,  # pyright: ignore[reportPrivateUsage]
    ) -> None:
        self._threads = threads
        self._is_busy = is_busy
        self._interval_s = interval_s
        self._cycle_s = cycle_s
        self._frames = frames
        self._samples = Samples(time.time())
        self._wanted = threading.Event()
        self._running = threading.Lock()
        self._running.acquire()

    def start(self) -> None:
        """Take samples whenever there are tasks, until `close`."""
        threading.Thread(target=self._run, name="profiler", daemon=True).start()

    def close(self) -> None:
        """End the thread; it may take one more sample."""
        self._running.release()
        self._wanted.set()

    def wake(self) -> None:
        """There are tasks."""
        self._wanted.set()

    def between(self, start: float, stop: float, name: str | None = None) -> Rows:
        """What was sampled between these times, in seconds since 1970. From any thread."""
        self._samples.end_cycle(time.time())
        return self._samples.between(start, stop, name)

    def _run(self) -> None:
        pause_s, empty, cycle_ends = self._interval_s, 0, 0.0
        self._await_tasks()
        before = time.thread_time()
        while not self._running.acquire(timeout=pause_s):
            empty = 0 if self.sample() else empty + 1
            now = time.time()
            if now >= cycle_ends:
                cycle_ends = now + self._cycle_s
                self._samples.end_cycle(now)
            spent = time.thread_time()  # since the last time: waking up takes more than the sample itself
            pause_s, before = max(self._interval_s, (spent - before) / SHARE), spent
            if empty >= IDLE_SAMPLES:
                empty = 0
                self._await_tasks()

    def _await_tasks(self) -> None:
        self._samples.end_cycle(time.time())
        self._wanted.clear()
        if not self._is_busy():
            self._wanted.wait()
        self._samples.end_cycle(time.time())

    def sample(self) -> int:
        """Look at each thread once. Returns how many were in a task.

        No frame is kept: it would keep the values of the task.
        """
        found = 0
        frames = self._frames()
        for thread in list(self._threads):
            frame = frames.get(thread)
            codes: list[CodeType] = []
            while frame is not None and frame.f_code is not EXECUTE:
                codes.append(frame.f_code)
                frame = frame.f_back
            if frame is None or (codes and codes[0] is _CALL_ASYNC):
                continue
            context: Any = frame.f_locals.get("context")
            if isinstance(context, TaskContext):
                self._samples.add(name_of(context.key), codes)
                found += 1
        return found
