"""Log in to a host with the system's `ssh`, which knows every method and all of its configuration.

One `ssh` is the connection (ControlMaster); each command is another one that runs over it. None of them may ask
anything (BatchMode).
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_dask.deploy.ssh.child_command import ChildCommand, run_command
from trio_dask.deploy.ssh.key_files import Faulty, KeyFile, Locked, look_at
from trio_dask.deploy.ssh.login_options import (
    BUSY_PAUSE_S,
    BUSY_S,
    KEEPALIVE_S,
    KEEPALIVES,
    SSH_PORT,
    LoginOptions,
    accept,
    forget,
)
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError

if TYPE_CHECKING:
    from trio_dask.deploy.ssh.hosts import HostSpec

FAILED = 255
"""The status with which `ssh` says that it, and not the command, has failed."""
LOST_S = 0.1
LONGEST_FOLDER = 64
"""The path of a socket has 107 characters at most, of which names of ours and of `ssh` take 38."""
ASK_S = 5.0
READY = b"connected"
DENIED = "Permission denied"
LIFELINE = "exec cat"
"""What runs on the host for the connection itself: it ends with its stdin, and so does the connection."""

_STEPS = (
    (re.compile(r"Could not resolve|Name or service not known"), "resolve"),
    (re.compile(r"Connection refused|timed out|No route to host|unreachable"), "connect"),
)
_DROPPED = re.compile(r"kex_exchange_identification|Connection reset|Connection closed by")


def is_here() -> bool:
    """Whether this machine has OpenSSH."""
    return shutil.which("ssh") is not None


class OpensshLogins:
    """Logs in to hosts with the `ssh` program."""

    def __init__(self, options: LoginOptions) -> None:
        self._options = options

    @asynccontextmanager
    async def log_in(self, host: HostSpec, on_step: Callable[[str], object]) -> AsyncGenerator[OpensshSession]:
        """A session on this host, for as long as the block lasts. `on_step` is called as soon as a step is done.

        Raises:
          HostError: it could not log in.
        """
        is_short = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER
        with tempfile.TemporaryDirectory(prefix="tds-", dir=None if is_short else "/tmp") as folder:
            words, target = self._words(host, Path(folder, "control")), self._options.target(host)
            session = OpensshSession(host.place, words, target)
            give_up_at = trio.current_time() + BUSY_S
            while True:
                async with session.connect() as master:
                    said = await self._wait_until_ready(master)
                    if said is None:
                        on_step("resolve")
                        on_step("login")
                        yield session
                        return
                if not _DROPPED.search(said) or DENIED in said or trio.current_time() > give_up_at:
                    raise await self._explain(host, said, words)
                await trio.sleep(random.uniform(*BUSY_PAUSE_S))

    def _words(self, host: HostSpec, control: Path) -> list[str]:
        options = self._options
        words = ["ssh", "-T", "-S", str(control).replace("%", "%%"), *options.words(host)]
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new" if options.accept_new_host_keys else "yes",
            "ConnectTimeout": f"{max(1, round(options.login_s))}",
            "ServerAliveInterval": f"{KEEPALIVE_S:g}",
            "ServerAliveCountMax": f"{KEEPALIVES}",
            "ControlPersist": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
        }
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        return words

    async def _wait_until_ready(self, master: ChildCommand) -> str | None:
        """Wait until it is connected; gives what it said if it has failed."""
        said = b""

        async def listen() -> None:
            nonlocal said
            while data := await master.receive_error():
                said += data

        limit_s = 2 * self._options.login_s
        output = b""
        with trio.move_on_after(limit_s) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                while READY not in output and (data := await master.receive()):
                    output += data
                if READY in output:
                    nursery.cancel_scope.cancel()
        if READY in output:
            return None
        return f"no login within {limit_s:g} s" if limit.cancelled_caught else said.decode(errors="replace")

    async def _explain(self, host: HostSpec, said: str, words: Sequence[str]) -> HostError:
        """Why `ssh` failed, by what it said; these `words` are the program and its options."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "ssh said nothing"
        step = next((step for pattern, step in _STEPS if pattern.search(last)), "login")
        remedy = self._options.try_it(host)
        target = ["--", self._options.target(host), "true"]
        name, port = host.host, self._options.port_of(host) or SSH_PORT
        if "HAS CHANGED" in said:
            last, remedy = f"its host key has changed: it is {_fingerprint(said)} now", forget(name, port)
        elif "Host key verification failed" in last:
            key = _fingerprint(said) or _fingerprint(await _ask([*words, "-v", *target], stdout=False))
            last, remedy = f"unknown host key: {key or last}", accept(name, port)
        elif DENIED in last:
            keys = _key_files(await _ask([*words, "-G", *target], stdout=True))
            locked = [path for path, kind in keys if isinstance(kind, Locked)]
            faults = [kind.words for _, kind in keys if isinstance(kind, Faulty)]
            if locked:
                last = f"{last}: {', '.join(locked)} is locked, and ssh may not ask for its passphrase here"
                remedy = f"`ssh-add {shlex.quote(locked[0])}`"
            elif faults:
                last = f"{last}: {'; '.join(faults)}"
        return HostError(host.place, step, last, remedy)


async def _ask(command: Sequence[str], *, stdout: bool) -> str:
    """What this `ssh` says on its stdout or stderr, within `ASK_S`."""
    said = b""
    with trio.move_on_after(ASK_S):
        async with run_command(command) as child:
            receive = child.receive if stdout else child.receive_error
            while data := await receive():
                said += data
    return said.decode(errors="replace")


def _fingerprint(said: str) -> str:
    """The algorithm, if it is there, and the fingerprint of a host's key in what `ssh` said."""
    found = re.search(r"(?:Server host key: (\S+) )?(SHA256:[A-Za-z0-9+/=]+)", said)
    return "" if found is None else " ".join(filter(None, found.groups()))


def _key_files(configuration: str) -> list[tuple[str, KeyFile]]:
    """The files of private keys that `ssh` would use, and what they are; it does not say which it cannot use."""
    lines = (line.partition(" ") for line in configuration.splitlines())
    paths = [os.path.expanduser(value) for name, _, value in lines if name == "identityfile"]
    return [(path, look_at(path)) for path in paths if os.path.exists(path)]


class OpensshSession:
    """One connection of the `ssh` program; `words` are its options, `target` names the host."""

    def __init__(self, place: str, words: list[str], target: str) -> None:
        self._place = place
        self._words = words
        self._target = target
        self._master: ChildCommand | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[ChildCommand]:
        """The `ssh` that is the connection. It says so on its stdout when it is there."""
        local = ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=echo {READY.decode()}"]
        try:
            async with run_command([*self._words, "-M", *local, "--", self._target, LIFELINE]) as master:
                self._master = master
                yield master
        except OSError as exc:
            if isinstance(exc, HostError):
                raise
            raise HostError(self._place, "login", f"ssh: {exc.strerror or exc}") from exc

    @asynccontextmanager
    async def start(self, command: str) -> AsyncGenerator[OpensshProcess]:
        """See `Session.start`."""
        # Without the connection, `ssh` would make another one.
        words = [*self._words, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "--", self._target, command]
        async with run_command(words) as child:
            yield OpensshProcess(child, self._is_lost)

    def _is_lost(self) -> bool:
        return self._master is None or self._master.has_ended

    @asynccontextmanager
    async def forward(self, host: str, port: int) -> AsyncGenerator[int]:
        """See `Session.forward`."""
        there = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        here = _free_port()
        words = [*self._words, "-O", "forward", "-L", f"127.0.0.1:{here}:{there}", "--", self._target]
        async with run_command(words) as child:
            errors = b""
            while data := await child.receive_error():
                errors += data
            if await child.wait():
                raise HostError(self._place, "tunnel", errors.decode(errors="replace").strip())
        yield here


def _free_port() -> int:
    """A port of loopback that nobody uses at the moment: `ssh` does not choose one for a connection that is there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class OpensshProcess:
    """A command over a connection of the `ssh` program; see `RemoteProcess`."""

    def __init__(self, child: ChildCommand, is_lost: Callable[[], bool]) -> None:
        self.receive = child.receive
        self.receive_error = child.receive_error
        self.write = child.write
        self.close_stdin = child.close_stdin
        self._child = child
        self._is_lost = is_lost

    async def wait(self) -> int:
        """See `RemoteProcess`. Of a command that was killed, `ssh` does not say by which signal."""
        status = await self._child.wait()
        if status == FAILED:
            await trio.sleep(LOST_S)  # the commands over a connection may end before the connection itself
        return EXIT_UNKNOWN if status == FAILED and self._is_lost() else status
