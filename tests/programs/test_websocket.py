"""A cluster whose scheduler speaks websocket: everything works as over TCP, and everybody leaves in good order."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.programs.sites import open_site
from tests.security.pem import Files, write_files
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.mark.parametrize("kind", ["--nanny", "--no-nanny"])
def test_a_cluster_over_websockets_works_and_ends_in_good_order(tmp_path: Path, kind: str) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", "ws")
        address = scheduler.wait_for(r"Scheduler at:   (ws://127\.0\.0\.1:\d+)")
        worker = site.start("worker", address, "--nthreads", "1", kind)
        worker.wait_for("Registered to: ws://127.0.0.1:")
        with Client(address) as client:
            assert client.gather(client.map(abs, range(-1000, 0))) == list(range(1000, 0, -1))
            assert client.submit(len, bytes(3_000_000)).result() == 3_000_000
            assert len(client.submit(bytes, 3_000_000).result()) == 3_000_000
        assert worker.stop(signal.SIGTERM) == 0
        assert scheduler.stop(signal.SIGTERM) == 0
        for program in (worker, scheduler):
            assert "Traceback" not in program.text


def test_workers_and_clients_come_by_any_protocol_of_a_scheduler(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with open_site(tmp_path) as site:
        listening = ("--host", "127.0.0.1", "--port", "0,0", "--protocol", "tcp,ws", "--no-auth")
        scheduler = site.start("scheduler", *listening, "--scheduler-file", str(file))
        tcp = scheduler.wait_for(r"Scheduler at:   (tcp://127\.0\.0\.1:\d+)")
        ws = scheduler.wait_for(r"Scheduler at:   (ws://127\.0\.0\.1:\d+)")
        ports = ", ".join(address.rpartition(":")[2] for address in (tcp, ws))
        scheduler.wait_for(f"Not secured .*, by port {ports}")
        content = json.loads(file.read_text())
        assert (content["address"], content["addresses"]) == (tcp, [tcp, ws])
        for how in ((tcp,), (ws,), ("--scheduler-file", str(file))):
            site.start("worker", *how, "--nthreads", "1", "--no-nanny", "--no-auth").wait_for("Registered to: ")
        for address in (tcp, ws):
            with Client(address, auth=False) as client:
                client.wait_for_workers(3, timeout=10)
                assert list((client.run(abs, -1) or {}).values()) == [1, 1, 1]
                assert client.gather(client.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        for program in reversed(site.programs):
            assert program.stop(signal.SIGTERM) == 0


def test_a_second_port_that_is_taken_is_status_4_and_one_line(tmp_path: Path) -> None:
    with open_site(tmp_path) as site, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scheduler = site.start("scheduler", "--host", "127.0.0.1", "--port", f"0,{port}", "--protocol", "tcp,ws")
        assert scheduler.end() == 4
        assert scheduler.text.count("\n") == 1
        assert f"ws://127.0.0.1:{port}" in scheduler.text


@pytest.mark.parametrize("protocol", ["ws", "wss"])
def test_a_page_in_a_browser_does_not_reach_a_scheduler_that_asks_for_nothing(tmp_path: Path, protocol: str) -> None:
    files = write_files(tmp_path)
    with open_site(tmp_path) as site:
        more = files.options() if protocol == "wss" else []
        open_to_all = ("--host", "127.0.0.1", "--port", "0", "--protocol", protocol, "--no-auth", *more)
        scheduler = site.start("scheduler", *open_to_all)
        address = scheduler.wait_for(rf"Scheduler at:   ({protocol}://127\.0\.0\.1:\d+)")
        place = address.partition("://")[2]
        answers = [
            ask(place, files if more else None, origin) for origin in ("", "http://evil.example", f"http://{place}")
        ]
        assert [answer.partition(b"\r\n")[0].split()[1] for answer in answers] == [b"101", b"403", b"403"]
        for origin in ("http://evil.example", f"http://{place}"):
            scheduler.wait_for(f"closed: a browser called, for a page of '{origin}'$")
        assert sum("a browser called" in line for line in scheduler.errors) == 2
        scheduler.stop(signal.SIGTERM)


def ask(place: str, files: Files | None, origin: str) -> bytes:
    """The answer to the request of a browser, which names its page."""
    host, _, port = place.rpartition(":")
    lines = [
        "GET / HTTP/1.1",
        f"Host: {place}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *([f"Origin: {origin}"] if origin else []),
    ]
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        connection: socket.socket = plain
        if files is not None:
            context = ssl.create_default_context(cafile=files.ca)
            context.load_cert_chain(files.certificate, files.key)
            connection = context.wrap_socket(plain, server_hostname=host)
        with connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            return connection.recv(65536)
