"""Listen at the first free port of a range."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from trio_dask.comm.addresses import Address
from trio_dask.config import DEFAULT_SCHEME

_T = TypeVar("_T")


async def listen_in_range(host: str, ports: tuple[int, int], listen: Callable[[Address], Awaitable[_T]]) -> _T:
    """What `listen` returns for the first port of the range, in order, that is free.

    Raises:
      OSError: all of them are in use, or it cannot listen for another reason.
    """
    first, last = ports
    for port in range(first, last + 1):
        try:
            return await listen(Address(DEFAULT_SCHEME, host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or first == last:
                raise
    place = f"{DEFAULT_SCHEME}://{host or '0.0.0.0'}"
    raise OSError(errno.EADDRINUSE, f"cannot listen at {place}: all ports from {first} to {last} are in use")
