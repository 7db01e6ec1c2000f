"""Log in to a host with the system's `ssh`, which knows every method and all of its configuration.

One `ssh` is the connection (ControlMaster); each command is another one that runs over it. None of them may ask
anything (BatchMode).
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_dask.deploy.ssh.child_command import ChildCommand, run_command
from trio_dask.deploy.ssh.login import BUSY_PAUSE_S, BUSY_S, KEEPALIVE_S, KEEPALIVES, KNOWN_HOSTS, LoginOptions
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError

if TYPE_CHECKING:
    from trio_dask.deploy.ssh.hosts import HostSpec

FAILED = 255
"""The status with which `ssh` says that it, and not the command, has failed."""
LOST_S = 0.1
READY = b"connected"
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
        with tempfile.TemporaryDirectory(prefix="tds-") as folder:
            session = OpensshSession(
                host.place, self._words(host, Path(folder, "control")), _target(host, self._options)
            )
            give_up_at = trio.current_time() + BUSY_S
            while True:
                async with session.connect() as master:
                    said = await self._wait_until_ready(master)
                    if said is None:
                        on_step("resolve")
                        on_step("login")
                        yield session
                        return
                if not _DROPPED.search(said) or "Permission denied" in said or trio.current_time() > give_up_at:
                    raise self._explain(host, said)
                await trio.sleep(random.uniform(*BUSY_PAUSE_S))

    def _words(self, host: HostSpec, control: Path) -> list[str]:
        options = self._options
        words = ["ssh", "-T", "-S", str(control)]
        port = host.port or options.port
        words += ["-p", str(port)] if port is not None else []
        words += ["-i", options.private_key] if options.private_key is not None else []
        words += ["-F", options.configuration[0]] if len(options.configuration) == 1 else []
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

    def _explain(self, host: HostSpec, said: str) -> HostError:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "ssh said nothing"
        command = shlex.join(["ssh", *_port(host, self._options), _target(host, self._options), "true"])
        remedy = f"try `{command}`"
        step = next((step for pattern, step in _STEPS if pattern.search(last)), "login")
        if "Host key verification failed" in last:
            fingerprint = next((word for word in said.split() if word.startswith("SHA256:")), "")
            if "HAS CHANGED" in said:
                last = f"its host key has changed: it is {fingerprint.rstrip('.')} now"
                remedy = f"if that is right, `ssh-keygen -R {shlex.quote(_known_as(host, self._options))}`"
            else:
                last = f"unknown host key ({last})"
                scan = shlex.join(["ssh-keyscan", *_port(host, self._options), host.host])
                remedy = f"if it is the right host, `{scan} >> {KNOWN_HOSTS[0]}`, or --accept-new-host-keys"
        return HostError(host.place, step, last, remedy)


def _target(host: HostSpec, options: LoginOptions) -> str:
    user = host.user or options.username
    return host.host if user is None else f"{user}@{host.host}"


def _port(host: HostSpec, options: LoginOptions) -> list[str]:
    port = host.port or options.port
    return [] if port is None else ["-p", str(port)]


def _known_as(host: HostSpec, options: LoginOptions) -> str:
    port = host.port or options.port or 22
    return host.host if port == 22 else f"[{host.host}]:{port}"


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
