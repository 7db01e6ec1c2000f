"""Where to connect to or to listen, and under which conditions, in one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trio_dask.comm.addresses import Address
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits

if TYPE_CHECKING:
    from trio_dask.security.tls_contexts import Tls


class Endpoint(NamedTuple):
    """A place to connect to or to listen at."""

    address: Address
    limits: LinkLimits = DEFAULT_LIMITS
    security: Tls | None = None

    def __str__(self) -> str:
        return str(self.address)
