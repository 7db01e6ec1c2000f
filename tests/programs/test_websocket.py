"""A cluster whose scheduler speaks websocket: everything works as over TCP, and everybody leaves in good order."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.programs.sites import open_site
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
