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
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import trio

from trio_dask.deploy.ssh.asyncssh_session import AsyncsshSession
from trio_dask.deploy.ssh.bridge import Bridge
from trio_dask.deploy.ssh.key_files import Faulty, Locked, look_at
from trio_dask.deploy.ssh.login_options import (
    BUSY_PAUSE_S,
    BUSY_S,
    KEEPALIVE_S,
    KEEPALIVES,
    KNOWN_HOSTS,
    SSH_PORT,
    LoginOptions,
    accept,
    forget,
    known_as,
)
from trio_dask.deploy.ssh.session import HostError

if TYPE_CHECKING:
    import asyncssh

    from trio_dask.deploy.ssh.hosts import HostSpec

log = logging.getLogger("trio_dask.ssh")

CLOSE_S = 2.0
DEFAULT_KEYS = tuple(f"~/.ssh/id_{kind}" for kind in ("ed25519_sk", "ecdsa_sk", "ed448", "ed25519", "ecdsa", "rsa"))


class NotSupported(HostError):
    """The host asks for something that asyncssh cannot do, and OpenSSH perhaps can."""


class Passphrases:
    """The private keys that people have unlocked, each once, for all logins of one launcher."""

    def __init__(self, ask: Callable[[str], str] | None) -> None:
        self._ask = ask
        self._unlocked: dict[str, asyncssh.SSHKey] = {}
        self._lock = trio.Lock()

    async def unlock(self, paths: Sequence[str]) -> list[asyncssh.SSHKey]:
        """Those of these keys that are locked, after asking. Empty if none is, or nobody can be asked."""
        if self._ask is None:
            return []
        async with self._lock:  # one question at a time
            return [key for path in paths if (key := await self._unlock_one(path)) is not None]

    async def _unlock_one(self, path: str) -> asyncssh.SSHKey | None:
        import asyncssh

        if path not in self._unlocked:
            assert self._ask is not None
            word = await trio.to_thread.run_sync(self._ask, path, abandon_on_cancel=True)
            try:
                self._unlocked[path] = await trio.to_thread.run_sync(asyncssh.read_private_key, path, word)
            except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError):
                return None
        return self._unlocked[path]


class _Paths(list[str]):
    """Never false: for an empty list the library would look for keys of its own."""

    def __bool__(self) -> bool:
        return True


OnStep = Callable[[str], object]


class Logins:
    """Logs in to hosts with asyncssh, in the loop of one bridge."""

    def __init__(self, bridge: Bridge, options: LoginOptions) -> None:
        self._bridge = bridge
        self._options = options
        self._passphrases = Passphrases(options.ask)

    @asynccontextmanager
    async def log_in(self, host: HostSpec, on_step: OnStep = lambda step: None) -> AsyncGenerator[AsyncsshSession]:
        """A session on this host, for as long as the block lasts. `on_step` is called as soon as a step is done.

        Raises:
          HostError: it could not log in.
          NotSupported: the same, for lack of a method that asyncssh does not have.
        """
        connection = await self._connect(host, on_step)
        try:
            on_step("login")
            yield AsyncsshSession(self._bridge, connection, host.place)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._bridge.run(_close, connection)

    async def _connect(self, host: HostSpec, on_step: OnStep) -> asyncssh.SSHClientConnection:
        attempt = _Attempt(host, self._options, on_step)
        give_up_at = trio.current_time() + BUSY_S
        while True:
            try:
                with trio.fail_after(self._options.login_s):
                    return await self._bridge.run(attempt.connect)
            except trio.TooSlowError:
                raise attempt.too_slow() from None
            except Exception as exc:  # whatever the library raises, it is this host that failed
                error = exc
            if attempt.was_dropped(error) and trio.current_time() < give_up_at:
                await trio.sleep(random.uniform(*BUSY_PAUSE_S))
            elif not (attempt.was_denied(error) and await self._unlock(attempt)):
                raise attempt.explain(error) from error

    async def _unlock(self, attempt: _Attempt) -> bool:
        """Whether there are keys now that were locked before."""
        if attempt.client_keys is not None:
            return False
        attempt.client_keys = await self._passphrases.unlock(attempt.locked) or None
        return attempt.client_keys is not None


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), CLOSE_S / 2)
    except TimeoutError:
        connection.abort()


class _Attempt:
    """What is known of the attempts to log in to one host."""

    def __init__(self, host: HostSpec, options: LoginOptions, on_step: OnStep) -> None:
        self._host = host
        self._options = options
        self._on_step = on_step
        self._token = trio.lowlevel.current_trio_token()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._known_hosts: list[str] = []
        self._known_keys = 0
        self._refused_key: asyncssh.SSHKey | None = None
        self._methods: list[str] = []
        self._identity_files = _Paths()
        self._faults: list[str] = []
        self.locked: list[str] = []
        """The files of private keys that need a passphrase."""
        self.client_keys: list[asyncssh.SSHKey] | None = None
        """Keys that were unlocked for this host."""

    # --------------------------------------------------------------------------- in asyncio's thread

    async def connect(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        self._connection = self._refused_key = None
        self._methods = []
        await asyncio.to_thread(self._read_configuration)
        arguments = self._arguments()
        if self.client_keys is not None:
            arguments["client_keys"] = self.client_keys
        else:
            arguments["client_keys"] = self._identity_files
            arguments["ignore_encrypted"] = True
        return await asyncssh.connect(
            self._host.host,
            client_factory=self._client,
            known_hosts=self._match_known_hosts,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
            login_timeout=0,
            **arguments,
        )

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"config": _existing(self._options.configuration)}
        if (port := self._options.port_of(self._host)) is not None:
            arguments["port"] = port
        if (username := self._options.user_of(self._host)) is not None:
            arguments["username"] = username
        return arguments

    def _read_configuration(self) -> None:
        """What the user's configuration says of this host, and that we cannot leave to the library."""
        import asyncssh

        read = asyncssh.SSHClientConnectionOptions(host=self._host.host, client_keys=None, **self._arguments())
        configured = cast("list[str] | None", read.known_hosts)  # pyright: ignore[reportUnknownMemberType]
        self._known_hosts = _existing(configured or KNOWN_HOSTS)
        given = [] if self._options.private_key is None else [self._options.private_key]
        configured_keys = cast("list[str] | None", read.config.get("IdentityFile")) or []
        paths = [*given, *configured_keys] or DEFAULT_KEYS
        self._sort_keys(_existing(paths), bool(read.config.get("IdentitiesOnly")))

    def _sort_keys(self, paths: Sequence[str], may_be_public: bool) -> None:
        """Leave out what holds no key that can be used, as `ssh` does; the library would fail.

        With IdentitiesOnly a public key may stand there: it names one that the agent has.
        """
        self._identity_files, self._faults, self.locked = _Paths(), [], []
        for path in paths:
            match look_at(path):
                case Faulty(words) if not may_be_public:
                    self._faults.append(words)
                    continue
                case Locked():
                    self.locked.append(path)
                case _:
                    pass
            self._identity_files.append(path)

    def _match_known_hosts(self, host: str, address: str, port: int | None) -> Sequence[Any]:
        import asyncssh

        if not self._known_hosts:
            return [], [], []
        found = asyncssh.match_known_hosts(asyncssh.read_known_hosts(self._known_hosts), host, address, port)
        self._known_keys = sum(map(len, found[:3]))
        return found

    def _client(self) -> Any:
        import asyncssh

        attempt = self

        class Client(asyncssh.SSHClient):
            def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
                attempt.connected(conn)

            def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
                return attempt.accepts(host, port, key)

            def public_key_auth_requested(self) -> None:
                attempt.note_methods()

            def password_auth_requested(self) -> None:
                attempt.note_methods()

            def kbdint_auth_requested(self) -> None:
                attempt.note_methods()

        return Client()

    def connected(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        try:
            self._token.run_sync_soon(self._on_step, "resolve")
        except trio.RunFinishedError:
            pass  # nobody wants to know any more

    def note_methods(self) -> None:
        """The library has no more keys, or no answer to a question: note what the host would have taken."""
        if self._connection is not None:
            offered = self._connection.get_server_auth_methods()
            self._methods = list(dict.fromkeys([*self._methods, *filter(None, offered)]))

    def accepts(self, host: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Whether a key that no file knows may be accepted."""
        if self._known_keys or not self._options.accept_new_host_keys:
            self._refused_key = key
            return False
        line = f"{known_as(host, port)} {key.export_public_key().decode().strip()}\n"
        path = Path(KNOWN_HOSTS[0]).expanduser()
        try:
            _append(path, line)
        except OSError as exc:  # as with `ssh`, a home that cannot be written is no reason to refuse the host
            log.warning("%s: its key is not remembered: cannot write %s: %s", self._host.place, path, exc.strerror)
        else:
            log.info("%s: its key %s is now in %s", self._host.place, key.get_fingerprint(), path)
        return True

    # --------------------------------------------------------------------------- what failed, in words

    def was_dropped(self, error: Exception) -> bool:
        """Whether the server ended the connection before a login was tried: it does when too many are under way."""
        import asyncssh

        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return True
        return isinstance(error, asyncssh.ConnectionLost) and self._refused_key is None and not self._methods

    def was_denied(self, error: Exception) -> bool:
        import asyncssh

        return isinstance(error, asyncssh.PermissionDenied)

    def too_slow(self) -> HostError:
        seconds = f"{self._options.login_s:g} s"
        if self._connection is None:
            return self._error("connect", f"no answer within {seconds}")
        return self._error("login", f"connected, but no login within {seconds}")

    def explain(self, error: Exception) -> HostError:
        import asyncssh

        match error:
            case socket.gaierror():
                return self._error("resolve", f"unknown host name ({error.strerror or error})")
            case asyncssh.HostKeyNotVerifiable():
                return self._explain_key(error)
            case asyncssh.KeyExchangeFailed() if self._known_keys:
                return self._explain_change(error.reason)
            case asyncssh.PermissionDenied():
                return self._explain_denial(error)
            case asyncssh.DisconnectError():
                return self._error("login" if self._connection else "connect", error.reason)
            case OSError():
                words = os.strerror(error.errno) if error.errno else str(error)
                return self._error("connect", words)
            case _:
                return self._error("login", f"{type(error).__name__}: {error}")

    def _explain_key(self, error: asyncssh.HostKeyNotVerifiable) -> HostError:
        key = self._refused_key
        if key is None:  # a host on the way
            return self._error("login", error.reason)
        shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
        if self._known_keys:
            return self._explain_change(f"it is {shown} now")
        return self._error("login", f"unknown host key: {shown}", accept(self._name(), self._port()))

    def _explain_change(self, words: str) -> HostError:
        return self._error("login", f"its host key has changed: {words}", forget(self._name(), self._port()))

    def _explain_denial(self, error: asyncssh.PermissionDenied) -> HostError:
        methods = self._methods
        denied = f"Permission denied ({','.join(methods)})" if methods else error.reason
        if self.locked and self.client_keys is None:
            names = ", ".join(self.locked)
            why = "its passphrase is wrong" if self._options.ask else "there is no terminal to ask for its passphrase"
            remedy = f"`ssh-add {shlex.quote(self.locked[0])}`"
            return self._error("login", f"{denied}: {names} is locked, and {why}", remedy)
        if self._faults:
            denied = f"{denied}: {'; '.join(self._faults)}"
        only_known = bool(methods) and set(methods) <= {"publickey", "password"}
        kind = HostError if only_known else NotSupported
        return self._error("login", denied, kind=kind)

    def _name(self) -> str:
        found = None if self._connection is None else self._connection.get_extra_info("host")
        return found or self._host.host

    def _port(self) -> int:
        found = None if self._connection is None else self._connection.get_extra_info("port")
        return found or self._options.port_of(self._host) or SSH_PORT

    def _error(self, step: str, words: str, remedy: str = "", *, kind: type[HostError] = HostError) -> HostError:
        return kind(self._host.place, step, words, remedy or self._options.try_it(self._host))


def _append(path: Path, line: str) -> None:
    """Add a line to a file, which is made, and whose last line may lack its end."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        file.write(b"\n" * (file.read() not in (b"", b"\n")) + line.encode())


def _existing(paths: Sequence[str]) -> list[str]:
    expanded = (os.path.expanduser(path) for path in paths)
    return [path for path in expanded if os.access(path, os.R_OK)]
