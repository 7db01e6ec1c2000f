"""Where to connect to or to listen, and under which conditions, in one value."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from trio_dask.comm.addresses import Address
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits

Security: TypeAlias = None
"""How an endpoint encrypts and whom it trusts. So far nothing does: this is the place for TLS."""


class Endpoint(NamedTuple):
    """A place to connect to or to listen at."""

    address: Address
    limits: LinkLimits = DEFAULT_LIMITS
    security: Security = None

    def __str__(self) -> str:
        return str(self.address)
