"""Clients of real programs whose link is cut, or whose scheduler is killed."""

import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.programs.proxy import open_proxy
from tests.programs.sites import Scheduler, Site, open_site
from tests.programs.tasks import executions, work
from trio_dask import AsyncClient, Client, SchedulerLost, as_completed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CUT_S = 2.0


def block(log: str, name: str, seconds: float) -> object:
    return work(log, name, seconds, name)


def test_a_link_that_was_cut_for_two_seconds_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.worker(boss.address, "--nthreads", "2", "--no-nanny")
        with open_proxy(boss.address) as proxy, Client(proxy.address) as client:
            done = client.map(partial(block, log), range(20), [0] * 20)
            assert client.gather(done) == list(range(20))
            running = client.map(partial(block, log), range(20, 26), [1.0] * 6)
            data = os.urandom(3_000_000)
            results = []
            waiting = threading.Thread(target=lambda: results.append(client.gather([*done, *running])))
            waiting.start()
            time.sleep(0.2)
            proxy.reset()
            cut_at = time.monotonic()
            meanwhile = client.map(partial(block, log), range(26, 40), [0] * 14)
            large = client.submit(len, data)
            while client.status != "connecting":
                time.sleep(0.01)
            time.sleep(CUT_S - (time.monotonic() - cut_at))
            assert not meanwhile[0].done()
            proxy.restore()
            assert client.gather(meanwhile) == list(range(26, 40))
            print(f"back {time.monotonic() - cut_at - CUT_S:.2f} s after the link")
            assert large.result() == len(data)
            waiting.join(30)
            assert results == [list(range(26))]
            assert proxy.connections == 2
            assert dict(executions(log)) == {str(number): 1 for number in range(40)}


def test_a_link_that_stalls_for_two_seconds_is_nothing_but_slow(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.worker(boss.address, "--no-nanny")
        with open_proxy(boss.address) as proxy, Client(proxy.address) as client:
            client.wait_for_workers(1)
            proxy.stall()
            futures = client.map(partial(block, log), range(10), [0] * 10)
            time.sleep(CUT_S)
            proxy.restore()
            assert client.gather(futures) == list(range(10))
            assert proxy.connections == 1


def test_another_scheduler_on_the_same_port_fails_the_futures_of_the_first_at_once(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.worker(boss.address, "--no-nanny")
        with Client(boss.address) as client:
            done = client.submit(block, log, 1, 0)
            assert done.result() == 1
            futures = client.map(partial(block, log), range(2, 5), [4.0] * 3)
            first = client.engine.core.scheduler
            boss.program.process.kill()
            boss.program.end()
            site.scheduler(port=boss.port)
            up_at = time.monotonic()
            for future in as_completed(futures, timeout=20):
                with pytest.raises(SchedulerLost) as caught:
                    future.result()
                assert first in str(caught.value)
                assert client.engine.core.scheduler in str(caught.value)
            took_s = time.monotonic() - up_at
            print(f"told {took_s:.2f} s after the new scheduler was up")
            assert took_s < 3
            assert first != client.engine.core.scheduler
            assert client.submit(block, log, 1, 0).result(timeout=20) == 1  # by the worker that came along
            assert {future.status for future in (*futures, done)} == {"lost"}


def test_a_trio_client_sees_the_same(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    async def use(boss: Scheduler, site: Site) -> None:
        async with AsyncClient(boss.address) as client:
            futures = client.map(partial(block, log), range(3), [4.0] * 3)
            await client.wait_for_workers(1)
            first = client.engine.core.scheduler
            boss.program.process.kill()
            await trio.to_thread.run_sync(boss.program.end)
            await trio.to_thread.run_sync(partial(site.scheduler, port=boss.port))
            with trio.fail_after(20):
                for future in futures:
                    with pytest.raises(SchedulerLost, match=first):
                        await future
                assert await client.submit(block, log, 7, 0) == 7

    with open_site(tmp_path) as site:
        boss = site.scheduler()
        site.worker(boss.address, "--no-nanny")
        trio.run(use, boss, site)


def test_a_scheduler_that_is_stopped_is_lost_at_once_and_the_next_one_found_when_it_is_needed(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        with Client(boss.address, timeout=15) as client:
            future = client.submit(abs, -1)
            client.scheduler_info()
            boss.program.process.terminate()
            with pytest.raises(SchedulerLost, match="the scheduler closed the connection"):
                future.result(timeout=5)
            assert boss.program.end() == 0
            assert client.status == "lost"
            site.scheduler(port=boss.port)
            site.worker(boss.address, "--no-nanny")
            assert client.submit(abs, -1).result(timeout=20) == 1
