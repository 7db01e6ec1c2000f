"""From settings to a scheduler's endpoint: its address, and the credentials of its cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from trio_dask.comm.addresses import Address, parse_scheduler_address
from trio_dask.comm.endpoint import Endpoint
from trio_dask.config import DEFAULT_SCHEME, DEFAULT_TLS_SCHEME
from trio_dask.errors import AddressError, UnavailableError, UsageError
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.scheduler_file import find_scheduler
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials, CredentialSettings, find_credentials

if TYPE_CHECKING:
    from trio_dask.security.security import TlsRole
    from trio_dask.security.tls_contexts import Tls

SOON_S: Final = 0.5
"""A program that has no connection to the scheduler by then says what it waits for."""

_started: dict[str, Callable[[TlsRole], Credentials]] = {}
"""The clusters that this process has started: by their address, the credentials of each role."""
_joined: dict[str, Credentials] = {}
"""The clusters that workers of this process belong to: by their address, the credentials of the worker."""


class SchedulerChoice(CredentialSettings, Protocol):
    """The settings that say which scheduler to connect to."""

    @property
    def protocol(self) -> str | None:
        """The scheme of an address without one."""
        ...

    @property
    def scheduler_sni(self) -> str | None:
        """The name to ask for under TLS, where that is not the scheduler's host."""
        ...

    @property
    def scheduler(self) -> str | None:
        """Its address."""
        ...

    @property
    def scheduler_file(self) -> str | None:
        """The file with its address, instead."""
        ...


def scheduler_endpoint(
    settings: SchedulerChoice,
    role: TlsRole,
    limits: LinkLimits = DEFAULT_LIMITS,
    given: Credentials | None = None,
    tls: Tls | None = None,
) -> Endpoint:
    """Where the scheduler is now, and what it asks for.

    `given` credentials come before all that can be found; so does `tls`, but for the key.

    Raises:
      NoScheduler: there is no scheduler file, or the scheduler that wrote it has ended.
      UnavailableError: the scheduler file, the address in it, or the file of the cluster key cannot be used.
      UsageError: the address in the settings is none.
    """
    found = find_scheduler(settings.scheduler, settings.scheduler_file)
    has_certificates = settings.tls_cert is not None or (tls is not None and tls.config is not None)
    try:
        address = scheduler_address(found.address, settings.protocol, has_certificates=has_certificates)
    except AddressError as error:
        if settings.scheduler_file is None:
            raise
        raise wrong_address_in(settings.scheduler_file, error) from error
    if given is None and address.is_in_process:
        given = NO_CREDENTIALS
    if given is None and settings.cluster_key is None and settings.scheduler_file is None:
        started = _started.get(str(address))
        given = _joined.get(str(address)) if started is None else started(role)
    credentials = given or find_credentials(settings, role, in_scheduler_file=found.key)
    if tls is not None:
        credentials = credentials._replace(tls=tls)
    server_name = settings.scheduler_sni or (credentials.tls.server_name if credentials.tls else "")
    return Endpoint(address, limits, credentials, server_name)


def wrong_address_in(scheduler_file: str, error: UsageError) -> UnavailableError:
    """What is raised for a scheduler file with an address that cannot be one, whenever that shows."""
    return UnavailableError(f"{scheduler_file} is not a scheduler file: its address is none, {error}")


def scheduler_in_words(settings: SchedulerChoice) -> str:
    """What a program says that it waits for."""
    return f"the scheduler at {settings.scheduler}" if settings.scheduler else f"the file {settings.scheduler_file}"


def scheduler_address(text: str, protocol: str | None = None, *, has_certificates: bool = False) -> Address:
    """The address that a text means; without a scheme, it has this one, or TLS if there are certificates.

    Raises `AddressError`.
    """
    default_scheme = protocol or (DEFAULT_TLS_SCHEME if has_certificates else DEFAULT_SCHEME)
    return parse_scheduler_address(text, default_scheme=default_scheme)


def remember_cluster(address: str, credentials_of: Callable[[TlsRole], Credentials]) -> None:
    """Have whatever joins from this process, and is given this address alone, use the credentials of its role."""
    _started[address] = credentials_of


def forget_cluster(address: str) -> None:
    """The opposite."""
    _started.pop(address, None)


def remember_joined(address: str, credentials: Credentials) -> None:
    """Have clients of this process that are given this address alone use the credentials of a worker."""
    _joined[address] = credentials
