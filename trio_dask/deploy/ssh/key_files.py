"""Files of private keys: which can be used, which are locked, and what is wrong with the others, in words."""

from __future__ import annotations

import os
import shlex
import stat
from typing import NamedTuple

from trio_dask.errors import UnavailableError

MAX_BYTES = 64 * 1024
"""No private key is longer."""


class Usable(NamedTuple):
    """A private key that needs no passphrase."""


class Locked(NamedTuple):
    """A private key that needs a passphrase."""


class Faulty(NamedTuple):
    """No key that SSH would take, for this reason, which names the file."""

    words: str


KeyFile = Usable | Locked | Faulty


def check_private_key(path: str) -> None:
    """Refuse a file that cannot hold a private key, or that others can read: `ssh` would pass over it in silence.

    Raises:
      UnavailableError: the message names the file.
    """
    found = _read(path)
    if isinstance(found, Faulty):
        raise UnavailableError(found.words)


def look_at(path: str) -> KeyFile:
    """What this file is."""
    import asyncssh

    data = _read(path)
    if isinstance(data, Faulty):
        return data
    try:
        # Each login checks a key of RSA thoroughly, which takes 30 ms; to say what the file is, it need not be sound.
        asyncssh.import_private_key(data, unsafe_skip_rsa_key_validation=True)
    except asyncssh.KeyEncryptionError:
        return Locked()
    except asyncssh.KeyImportError as exc:
        return Locked() if "passphrase" in str(exc).lower() else Faulty(f"{path} holds no private key: {exc}")
    return Usable()


def _read(path: str) -> bytes | Faulty:
    """The content of what may be a private key."""
    try:
        with open(os.path.expanduser(path), "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return Faulty(f"{path} is no file")
            data = file.read(MAX_BYTES + 1)
    except OSError as exc:
        return Faulty(f"cannot read the private key {path}: {exc.strerror or exc}")
    if len(data) > MAX_BYTES or b"PRIVATE KEY-----" not in data:
        kind = "is a public key" if data.startswith((b"ssh-", b"ecdsa-", b"sk-")) else "holds no private key"
        return Faulty(f"{path} {kind}")
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        return Faulty(f"others can read the private key {path}; run: chmod 600 {shlex.quote(path)}")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Open it, even if it is a named pipe in which nobody writes."""
    return os.open(path, flags | os.O_NONBLOCK)
