"""Where to connect to or to listen, and under which conditions, in one value."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from trio_dask.comm.addresses import Address, twin
from trio_dask.errors import UsageError
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.security.proof import NONCE_BYTES, Prover

if TYPE_CHECKING:
    from trio_dask.security.tls_contexts import Tls


class Endpoint(NamedTuple):
    """A place to connect to or to listen at."""

    address: Address
    limits: LinkLimits = DEFAULT_LIMITS
    credentials: Credentials = NO_CREDENTIALS
    server_name: str = ""
    """What a caller asks for under TLS, and may check, where that is not the host in the address."""

    def __str__(self) -> str:
        return str(self.address)

    def check(self) -> None:
        """Refuse a place that is less protected than it has to be. Raises `UsageError`."""
        key, tls = self.credentials
        check_protection(self.address, tls, has_key=key is not None)

    def prover(self, key: ClusterKey | None, channel_binding: bytes) -> Prover:
        """What this process brings along to one connection, where it proves that it has this key.

        Inside one process nobody has to prove anything: whatever can connect there runs in the same interpreter.
        """
        key = None if self.address.is_in_process else key
        return Prover(key, secrets.token_bytes(NONCE_BYTES), channel_binding)


def check_protection(address: Address, tls: Tls | None, *, has_key: bool) -> None:
    """Refuse to connect or to listen where that would be less protected than it has to be. Raises `UsageError`."""
    if tls is not None and tls.is_required and not (address.is_encrypted or address.is_in_process):
        why = "which is required here (certificates, or require_encryption)"
        remedy = f"with TLS it is {twin(address)}"
        raise UsageError(f"{address} has no TLS, {why}; {remedy}", remedy=remedy)
    if address.is_encrypted and not has_key and (tls is None or tls.config is None):
        remedy = "give --tls-ca-file, --tls-cert and --tls-key, or leave --no-auth out"
        raise UsageError(f"{address} without certificates relies on the cluster's key; {remedy}", remedy=remedy)
