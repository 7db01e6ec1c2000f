"""The process that a `dask-worker` is under nannies: several nannies in one nursery, and the end of all of them.

The first nanny that fails ends the others in good order, and its failure is the program's. What the workers write to
their stderr appears on ours, a line at a time and from a thread of its own, so that a reader who has stopped stops
nobody here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence

import trio

from trio_dask.config import NannySettings
from trio_dask.deploy.ends import remove_scratch
from trio_dask.deploy.lines import StderrLines
from trio_dask.deploy.program import Stopper
from trio_dask.deploy.suspending import suspended_with_us
from trio_dask.errors import TrioDaskError
from trio_dask.files import present
from trio_dask.nanny.service import Nanny, Stop

__all__ = ["run_nannies"]

DRAIN_LINES_S = 0.5
MAX_LINE_BYTES = 64 * 1024


async def run_nannies(
    settings: Sequence[NannySettings],
    stopper: Stopper,
    *,
    label: str,
    pid_file: str | None = None,
    debug: bool = False,
) -> None:
    """Look after one worker for each of these settings, until all have ended. A signal has the workers drain.

    `label` is what the program is called in lines about a worker.

    Raises:
      KeptCrashing, NoScheduler, RefusedError, UsageError, OSError: what the first nanny that failed raised.
    """
    launcher = _Launcher(settings, label, debug)
    with present(pid_file, f"{os.getpid()}\n"), stopper.orderly(launcher.heed_signal), suspended_with_us(launcher):
        await launcher.run()


class _Launcher:
    def __init__(self, settings: Sequence[NannySettings], label: str, debug: bool) -> None:
        self._lines = StderrLines(debug=False)
        self._failure: Exception | None = None
        self._local_directory = settings[0].worker.local_directory  # of all of them
        self._nannies = [
            Nanny(one, label=self._label(label, one), quiet=False, debug=debug, output=self._output())
            for one in settings
        ]

    def _label(self, label: str, settings: NannySettings) -> str:
        return label if settings.worker.name is None else f"{label} {settings.worker.name}"

    def heed_signal(self, number: int) -> bool:
        """Pass a request to stop on."""
        self._stop(Stop.SOON if number == signal.SIGINT else Stop.DRAIN)
        return True

    def suspend(self) -> None:
        """Stop all workers for a while; this program is about to stop as well."""
        for nanny in self._nannies:
            nanny.suspend()

    def resume(self) -> None:
        """Have them go on."""
        for nanny in self._nannies:
            nanny.resume()

    def _stop(self, how: Stop) -> None:
        for nanny in self._nannies:
            nanny.stop(how)

    async def run(self) -> None:
        """Run all nannies to their end."""
        try:
            async with trio.open_nursery() as nursery:
                for nanny in self._nannies:
                    nursery.start_soon(self._run_one, nanny)
        finally:
            await remove_scratch(self._local_directory)  # noqa: ASYNC102 - it shields itself, with a limit
            # Not awaited: this thread has nothing else to do any more, and must not end before the last words are out.
            self._lines.drain(DRAIN_LINES_S)
        if self._failure is not None:
            raise self._failure

    async def _run_one(self, nanny: Nanny) -> None:
        try:
            await nanny.run()
        except (TrioDaskError, OSError) as error:
            if self._failure is None:
                self._failure = error
            self._stop(Stop.DRAIN)

    def _output(self) -> Callable[[bytes], None]:
        rest = b""

        def write(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._lines.emit(logging.makeLogRecord({"msg": line.decode(errors="backslashreplace")}))

        return write
