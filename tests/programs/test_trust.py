"""What reaches the scheduler from outside: garbage on its port, and pickles that it must not open."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_dask import Client
from trio_dask.protocol import codec
from trio_dask.protocol import messages as m
from trio_dask.protocol.frames import Kind, encode_frame

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

AUDITED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "pickle.find_class" else None)
from trio_dask.__main__ import main
sys.argv = ["trio-dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", sys.argv[1]]
try:
    main()
finally:
    print("OPENED", opened, "LOADED", [name for name in ("cloudpickle", "trio_dask.protocol.pickling")
          if name in sys.modules], flush=True)
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    folder = tmp_path_factory.mktemp("scheduler")
    file, log = folder / "scheduler.json", folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", AUDITED, str(file)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout is not None
    try:
        with Client(scheduler_file=str(file), timeout=20):
            address = json.loads(file.read_text())["address"]
        yield address, process, log
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=10)
        process.stdout.close()


def talk(address: str, data: bytes) -> None:
    """Say this to the scheduler, and wait until it has hung up."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass


def is_healthy(address: str) -> bool:
    with Client(address, timeout=10) as client:
        return bool(client.scheduler_info()["type"] == "Scheduler")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        b"\xff" * 100_000,
        struct.pack("<Q", 2**63) * 3,
        encode_frame(Kind.RECORDS, codec.encode([m.Shutdown()])),
        b"\x91" * 70_000,
    ],
    ids=["http", "tls", "ssh", "nothing", "ones", "lengths", "records", "nesting"],
)
def test_garbage_ends_its_own_connection_with_one_line(
    scheduler: tuple[str, subprocess.Popen[str], Path], data: bytes
) -> None:
    address, _, log = scheduler
    before = log.read_text().count("\n")
    talk(address, data)
    assert is_healthy(address)
    text = log.read_text()
    assert "Traceback" not in text
    lines = text.splitlines()[before:]
    assert sum("client" not in line.lower() for line in lines) == 1, lines


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=500))
def test_random_bytes_do_no_harm(scheduler: tuple[str, subprocess.Popen[str], Path], data: bytes) -> None:
    address, process, _ = scheduler
    talk(address, data)
    assert process.poll() is None


def test_the_scheduler_opens_no_pickle_in_a_whole_workload(
    scheduler: tuple[str, subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    address, process, _ = scheduler
    worker = subprocess.Popen(
        [sys.executable, "-m", "trio_dask", "worker", address, "--nthreads", "2", "--no-nanny"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        with Client(address, timeout=20) as client:
            client.wait_for_workers(1, timeout=20)
            total = client.submit(sum, client.map(lambda x: x * 2, range(100)))
            assert total.result(timeout=20) == 9900
            with pytest.raises(ZeroDivisionError):
                client.submit(lambda: 1 // 0).result(timeout=20)
            assert client.gather(client.scatter({"a": 1, "b": [2]})) == {"a": 1, "b": [2]}
            with pytest.raises(Exception, match=r"never unpickles|does not unpickle"):
                client.run_on_scheduler(print)
    finally:
        worker.terminate()
        worker.wait(timeout=20)
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert "OPENED [] LOADED []" in output
