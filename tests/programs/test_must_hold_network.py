"""Networks that fail: silently, for a moment or for good, and with a bang."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import network, tasks
from tests.programs.programs import until
from tests.programs.proxy import open_proxy
from tests.programs.sites import Scheduler, Site, open_site
from trio_dask import Client, Future

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
]
needs_networks = pytest.mark.skipif("network.why_not() is not None", reason=f"{network.why_not()}")


def names(client: Client) -> list[str]:
    return sorted(info["name"] for info in client.scheduler_info()["workers"].values())


@pytest.fixture
def net() -> Iterator[network.Network]:
    with network.open_network(2) as net, net.hub.entered():
        yield net


def start_cluster(site: Site, net: network.Network) -> Scheduler:
    """A scheduler on the hub, and a worker on each of the two machines."""
    boss = site.scheduler(host=net.address, machine=net.hub)
    for number, host in enumerate(net.hosts):
        site.worker(boss.address, "--name", f"w{number}", machine=host)
    return boss


def submit_many(client: Client, log: str, number: int, seconds: float) -> tuple[list[Future], Future]:
    """Tasks for both workers, and their sum, which needs them all."""
    leaves = [client.submit(tasks.work, log, f"leaf{n}", seconds, n, key=f"leaf{n}") for n in range(number)]
    pairs = [
        client.submit(tasks.work, log, f"pair{n}", 0, None, *leaves[n : n + 2], key=f"pair{n}")
        for n in range(0, number, 2)
    ]
    return leaves, client.submit(tasks.work, log, "total", 0, None, *pairs, key="total")


@needs_networks
@pytest.mark.parametrize("cut_s", [0, *(pytest.param(length_s, marks=pytest.mark.soak) for length_s in (40, 120))])
def test_a_worker_that_is_cut_off_costs_at_most_fifteen_seconds_and_comes_back(
    tmp_path: Path, net: network.Network, cut_s: float
) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = start_cluster(site, net)
        with Client(boss.address) as client:
            leaves, total = submit_many(client, log, 20, 0.1)
            until(lambda: len(tasks.lines_of(log)) >= 8, 10, "they work")
            net.cut(0)
            start = time.monotonic()
            assert total.result(timeout=20) == sum(range(20))
            took_s = time.monotonic() - start
            print(f"result {took_s:.1f} s after the cut")
            assert took_s <= 15
            assert max(tasks.executions(log).values()) <= 2
            time.sleep(max(0, start + cut_s - time.monotonic()))
            net.heal(0)
            start = time.monotonic()
            until(lambda: names(client) == ["w0", "w1"], 10, "it is back")
            print(f"back {time.monotonic() - start:.1f} s after the link was healed")
            assert client.submit(tasks.work, log, "after", 0, 7, workers=["w0"]).result(timeout=10) == 7
            assert client.gather(leaves) == list(range(20))


@needs_networks
def test_nothing_is_computed_again_after_a_cut_of_three_seconds(tmp_path: Path, net: network.Network) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = start_cluster(site, net)
        with Client(boss.address) as client:
            leaves, total = submit_many(client, log, 40, 0.1)
            until(lambda: len(tasks.lines_of(log)) >= 8, 10, "they work")
            net.cut(0)
            time.sleep(3)
            net.heal(0)
            assert total.result(timeout=20) == sum(range(40))
            assert client.gather(leaves) == list(range(40))
            again = {name: times for name, times in tasks.executions(log).items() if times > 1}
            assert again == {}
            assert names(client) == ["w0", "w1"]


@needs_networks
def test_time_without_a_scheduler_counts_from_its_last_sign_also_where_nothing_says_that_the_link_is_cut(
    tmp_path: Path, net: network.Network
) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler(host=net.address, machine=net.hub)
        worker = site.worker(boss.address, "--death-timeout", "6", machine=net.hosts[0])
        time.sleep(1)
        net.cut(0)
        cut_at = time.monotonic()
        assert worker.end() == 3
        # Up to two seconds before the cut the scheduler may have said its last word.
        assert 3.5 <= time.monotonic() - cut_at <= 8
        assert "no scheduler for 6 s" in worker.errors[-1]


@pytest.mark.parametrize("long_s", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_workers_whose_connection_is_cut_for_two_seconds_repeat_nothing(tmp_path: Path, long_s: float) -> None:
    """One is told so by a reset, the other's packets get lost. A third could do everything again."""
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler("--reconnect-grace", "30s")  # a slow machine needs its time to call again
        with open_proxy(boss.address) as one, open_proxy(boss.address) as other, Client(boss.address) as client:
            for name, proxy in (("one", one), ("other", other)):
                site.worker(proxy.address, "--name", name, "--nthreads", "2")
            first: list[dict[str, Any]] = [
                {"workers": [name], "allow_other_workers": True} for name in ("one", "other")
            ]
            done = [client.submit(tasks.bytes_of, log, f"done{n}", 100_000 + n, **first[n % 2]) for n in range(100)]
            until(lambda: all(future.done() for future in done), 20, "about 50 results each")
            held = [len(keys) for keys in client.has_what().values()]
            assert sum(held) == 100
            assert min(held) >= 20  # an idle worker may have taken some
            long = [client.submit(tasks.work, log, f"long{n}", long_s, 40 + n, **first[n]) for n in range(2)]
            short = [client.submit(tasks.work, log, f"short{n}", 0.1, n) for n in range(20)]
            until(lambda: {"long0", "long1"} <= tasks.executions(log).keys(), 20, "the long tasks run")
            site.worker(boss.address, "--name", "near")
            one.reset()
            other.stall()
            total = client.submit(sum, [*short, *long])
            time.sleep(2)
            one.restore()
            other.restore()
            restored_at = time.monotonic()
            until(lambda: names(client) == ["near", "one", "other"], 5, "they are back")
            # Each for the worker and for its nanny, which calls again by itself.
            until(lambda: (one.connections, other.connections) == (4, 2), 10, "the nannies are back")
            print(f"back after {time.monotonic() - restored_at:.1f} s")
            assert [len(value) for value in client.gather(done)] == [100_000 + n for n in range(100)]
            assert total.result(timeout=long_s + 10) == 81 + sum(range(20))
            assert set(tasks.executions(log).values()) == {1}
            assert len(tasks.executions(log)) == 122
            assert (one.connections, other.connections) == (4, 2)
            for program in reversed(site.programs[1:]):
                assert program.stop(signal.SIGTERM) == 0
