"""How to log in to hosts, whichever program does it: what the user said, our limits, and commands to try."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from trio_dask.deploy.ssh.hosts import HostSpec

LOGIN_S: Final = 10.0
BUSY_S: Final = 60.0
"""For how long to try again while a server drops connections, because too many have not logged in yet."""
BUSY_PAUSE_S: Final = (0.1, 0.6)
KEEPALIVE_S: Final = 10.0
KEEPALIVES: Final = 3
SSH_PORT: Final = 22
CONFIGURATIONS: Final = ("~/.ssh/config", "/etc/ssh/ssh_config")
KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


class LoginOptions(NamedTuple):
    """How to log in, where `ssh`'s own configuration does not say it. `ask` gets a passphrase for a key file."""

    username: str | None = None
    port: int | None = None
    private_key: str | None = None
    accept_new_host_keys: bool = False
    configuration: tuple[str, ...] = CONFIGURATIONS
    ask: Callable[[str], str] | None = None
    login_s: float = LOGIN_S

    def port_of(self, host: HostSpec) -> int | None:
        """The port that the user named for this host; None: the configuration of `ssh` says it, or it is the usual."""
        return host.port or self.port

    def user_of(self, host: HostSpec) -> str | None:
        """The user to log in as."""
        return host.user or self.username

    def target(self, host: HostSpec) -> str:
        """What `ssh` calls this host."""
        user = self.user_of(host)
        return host.host if user is None else f"{user}@{host.host}"

    def words(self, host: HostSpec) -> list[str]:
        """The options of `ssh` that say where and with what to log in."""
        port = self.port_of(host)
        return [
            *(["-F", self.configuration[0]] if len(self.configuration) == 1 else []),
            *(["-p", str(port)] if port is not None else []),
            *(["-i", self.private_key] if self.private_key is not None else []),
        ]

    def try_it(self, host: HostSpec) -> str:
        """What to try when a login failed."""
        return f"try `{shlex.join(['ssh', *self.words(host), self.target(host), 'true'])}`"


def known_as(host: str, port: int) -> str:
    """What lists of known hosts call a host."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def forget(host: str, port: int) -> str:
    """What to do when the key of a host has changed."""
    return f"if that is right, `ssh-keygen -R {shlex.quote(known_as(host, port))}`"


def accept(host: str, port: int) -> str:
    """What to do when the key of a host is unknown."""
    scan = ["ssh-keyscan", *(["-p", str(port)] if port != SSH_PORT else []), host]
    return f"if that is its key, `{shlex.join(scan)} >> {KNOWN_HOSTS[0]}`, or --accept-new-host-keys"
