"""The child's side of `process.run_child`, run by its path: read from stdin what to be, be it, say when it is ready.

Nothing of the package may be imported before the parent's module search path is in place.
"""

from __future__ import annotations

import gc

gc.disable()  # nothing that is imported becomes garbage, and looking for it takes a tenth of the start

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402


def _read_orders() -> dict[str, Any]:
    """The first line of stdin, and not a byte more: the rest of stdin is the lifeline."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)  # the parent is gone before it told us anything
        line += data
    orders: dict[str, Any] = json.loads(line)
    return orders


def main() -> int:
    """Run the program that stdin asks for, and give its exit status."""
    orders = _read_orders()
    sys.path[:] = orders["path"]  # until here its first entry was the folder of this file
    sys.argv[1:] = []

    from trio_dask.deploy.lifeline import Lifeline, put_on_leash
    from trio_dask.deploy.program import Stopper, raise_file_limit, run_program

    put_on_leash(orders["leash_fd"])
    stopper = Stopper()
    stopper.install()
    lifeline = Lifeline(orders["parent_pid"])
    lifeline.watch(lambda: stopper.ask("the program that started this one is done"))

    def ready(report: dict[str, Any]) -> None:
        os.write(orders["ready_fd"], json.dumps(report).encode() + b"\n")
        os.close(orders["ready_fd"])

    module, _, function = orders["program"].partition(":")

    async def service() -> None:
        # Imported inside the program, so that what goes wrong there is reported like everything else.
        program = getattr(importlib.import_module(module), function)
        gc.enable()
        await program(orders["settings"], ready)

    raise_file_limit()
    return run_program(orders["name"], service, stopper, quiet=True)


if __name__ == "__main__":
    sys.exit(main())
