"""The key of a cluster: 32 random bytes that all its processes have, and the file in which a user keeps them.

The file holds the key in hexadecimal and a newline. Only its owner may read it. The one in the user's home is made by
the program that starts first; programs that start at the same time agree on one.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import stat
from pathlib import Path
from typing import Final, NoReturn

from trio_dask.errors import UnavailableError

KEY_BYTES: Final = 32
KEY_FILE_VARIABLE: Final = "TRIO_DASK_CLUSTER_KEY_FILE"

_MOST_BYTES = 4096
_OTHERS = 0o077


class ClusterKey:
    """The secret of one cluster. Nothing shows it by accident: no repr, no pickle, no traceback.

    `place` names the file that it came from, for people on other machines: `user@host:path`, or nothing. `source` is
    how the user has named it, for people here; nothing for the key in the user's home.
    """

    __slots__ = ("_secret", "place", "source")
    __hash__ = None  # type: ignore[assignment]  # nothing needs it in a set

    def __init__(self, secret: bytes, place: str = "", source: str = "") -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a cluster key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self.place = place
        self.source = source

    @classmethod
    def draw(cls) -> ClusterKey:
        """A new key, which nobody else has."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_hex(cls, text: str, place: str = "", source: str = "") -> ClusterKey:
        """The key that `hex` gave. Raises `ValueError`, without the text in it."""
        if len(text) != 2 * KEY_BYTES:
            raise ValueError(f"it has {len(text)} characters, not {2 * KEY_BYTES}")
        try:
            secret = bytes.fromhex(text)
        except ValueError:
            secret = b""
        if len(secret) != KEY_BYTES:  # raised here, where no context holds the text
            raise ValueError("it is not hexadecimal")
        return cls(secret, place, source)

    def hex(self) -> str:
        """The key as text, for its file and for a child process."""
        return self._secret.hex()

    def sign(self, message: bytes) -> bytes:
        """The HMAC-SHA256 of a message under this key."""
        import hmac  # imported here, because not every program has a key

        return hmac.digest(self._secret, message, "sha256")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClusterKey):
            return NotImplemented
        import hmac

        return hmac.compare_digest(self._secret, other._secret)

    def __repr__(self) -> str:
        return "<ClusterKey>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cluster key is not pickled: it would leave this process unnoticed")


# --------------------------------------------------------------------------------------------------------------- files


def home_key_file() -> Path:
    """Where the user's key lies, if nothing else is said: `~/.config/trio_dask/cluster.key`.

    Raises:
      UnavailableError: the user has no home.
    """
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    if configured.startswith("/"):  # the XDG specification has programs ignore a relative one
        return Path(configured, "trio_dask", "cluster.key")
    try:
        return Path.home() / ".config" / "trio_dask" / "cluster.key"
    except RuntimeError:
        raise UnavailableError(f"there is no home for the cluster key: set {KEY_FILE_VARIABLE}") from None


def read_key_file(path: str | Path, source: str = "") -> ClusterKey:
    """The key in this file, which is named where `source` says.

    Raises:
      UnavailableError: the file is missing, or cannot be read; it holds no key; others can read it, or it is theirs.
    """
    try:
        return _read(Path(path), source and f"{path} ({source})")
    except FileNotFoundError:
        make = f"(umask 077; openssl rand -hex 32 > {shlex.quote(str(path))})"
        remedy = f"copy it from where the cluster has it (mode 0600), or make a new one: {make}"
        raise UnavailableError(f"the cluster key {path} does not exist; {remedy}", remedy=remedy) from None


def home_key() -> ClusterKey:
    """The key in the user's home, made now if there is none yet.

    Raises:
      UnavailableError: what `read_key_file` raises; or the file cannot be made.
    """
    path = home_key_file()
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    try:
        _create(path)
    except OSError as exc:
        if isinstance(exc, UnavailableError):
            raise
        remedy = f"name a file with --cluster-key or {KEY_FILE_VARIABLE}"
        raise UnavailableError(
            f"cannot make the cluster key {path}: {exc.strerror or exc}; {remedy}", remedy=remedy
        ) from exc
    return read_key_file(path)


def _read(path: Path, source: str = "") -> ClusterKey:
    """Like `read_key_file`, but raises FileNotFoundError where there is no file."""
    try:
        # Not blocking, as the path may be a pipe that nobody writes to.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _unusable(f"{path} is a symbolic link", "name the file itself") from None
        raise UnavailableError(f"cannot read the cluster key {path}: {exc.strerror or exc}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UnavailableError(f"the cluster key {path} is not a regular file")
        if found.st_uid not in (os.geteuid(), 0):
            raise _unusable(f"{path} belongs to user {found.st_uid}", "use a file of your own")
        if found.st_mode & _OTHERS:
            remedy = f"run `chmod 600 {path}`"
            raise UnavailableError(f"others may use the cluster key {path}: {remedy}", remedy=remedy)
        content = os.read(fd, _MOST_BYTES)
    except OSError as exc:
        if isinstance(exc, UnavailableError):
            raise
        raise UnavailableError(f"cannot read the cluster key {path}: {exc.strerror or exc}") from None
    finally:
        os.close(fd)
    try:
        return ClusterKey.from_hex(content.decode("ascii", errors="replace").strip(), place_of(path), source)
    except ValueError as exc:
        remedy = "remove it and start again, or copy it anew"
        raise UnavailableError(f"{path} holds no cluster key: {exc}; {remedy}", remedy=remedy) from None


def _unusable(problem: str, remedy: str) -> UnavailableError:
    return UnavailableError(f"the cluster key {problem}: {remedy}", remedy=remedy)


def _create(path: Path) -> None:
    """Make the file, whole and at once, unless another program is faster."""
    folder = path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise UnavailableError(
                f"no cluster key can be kept in {folder}: it must be a folder of yours that others cannot write to"
            ) from None
    draft = folder / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        try:
            file.write(f"{ClusterKey.draw().hex()}\n")
            file.flush()
            os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass  # another program was faster; its key counts
        finally:
            draft.unlink(missing_ok=True)


def user_name() -> str:
    """The user that this process runs as."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _login_home() -> str:
    """The folder in which `scp` and `ssh` begin for this user, whatever HOME says here."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


def place_of(path: Path) -> str:
    """This file as somebody on another machine would name it."""
    shown = str(path.absolute())
    home = _login_home()
    if home != "/" and shown.startswith(f"{home}/"):
        shown = f"~{shown[len(home) :]}"
    text = f"{user_name()}@{os.uname().nodename}:{shown}"
    return text if text.isprintable() and len(text) <= 255 else ""
