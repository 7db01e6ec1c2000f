"""What a process shows to its peers and asks of them, and where it finds that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from trio_dask.security.cluster_key import KEY_FILE_VARIABLE, ClusterKey, home_key, read_key_file


class Credentials(NamedTuple):
    """With a key both ends of each connection prove that they have it; without one nobody proves anything."""

    key: ClusterKey | None


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


def find_credentials(settings: CredentialSettings, *, in_scheduler_file: ClusterKey | None = None) -> Credentials:
    """The credentials of a program. The first source counts that names a key.

    These are: the option; the environment; the scheduler file; the configuration, which may name a file; the file in
    the user's home, which is made if it is missing.

    Raises:
      UnavailableError: the file of the key cannot be used.
    """
    if not settings.auth:
        return NO_CREDENTIALS
    named = settings.cluster_key or os.environ.get(KEY_FILE_VARIABLE)
    if named:
        return Credentials(read_key_file(named))
    if in_scheduler_file is not None:
        return Credentials(in_scheduler_file)
    configured = settings.default_cluster_key
    return Credentials(read_key_file(configured) if configured else home_key())


def to_secrets(credentials: Credentials | None) -> dict[str, Any] | None:
    """Credentials as JSON, for the pipe to a child process and for nothing else."""
    return None if credentials is None else {"key": None if credentials.key is None else credentials.key.hex()}


def from_secrets(content: Mapping[str, Any] | None) -> Credentials | None:
    """The credentials from which `to_secrets` made this."""
    if content is None:
        return None
    return Credentials(None if content["key"] is None else ClusterKey.from_hex(content["key"]))
