"""Where to connect to or to listen, and under which conditions, in one value."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from trio_dask.comm.addresses import Address
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.security.proof import NONCE_BYTES, Prover


class Endpoint(NamedTuple):
    """A place to connect to or to listen at."""

    address: Address
    limits: LinkLimits = DEFAULT_LIMITS
    credentials: Credentials = NO_CREDENTIALS

    def __str__(self) -> str:
        return str(self.address)

    def prover(self, key: ClusterKey | None, channel_binding: bytes) -> Prover:
        """What this process brings along to one connection, where it proves that it has this key.

        Inside one process nobody has to prove anything: whatever can connect there runs in the same interpreter.
        """
        key = None if self.address.is_in_process else key
        return Prover(key, secrets.token_bytes(NONCE_BYTES), channel_binding)
