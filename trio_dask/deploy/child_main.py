"""The child's side of `processes.child_process`, run by its path: read from stdin what to be, be it, report on it.

Nothing of the package may be imported before the parent's module search path is in place. One that is to be a fork
server forks others of its kind, which begin here with a stdin of their own and everything loaded.
"""

from __future__ import annotations

import gc

gc.disable()  # nothing that is imported becomes garbage, and looking for it takes a tenth of the start

import faulthandler  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from typing import Any  # noqa: E402


def _read_orders() -> tuple[dict[str, Any], bytes]:
    """The first line of stdin, and what has come after it already: the rest of stdin is the lifeline."""
    data = bytearray()
    while b"\n" not in data:
        piece = os.read(0, 65536)
        if not piece:
            sys.exit(0)  # the parent is gone before it told us anything
        data += piece
    line, _, rest = bytes(data).partition(b"\n")
    orders: dict[str, Any] = json.loads(line)
    return orders, rest


def _open_standard_streams() -> None:
    """A number that is closed here would go to what is opened next, which would end when the stream is replaced."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main() -> int:
    """Run the program that stdin asks for, and give its exit status."""
    _open_standard_streams()
    orders, rest = _read_orders()
    sys.path[:] = orders["path"]  # until here its first entry was the folder of this file
    sys.argv[1:] = []
    if orders["program"] == "trio_dask.deploy.fork_server_main:serve":
        from trio_dask.deploy.fork_server_main import serve

        serve(orders)
        # It comes back in the processes that it forks, each with a stdin of its own.
        orders, rest = _read_orders()
        sys.path[:] = orders["path"]

    from trio_dask.processes.parent_watch import Lifeline, open_parent, put_on_leash

    report_fd: int = orders["report_fd"]
    parent_fd = open_parent(orders["parent_pid"])
    if orders["guarded"]:
        from trio_dask.processes.subreaper import stand_guard

        stand_guard(parent_fd, report_fd, to_close=(orders["leash_fd"],))
    os.set_inheritable(report_fd, False)
    os.set_inheritable(orders["leash_fd"], False)
    put_on_leash(orders["leash_fd"])
    faulthandler.enable()

    def report(content: Mapping[str, Any]) -> None:
        try:
            os.write(report_fd, json.dumps(content).encode() + b"\n")
        except OSError:
            pass  # the parent is gone; the lifeline says so as well

    report({"pid": os.getpid()})

    from trio_dask.deploy.program_runner import Stopper, raise_file_limit, run_program

    stopper = Stopper(patient=True)
    stopper.install()
    Lifeline(parent_fd, rest).watch(stopper.ask)
    module, _, function = orders["program"].partition(":")

    async def service() -> None:
        # Imported inside the program, so that what goes wrong there is reported like everything else.
        program = getattr(importlib.import_module(module), function)
        gc.freeze()  # else the first look would be at everything that was imported
        gc.enable()
        await program(orders["settings"], report, stopper)

    raise_file_limit()
    return run_program(
        orders["name"],
        service,
        stopper,
        debug=orders["debug"],
        quiet=orders["quiet"],
        log_format="records" if orders["records"] else "text",
        origin=orders["origin"],
        tell=lambda status, text: report({"failure": text}),
    )


if __name__ == "__main__":
    sys.exit(main())
