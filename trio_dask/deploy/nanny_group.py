"""The nannies of one `dask-worker`, in one nursery.

The first nanny that fails ends the others in good order, and its failure is the program's. What the workers write to
their stderr appears in our log, a line at a time, with the name of the worker: log records, and whatever tasks print.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from trio_dask.comm.joining import SOON_S, scheduler_in_words
from trio_dask.config import NannySettings
from trio_dask.deploy import child_services
from trio_dask.deploy.preload import Preloaded, set_up
from trio_dask.deploy.program_runner import Stopper
from trio_dask.deploy.remote_modules import read_remote_modules
from trio_dask.deploy.worker_program import remove_scratch
from trio_dask.errors import TrioDaskError
from trio_dask.nanny.handle import NannyHandle
from trio_dask.nanny.service import Nanny
from trio_dask.nanny.worker_process import Stop
from trio_dask.owned_files import keep_file
from trio_dask.processes.child_context import ChildLog
from trio_dask.processes.stderr_records import read_record
from trio_dask.security.credentials import Credentials

MAX_LINE_BYTES = 64 * 1024

log = logging.getLogger("trio_dask.launcher")


async def run_nannies(
    settings: Sequence[NannySettings],
    stopper: Stopper,
    *,
    label: str,
    debug: bool = False,
    preloaded: Sequence[Preloaded] = (),
    credentials: Credentials | None = None,
    changed: Callable[[Sequence[Nanny]], object] = lambda nannies: None,
) -> None:
    """Look after one worker for each of these settings, until all have ended. A signal makes the workers drain.

    The `preloaded` modules are set up for each nanny, see `preload`. The pid file names the launcher. `label` is the
    name of the program in lines about a worker. The `credentials` are looked for where the settings say, unless they
    are given. It calls `changed` with all nannies when a worker comes or goes.

    Raises:
      KeptCrashing, NoScheduler, RefusedError, UsageError, PreloadError, OSError: what the first nanny that failed
        raised.
    """
    sources = await read_remote_modules(settings[0].preload)
    settings = [one._replace(preload_sources=sources) for one in settings]
    argv = settings[0].preload_argv
    around = partial(set_up, preloaded, argv, option="--preload-nanny") if preloaded else None
    nannies = [
        _nanny(label, number, len(settings), one, debug, credentials, around) for number, one in enumerate(settings)
    ]
    for nanny in nannies:
        nanny.changed = partial(changed, nannies)
    shared = settings[0].worker
    failures: list[Exception] = []

    def stop_all(how: Stop, reason: str) -> None:
        for nanny in nannies:
            nanny.stop(how, reason)

    def pass_signal_on(number: int) -> bool:
        how = Stop.SOON if number == signal.SIGINT else Stop.DRAIN
        stop_all(how, f"the launcher received {signal.Signals(number).name}")
        return True

    async def run_one(nanny: Nanny) -> None:
        try:
            await nanny.run()
        except (TrioDaskError, OSError) as error:
            failures.append(error)
            stop_all(Stop.DRAIN, "another worker of this launcher failed")

    with keep_file(shared.pid_file, f"{os.getpid()}\n"), stopper.stopping_by(pass_signal_on):
        try:
            async with trio.open_nursery() as saying:
                saying.start_soon(_say_what_is_awaited, nannies[0])
                async with trio.open_nursery() as nursery:
                    for nanny in nannies:
                        nursery.start_soon(run_one, nanny)
                saying.cancel_scope.cancel()
        finally:
            await remove_scratch(shared.local_directory)  # noqa: ASYNC102 - it shields itself, with a limit
        if failures:
            raise failures[0]


async def _say_what_is_awaited(nanny: Nanny) -> None:
    """If there is no scheduler, say so long before a worker is ready to say it."""
    await trio.sleep(SOON_S)
    if nanny.why_waiting:
        log.info("Waiting for %s: %s", scheduler_in_words(nanny.settings.worker), nanny.why_waiting)


def _nanny(
    label: str,
    number: int,
    of: int,
    settings: NannySettings,
    debug: bool,
    credentials: Credentials | None,
    around: Callable[[NannyHandle], AbstractAsyncContextManager[None]] | None,
) -> Nanny:
    name = settings.worker.name
    origin = name or ("worker" if of == 1 else f"worker {number}")
    return Nanny(
        settings,
        child_services.worker,
        credentials=credentials,
        label=label if name is None else f"{label} {name}",
        log=ChildLog(origin=origin, records=True, level=logging.INFO, debug=debug),
        output=_output_logger(origin),
        around=around,
    )


def _output_logger(origin: str) -> Callable[[bytes], None]:
    """A function that logs what a worker of this name writes to its stderr."""
    logger = logging.getLogger("trio_dask.output")
    rest = b""

    def write(data: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            record = read_record(line) or logger.makeRecord(
                logger.name, logging.INFO, __file__, 0, "%s", (line.decode(errors="backslashreplace"),), None
            )
            record.origin = origin
            logger.handle(record)

    return write
