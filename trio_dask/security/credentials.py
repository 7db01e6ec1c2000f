"""What a process shows to its peers and asks of them, and where it finds that."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from trio_dask.security.cluster_key import KEY_FILE_VARIABLE, ClusterKey, home_key, read_key_file

if TYPE_CHECKING:
    from trio_dask.security.security import TlsRole
    from trio_dask.security.tls_contexts import Tls

CONFIGURED_KEY_FILE: Final = "trio_dask.cluster-key-file"
"""What the configuration calls the file with the key."""


class Credentials(NamedTuple):
    """With a key both ends of each connection prove that they have it; without one nobody proves anything."""

    key: ClusterKey | None
    tls: Tls | None = None
    """How this process speaks TLS; None without certificates, where nothing requires it."""


NO_CREDENTIALS = Credentials(None)
"""For `--no-auth`, and for connections inside one process."""


class CredentialSettings(Protocol):
    """The settings that say which credentials to use: those of every kind of program have them."""

    @property
    def cluster_key(self) -> str | None:
        """The file with the key."""
        ...

    @property
    def default_cluster_key(self) -> str | None:
        """The file with the key where nothing stronger names one."""
        ...

    @property
    def auth(self) -> bool:
        """Whether peers have to prove that they have the key."""
        ...

    @property
    def tls_ca_file(self) -> str | None:
        """The file with the authority of all certificates."""
        ...

    @property
    def tls_cert(self) -> str | None:
        """The file with our certificate."""
        ...

    @property
    def tls_key(self) -> str | None:
        """The file with its private key."""
        ...

    @property
    def tls_ciphers(self) -> str | None:
        """The ciphers for TLS 1.2."""
        ...

    @property
    def tls_min_version(self) -> str | None:
        """The smallest version of TLS."""
        ...

    @property
    def tls_max_version(self) -> str | None:
        """The largest version of TLS."""
        ...

    @property
    def tls_verify(self) -> str | None:
        """What a certificate must say besides."""
        ...

    @property
    def require_encryption(self) -> bool | None:
        """Whether connections without TLS are refused."""
        ...


def find_credentials(
    settings: CredentialSettings, role: TlsRole, *, in_scheduler_file: ClusterKey | None = None
) -> Credentials:
    """The credentials of a program that has this role. The first source counts that names a key.

    These are: the option; the environment; the scheduler file; the configuration, which may name a file; the file in
    the user's home, which is made if it is missing.

    Raises:
      UnavailableError: the file of the key cannot be used.
      UsageError: of certificate and authority only one is given.
    """
    return Credentials(find_key(settings, lambda: in_scheduler_file), find_tls(settings, role))


def find_key(
    settings: CredentialSettings,
    in_scheduler_file: Callable[[], ClusterKey | None],
    at_home: Callable[[], ClusterKey | None] = home_key,
) -> ClusterKey | None:
    """The key of a program with these settings; the two sources that are given here are asked in their turn only.

    Raises:
      UnavailableError: the file of the key cannot be used.
    """
    if not settings.auth:
        return None
    if settings.cluster_key:
        return read_key_file(settings.cluster_key, "--cluster-key, cluster_key=")
    named = os.environ.get(KEY_FILE_VARIABLE)
    if named:
        return read_key_file(named, KEY_FILE_VARIABLE)
    if (found := in_scheduler_file()) is not None:
        return found
    configured = settings.default_cluster_key
    return read_key_file(configured, CONFIGURED_KEY_FILE) if configured else at_home()


def find_tls(settings: CredentialSettings, role: TlsRole) -> Tls | None:
    """How a program with these settings speaks TLS; None where they say nothing of it.

    Raises:
      UsageError: of certificate and authority only one is given.
    """
    certificates = {
        "tls_ca_file": settings.tls_ca_file,
        f"tls_{role}_cert": settings.tls_cert,
        f"tls_{role}_key": settings.tls_key,
    }
    fields: dict[str, Any] = {
        **certificates,
        "tls_ciphers": settings.tls_ciphers,
        "tls_min_version": settings.tls_min_version,
        "tls_max_version": settings.tls_max_version,
        "tls_verify": settings.tls_verify,
        "require_encryption": settings.require_encryption,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        return None
    # A version or a cipher says how TLS is spoken where it is, and not that it has to be.
    given.setdefault("require_encryption", any(certificates.values()))
    # Imported here, because most programs have no certificates.
    from trio_dask.security.security import Security

    return Security(**given).for_role(role)


def to_secrets(credentials: Credentials | None) -> dict[str, Any] | None:
    """Credentials as JSON, for the pipe to a child process and for nothing else."""
    if credentials is None:
        return None
    key, tls = credentials
    return {"key": None if key is None else key.hex(), "certificates": None if tls is None else tls.to_secrets()}


def from_secrets(content: Mapping[str, Any] | None) -> Credentials | None:
    """The credentials from which `to_secrets` made this."""
    if content is None:
        return None
    key = None if content["key"] is None else ClusterKey.from_hex(content["key"])
    if content["certificates"] is None:
        return Credentials(key)
    from trio_dask.security.tls_contexts import Tls

    return Credentials(key, Tls.from_secrets(content["certificates"]))
