"""Hosts that follow a script, in the Trio loop of a test: what a launcher sees of them, and what they saw of it."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from trio_dask._version import __version__
from trio_dask.deploy.ssh.hosts import HostSpec
from trio_dask.deploy.ssh.launched_host import LogIn
from trio_dask.deploy.ssh.orders import MARK, encode
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError

PYTHON = "3.11.0"
EACH = {"nthreads": 1, "memory_limit": None}


@dataclass
class Script:
    """How a host behaves. `login_s` is how long a login takes; `refuses` why none succeeds.

    `fails` is what its workers say before they end with `status`; `ignores` whether they ignore signals, and `drains_s`
    how long they take for one. At its end it `answers` that so many processes are `left`, after `answers_s`, or loses
    the connection. If its shell `asks` something, no program starts.
    """

    login_s: float = 0.1
    refuses: str = ""
    fails: str = ""
    status: int = 5
    ignores: bool = False
    drains_s: float = 0
    answers: bool = True
    answers_s: float = 0
    asks: str = ""
    left: int = 0
    package: str = __version__


@dataclass
class ScriptedHost:
    """One host, and what has happened there."""

    script: Script
    logins: int = 0
    orders: list[dict[str, Any]] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    sweeps: list[str] = field(default_factory=list)
    running: list["ScriptedProcess"] = field(default_factory=list)

    def cut(self) -> None:
        """Lose the connection."""
        for process in list(self.running):
            process.end(EXIT_UNKNOWN)


class ScriptedProcess:
    """The program on a host."""

    def __init__(self, host: ScriptedHost, python: str) -> None:
        self._host = host
        self._status = 0
        self._ended = trio.Event()
        self.role = ""
        self._to_read, self._output = trio.open_memory_channel[bytes](100)
        greeting = {"package": host.script.package, "python": python, "executable": "python", "reached": "10.0.0.1"}
        if host.script.asks:
            self._to_read.send_nowait(host.script.asks.encode())
        else:
            self._send({"greeting": greeting})
        host.running.append(self)

    def _send(self, report: Mapping[str, Any]) -> None:
        self._to_read.send_nowait(MARK + encode(report))

    def fail(self, status: int, words: str) -> None:
        """It says why, and ends."""
        self._send({"failure": words, "status": status})
        self.end(status)

    def end(self, status: int) -> None:
        """It has ended."""
        if not self._ended.is_set():
            self._host.running.remove(self)
            self._status = status
            self._ended.set()
            self._to_read.close()

    async def _drain(self) -> None:
        await trio.sleep(self._host.script.drains_s)
        self.end(0)

    async def _answer(self) -> None:
        await trio.sleep(self._host.script.answers_s)
        if not self._ended.is_set():
            self._send({"found": self._host.script.left, "left": self._host.script.left})
            self.end(0)

    async def receive(self) -> bytes:
        try:
            return await self._output.receive()
        except trio.EndOfChannel:
            return b""

    async def receive_error(self) -> bytes:
        await self._ended.wait()
        return b""

    async def wait(self) -> int:
        await self._ended.wait()
        return self._status

    def close_stdin(self) -> None:
        self.end(0)

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            if not self._ended.is_set():
                self._take(json.loads(line))

    def _take(self, said: dict[str, Any]) -> None:
        host = self._host
        if "role" in said:
            self.role = said["role"]
            if self.role == "sweep":
                host.sweeps.append(said["run"])
                if not host.script.answers:
                    self.end(EXIT_UNKNOWN)
                    return
                trio.lowlevel.spawn_system_task(self._answer)
        elif "signal" in said:
            host.signals.append(said["signal"])
            if not host.script.ignores:
                trio.lowlevel.spawn_system_task(self._drain)
        elif "order" in said:
            host.orders.append({**said["order"], "secrets": said["secrets"]})
            if self.role == "scheduler":
                self._send({"address": "tcp://10.0.0.1:8786"})
            elif host.script.fails:
                self.fail(host.script.status, host.script.fails)
            else:
                self._send({"workers": {"w": "tcp://10.0.0.2:1"}, "of": 1, "each": EACH})


class ScriptedSession:
    """A login on such a host."""

    def __init__(self, host: ScriptedHost, python: str) -> None:
        self._host = host
        self._python = python

    @asynccontextmanager
    async def start(self, command: str) -> AsyncGenerator[ScriptedProcess]:
        process = ScriptedProcess(self._host, self._python)
        yield process
        process.end(0)

    @asynccontextmanager
    async def forward(self, host: str, port: int) -> AsyncGenerator[int]:
        yield 12345


class Site:
    """Hosts by name. `most` is how many logins there were at once."""

    def __init__(self, python: str, **scripts: Script) -> None:
        self.hosts = {name: ScriptedHost(script) for name, script in scripts.items()}
        self.most = 0
        self._python = python
        self._now = 0

    @property
    def log_in(self) -> LogIn:
        """How to log in."""
        return self._log_in

    @asynccontextmanager
    async def _log_in(self, spec: HostSpec, on_step: Callable[[str], object]) -> AsyncGenerator[ScriptedSession]:
        host = self.hosts[spec.host]
        host.logins += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await trio.sleep(host.script.login_s)
        finally:
            self._now -= 1
        if host.script.refuses:
            raise HostError(spec.place, "login", host.script.refuses)
        on_step("login")
        yield ScriptedSession(host, self._python)
