"""From settings to a scheduler's endpoint: its address, and the credentials of its cluster."""

from __future__ import annotations

from typing import Protocol

from trio_dask.comm.addresses import parse_scheduler_address
from trio_dask.comm.endpoint import Endpoint
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.scheduler_file import find_scheduler
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials, CredentialSettings, find_credentials

_clusters: dict[str, Credentials] = {}
"""The clusters that this process belongs to, or has started: by their address, their credentials."""


class SchedulerChoice(CredentialSettings, Protocol):
    """The settings that say which scheduler to connect to."""

    @property
    def scheduler(self) -> str | None:
        """Its address."""
        ...

    @property
    def scheduler_file(self) -> str | None:
        """The file with its address, instead."""
        ...


def scheduler_endpoint(
    settings: SchedulerChoice, limits: LinkLimits = DEFAULT_LIMITS, given: Credentials | None = None
) -> Endpoint:
    """Where the scheduler is now, and what it asks for. `given` credentials come before all that can be found.

    Raises:
      NoScheduler: there is no scheduler file, or the scheduler that wrote it has ended.
      UnavailableError: the scheduler file or the file of the cluster key cannot be used.
      UsageError: that is no address, or no scheduler file.
    """
    found = find_scheduler(settings.scheduler, settings.scheduler_file)
    address = parse_scheduler_address(found.address)
    if given is None and address.is_in_process:
        given = NO_CREDENTIALS
    if given is None and settings.cluster_key is None and settings.scheduler_file is None:
        given = _clusters.get(str(address))
    return Endpoint(address, limits, given or find_credentials(settings, in_scheduler_file=found.key))


def remember_cluster(address: str, credentials: Credentials) -> None:
    """Have clients of this process that are given this address alone use these credentials."""
    _clusters[address] = credentials


def forget_cluster(address: str) -> None:
    """The opposite."""
    _clusters.pop(address, None)
