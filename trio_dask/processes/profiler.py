"""Samples what a program does: in which functions its event loop and its threads spend their time.

A thread looks at the frames of the others now and then, and sleeps while the loop only waits. After each sample it
rests for at least 130 times as long as that has taken.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Final

import trio

from trio_dask.processes.stack_samples import Rows, Samples

SHARE: Final = 0.0075
"""The profiler takes at most this part of one processor. Its switches cost the others about as much."""

IDLE_SAMPLES: Final = 50
"""The profiler sleeps until `wake` after this many samples in a row that found nothing running."""

WHOLE_LOOP: Final = "event loop"

_TRIO_RUN: Final = trio.run.__code__.co_filename
_TRIO_THREADS: Final = trio.to_thread.run_sync.__code__.co_filename
_TRIO_THREAD_CACHE: Final = trio.lowlevel.start_thread_soon.__code__.co_filename
_TRIO_IO: Final = os.path.join(os.path.dirname(_TRIO_RUN), "_io_")


class Profiler:
    """The thread that takes samples of this program's event loop, and of threads in which that has functions run.

    It is made in the thread of the loop. While `is_busy` says so, or the loop goes round, it does not sleep.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        cycle_s: float,
        is_busy: Callable[[], bool] = lambda: False,
        frames: Callable[[], Mapping[int, FrameType]] = sys._current_frames,  # pyright: ignore[reportPrivateUsage]
    ) -> None:
        self._is_busy = is_busy
        self._interval_s = interval_s
        self._cycle_s = cycle_s
        self._frames = frames
        self._loop_thread = threading.get_ident()
        self._loop_samples = Samples(time.time())
        self._wanted = threading.Event()
        self._running = threading.Lock()
        self._running.acquire()

    @contextmanager
    def running(self) -> Generator[None]:
        """Take samples during this block, which stands in the event loop."""
        alarm = _Alarm(self.wake)
        trio.lowlevel.add_instrument(alarm)
        self.start()
        try:
            yield
        finally:
            self.close()
            trio.lowlevel.remove_instrument(alarm)

    def start(self) -> None:
        """Take samples whenever something runs, until `close`."""
        threading.Thread(target=self._run, name="profiler", daemon=True).start()

    def close(self) -> None:
        """End the thread; it may take one more sample."""
        self._running.release()
        self._wanted.set()

    def wake(self) -> None:
        """Something may run."""
        if not self._wanted.is_set():
            self._wanted.set()

    def loop_between(self, start: float, stop: float) -> Rows:
        """What was sampled of the loop between these times, in seconds since 1970. From any thread."""
        self._loop_samples.end_cycle(time.time())
        return self._loop_samples.between(start, stop, None)

    def sample(self) -> int:
        """Look at each thread once. Returns in how many something runs."""
        return self._sample_all(self._frames())

    def _sample_all(self, frames: Mapping[int, FrameType]) -> int:
        """Count the stacks that these frames end. No frame is kept: it would keep the values of its variables."""
        found = 0
        for thread, frame in frames.items():
            codes = _loop_stack(frame) if thread == self._loop_thread else _thread_stack(frame)
            if codes:
                self._loop_samples.add(WHOLE_LOOP, codes)
                found += 1
        return found

    def _end_cycle(self, now: float) -> None:
        self._loop_samples.end_cycle(now)

    def _run(self) -> None:
        pause_s, empty, cycle_ends = self._interval_s, 0, 0.0
        self._await_work()
        before = time.thread_time()
        while not self._running.acquire(timeout=pause_s):
            empty = 0 if self.sample() else empty + 1
            now = time.time()
            if now >= cycle_ends:
                cycle_ends = now + self._cycle_s
                self._end_cycle(now)
            spent = time.thread_time()  # since the last time: waking up takes more than the sample itself
            pause_s, before = max(self._interval_s, (spent - before) / SHARE), spent
            if empty >= IDLE_SAMPLES:
                empty = 0
                self._await_work()

    def _await_work(self) -> None:
        self._end_cycle(time.time())
        self._wanted.clear()
        if not self._is_busy():
            self._wanted.wait()
        self._end_cycle(time.time())


class _Alarm(trio.abc.Instrument):
    """Calls a function each time the loop has something to do."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def after_io_wait(self, timeout: float) -> None:
        self._wake()


def _loop_stack(innermost: FrameType) -> list[CodeType]:
    """What a loop runs, from the innermost frame to Trio's own function that runs tasks; nothing if it waits."""
    codes: list[CodeType] = []
    frame: FrameType | None = innermost
    while frame is not None:
        code = frame.f_code
        codes.append(code)
        if code.co_filename == _TRIO_RUN and code.co_name == "unrolled_run":
            break
        if code.co_name == "before_io_wait" or (code.co_name == "get_events" and code.co_filename.startswith(_TRIO_IO)):
            return []
        frame = frame.f_back
    return codes


def _thread_stack(innermost: FrameType) -> list[CodeType]:
    """What a thread runs for `trio.to_thread.run_sync`; nothing if it is no such thread."""
    codes: list[CodeType] = []
    length = 0
    frame: FrameType | None = innermost
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _TRIO_THREADS:
            length = len(codes)  # the outermost one counts: the function may call the loop, by Trio's functions
        elif file == _TRIO_THREAD_CACHE:
            return codes[:length]
        codes.append(frame.f_code)
        frame = frame.f_back
    return []
