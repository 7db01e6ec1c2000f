"""Thousands of peers that have no business at a scheduler: they cost next to nothing, and keep nobody out."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio

from tests.openings import prover
from tests.programs.programs import Program, scheduler, until
from tests.programs.sites import open_site
from trio_dask import Client
from trio_dask.comm import Endpoint, open_connection, parse_address
from trio_dask.processes.environment import raise_file_limit
from trio_dask.protocol.hello import Hello, Refusal, encode_envelope
from trio_dask.protocol.opening import CallerOpening
from trio_dask.security.cluster_key import ClusterKey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SCARCE = ("sh", "-c", 'ulimit -n 96 && exec "$@"', "sh")
OPENING = CallerOpening(Hello(role="worker"), prover(ClusterKey(bytes(32)), 1)).take_to_send()
HTTP = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGE = b"\x82\xfe" + len(OPENING).to_bytes(2, "big") + bytes(4) + OPENING
"""The opening in a message of a websocket, masked with zeros."""


def _careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _hello_of_tls() -> bytes:
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        _careless().wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    return said.read()


SAID = {"silent": b"", "a byte a second": b"t", "half a proof": OPENING, "HTTP": HTTP}
SAID_TO_TLS = {
    "silent": b"",
    "a byte a second": b"\x16",
    "half a handshake": _hello_of_tls(),
    "half a proof": b"",  # said inside TLS
    "HTTP": HTTP,
}
MANY = 10_000


class Crowd:
    """Connections from one address that say what belongs to their kind, and never say who they are."""

    def __init__(self, address: str, number: int, kind: str) -> None:
        scheme, _, place = address.partition("://")
        host, _, port = place.rpartition(":")
        self.number = number
        self.sockets = list[socket.socket]()
        """Those that were not sent away before they had said what they had to say."""
        in_tls = scheme if scheme != "tcp" and kind == "half a proof" else ""
        at = (host, int(port))
        for _ in range(number):
            self.sockets += _half_prove(at, in_tls) if in_tls else [socket.create_connection(at, timeout=10)]
        self.started = time.monotonic()
        for sock in self.sockets:
            sock.setblocking(False)
        self._said = (SAID if scheme == "tcp" else SAID_TO_TLS)[kind]
        self._say()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._say_more)
        if kind == "a byte a second":
            self._thread.start()

    def _say(self) -> None:
        for sock in self.sockets:
            with suppress(OSError):
                sock.send(self._said)

    def _say_more(self) -> None:
        while not self._leave.wait(1):
            self._say()

    def left(self) -> int:
        """How many of them are still connected."""
        return sum(map(_is_connected, self.sockets))

    def leave(self) -> None:
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join()
        for sock in self.sockets:
            sock.close()


def _half_prove(place: tuple[str, int], scheme: str) -> list[socket.socket]:
    """Agree on TLS and say an opening inside it; nothing is left if the other end has hung up by then."""
    inside = _careless().wrap_socket(socket.socket())  # not of a connection: if that is reset, it stays open for ever
    inside.settimeout(10)
    try:
        inside.connect(place)
    except OSError:
        inside.close()
        return []
    with suppress(OSError):
        if scheme == "wss":
            inside.sendall(UPGRADE)
            inside.recv(4096)
        inside.sendall(OPENING if scheme == "tls" else MESSAGE)
    return [inside]


def _is_connected(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):  # it may have been asked for its proof
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False


@contextmanager
def crowd(address: str, number: int, kind: str) -> Iterator[Crowd]:
    strangers = Crowd(address, min(number, raise_file_limit() - 200), kind)
    try:
        yield strangers
    finally:
        strangers.leave()


class Rss:
    """The most memory that a process has while this runs, beyond what it had before, in MiB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._process.memory_info().rss
        self.most = 0.0

    def look(self) -> bool:
        self.most = max(self.most, (self._process.memory_info().rss - self._before) / 2**20)
        return True


def time_to_get_in(address: str) -> float:
    started = time.monotonic()
    with Client(address, timeout=20) as client:
        assert client.scheduler_info()["type"] == "Scheduler"
        return time.monotonic() - started


def complaints(program: Program) -> list[str]:
    return [line for line in program.errors if re.search(r"connection from|connections at", line)]


def told(lines: list[str]) -> int:
    """How many connections these lines are about."""
    return len(lines) + sum(int(found[1]) for line in lines if (found := re.search(r"\(and (\d+) more", line)))


def suffer(kind: str, number: int, within: tuple[str, ...], *, to_the_end: bool, scheme: str = "tcp") -> None:
    with scheduler("--protocol", scheme, within=within) as running:
        address = running.wait_for(r"Scheduler at: +(\S+)")
        time_to_get_in(address)
        memory = Rss(running.process.pid)
        with crowd(address, number, kind) as strangers:
            # A machine that was busy elsewhere may be late; a crowd that keeps clients out does so every time.
            assert min(time_to_get_in(address) for _ in range(3)) < 1
            memory.look()
            if to_the_end:
                until(lambda: memory.look() and not strangers.left(), timeout_s=30)
                assert time.monotonic() - strangers.started < 12
                assert time_to_get_in(address) < 1
        running.process.terminate()
        running.end()
        assert memory.most < (50 if scheme == "tcp" else 100)
        lines = complaints(running)
        assert len(lines) <= 20, "\n".join(lines)
        if to_the_end:
            assert told(lines) == strangers.number


def test_ten_thousand_silent_connections_keep_no_client_out() -> None:
    suffer("silent", MANY, (), to_the_end=True)


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("within", [(), SCARCE], ids=["", "96 descriptors"])
def test_strangers_keep_no_client_out(kind: str, within: tuple[str, ...]) -> None:
    suffer(kind, MANY // 10, within, to_the_end=False)


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_thousand_silent_connections_to_tls_keep_no_client_out_and_go(scheme: str) -> None:
    suffer("silent", MANY // 10, (), to_the_end=True, scheme=scheme)


@pytest.mark.parametrize("scheme", ["tls", "wss"])
@pytest.mark.parametrize("kind", ["a byte a second", "half a handshake", "half a proof", "HTTP"])
@pytest.mark.parametrize("within", [(), SCARCE], ids=["", "96 descriptors"])
def test_strangers_that_want_tls_keep_no_client_out(kind: str, scheme: str, within: tuple[str, ...]) -> None:
    suffer(kind, MANY // 100, within, to_the_end=False, scheme=scheme)


async def _get_in(address: str) -> None:
    async with open_connection(Endpoint(parse_address(address)), Hello(role="control"), timeout_s=30) as connection:
        await connection.aclose()


async def _get_in_together(address: str, number: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(_get_in, address)


def test_a_thousand_friends_of_one_address_all_get_in_together() -> None:
    with scheduler("--no-auth") as running:
        trio.run(_get_in_together, running.wait_for(r"Scheduler at: +(\S+)"), 1000)
        running.process.terminate()
        running.end()
        assert complaints(running) == []


def pids_of(client: Client) -> list[int]:
    return sorted(info["pid"] for info in client.scheduler_info()["workers"].values())


IMPATIENT = """
from trio_dask import __main__, parsing
parsing.LEAST_SILENCE_S = 4.0
__main__.main()
"""
"""A worker that would believe a refusal with a proof eight seconds after it has lost its scheduler."""


class Impostor:
    """Listens where a scheduler was, and refuses whatever calls, without a proof."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._refuse)
        self._thread.start()

    def _refuse(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                caller, _ = self._listener.accept()
                with caller, suppress(OSError):
                    caller.recv(4096)
                    caller.sendall(encode_envelope(Refusal("versions do not match", "version")))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def test_a_stranger_at_the_port_of_a_killed_scheduler_ends_no_worker(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        arguments = ("worker", boss.address, "--nthreads", "1")
        workers = [
            site.start(*arguments, kind, code=IMPATIENT, DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP="4s")
            for kind in ("--nanny", "--no-nanny")
        ]
        with Client(boss.address) as client:
            client.wait_for_workers(2, timeout=20)
            before = pids_of(client)
        boss.program.stop(signal.SIGKILL)
        with closing(Impostor(boss.port)):
            for worker in workers:
                worker.wait_for("Not connected: .* without a proof .*: versions do not match")
        site.scheduler(port=boss.port)
        with Client(boss.address) as client:
            client.wait_for_workers(2, timeout=20)
            assert pids_of(client) == before, "the processes are the same"


@pytest.mark.soak
@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("within", [(), SCARCE], ids=["", "96 descriptors"])
def test_ten_thousand_strangers_keep_no_client_out_and_go(kind: str, within: tuple[str, ...]) -> None:
    suffer(kind, MANY, within, to_the_end=True)


@pytest.mark.soak
@pytest.mark.parametrize("scheme", ["tls", "wss"])
@pytest.mark.parametrize("kind", SAID_TO_TLS)
@pytest.mark.parametrize("within", [(), SCARCE], ids=["", "96 descriptors"])
def test_ten_thousand_strangers_that_want_tls_keep_no_client_out_and_go(
    kind: str, within: tuple[str, ...], scheme: str
) -> None:
    handshakes = kind == "half a proof"  # which cost this end as much as the other one
    suffer(kind, MANY // 10 if handshakes else MANY, within, to_the_end=True, scheme=scheme)
