"""A range of ports, of which the first that is free is taken."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from trio_dask.comm.addresses import Address

__all__ = ["listen_in_range"]

_T = TypeVar("_T")


async def listen_in_range(host: str, ports: tuple[int, int], listen: Callable[[Address], Awaitable[_T]]) -> _T:
    """What `listen` gives at the first port of the range, in order, that nobody else has.

    Raises:
      OSError: all of them are in use, or it cannot listen for another reason.
    """
    first, last = ports
    for port in range(first, last + 1):
        try:
            return await listen(Address("tcp", host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or first == last:
                raise
    place = f"tcp://{host or '0.0.0.0'}"
    raise OSError(errno.EADDRINUSE, f"cannot listen at {place}: all ports from {first} to {last} are in use")
