"""A service as the program of a child process: signals, orders of the parent and the end of stdin stop it."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from functools import wraps

from trio_dask.deploy.program_runner import Stopper, run_program
from trio_dask.processes.child_context import ChildContext, Entry
from trio_dask.processes.environment import raise_file_limit


def child_program(service: Callable[[ChildContext, Stopper], Awaitable[None]]) -> Entry:
    """A decorator: it makes a service what `ChildSpec.program` takes. What goes wrong is reported to the parent."""

    @wraps(service)
    def run(child: ChildContext) -> int:
        stopper = Stopper(patient=True)
        stopper.install()
        child.watch_stdin(stopper.ask)

        async def begin() -> None:
            gc.freeze()  # else the first collection would look at everything that was imported
            gc.enable()
            await service(child, stopper)

        raise_file_limit()
        return run_program(
            child.name,
            begin,
            stopper,
            debug=child.log.debug,
            quiet=child.log.quiet,
            log_format="records" if child.log.records else "text",
            origin=child.log.origin,
            tell=lambda status, text: child.report({"failure": text}),
        )

    return run
