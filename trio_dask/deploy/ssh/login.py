"""Log in to a host as `ssh host` would, with asyncssh: configuration, agent, known hosts, jumps.

An unknown host key, or another one than before, is a refusal. What fails is told in words: the step, what the library
says last, and the command that shows more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shlex
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from trio_dask.deploy.ssh.bridge import Bridge
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError, HostLost

if TYPE_CHECKING:
    import asyncssh

    from trio_dask.deploy.ssh.hosts import HostSpec

log = logging.getLogger("trio_dask.ssh")

LOGIN_S = 10.0
BUSY_S = 60.0
"""For how long to try again while a server drops connections, because too many have not logged in yet."""
BUSY_PAUSE_S = (0.1, 0.6)
KEEPALIVE_S = 10.0
KEEPALIVES = 3
CLOSE_S = 2.0
MAX_BUFFERED_BYTES = 2**20
CONFIGURATIONS = ("~/.ssh/config", "/etc/ssh/ssh_config")
KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


class LoginOptions(NamedTuple):
    """How to log in, where `ssh`'s own configuration does not say it. `ask` gets a passphrase for a key file."""

    username: str | None = None
    port: int | None = None
    private_key: str | None = None
    accept_new_host_keys: bool = False
    ask: Callable[[str], str] | None = None
    login_s: float = LOGIN_S


class NotSupported(HostError):
    """The host asks for something that asyncssh cannot do, and OpenSSH perhaps can."""
