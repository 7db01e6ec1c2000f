"""Where every child process begins: run by its path, it reads from stdin which program to run.

Nothing of the package may be imported before the parent's module search path is in place. A process that a fork server
has forked begins here again, with a stdin of its own and everything loaded.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # nothing that is imported becomes garbage, and the search for it takes a tenth of the start

import json
import os
import sys
from typing import Any


def _read_orders() -> tuple[dict[str, Any], bytes]:
    """The first line of stdin, and what has come after it already."""
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
    """Open the standard streams that are closed; else the next file would get the number of one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main() -> int:
    """Run the program that stdin asks for, and give its exit status."""
    _open_standard_streams()
    orders, rest = _read_orders()
    sys.path[:] = orders["path"]  # until here its first entry was the folder of this file
    sys.argv[1:] = []

    from trio_dask.processes.child_context import begin

    return begin(orders, rest)


if __name__ == "__main__":
    sys.exit(main())
