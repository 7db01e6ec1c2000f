"""The way back, which a check tests before anything is started: from each host to where the scheduler would be.

The scheduler's host listens at the scheduler's port, and the others connect to it. Nothing is said there: whoever can
open a connection could reach the scheduler.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from trio_dask.comm.addresses import Address, choose_advertised_host, parse_address
from trio_dask.config import DEFAULT_SCHEME
from trio_dask.deploy.ssh.lifeline import Lifeline
from trio_dask.deploy.ssh.orders import Order
from trio_dask.exit_status import ExitStatus

BACKLOG = 1024
REACH_S = 5.0

Report = Callable[[Mapping[str, Any]], None]


def listen(order: Order, lifeline: Lifeline, report: Report) -> None:
    """Listen at a port until the lifeline ends, and report the address, or why that is impossible.

    The order has the port as its argument.
    """
    port = int(order.arguments[0])
    try:
        listener = socket.create_server(("", port), backlog=BACKLOG)
    except OSError as exc:
        words = f"cannot listen at port {port}: {os.strerror(exc.errno or 0)}"
        report({"failure": words, "status": int(ExitStatus.REFUSED)})
        return
    host = order.contact_host or choose_advertised_host("0.0.0.0")
    report({"address": str(Address(DEFAULT_SCHEME, host, listener.getsockname()[1]))})
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    while lifeline.next_order() is not None:
        pass


def _accept(listener: socket.socket) -> None:
    while True:
        with suppress(OSError):  # whoever connected has gone already
            listener.accept()[0].close()


def reach(order: Order, report: Report) -> None:
    """Connect to the addresses that the order has as its arguments; report what does not work."""
    for address in order.arguments:
        place = parse_address(address)
        try:
            socket.create_connection((place.host, place.port), REACH_S).close()
        except OSError as exc:
            words = f"no answer within {REACH_S:g} s" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
            report({"failure": f"cannot reach {place.host}:{place.port}: {words}", "status": int(ExitStatus.REFUSED)})
