"""Whatever is killed while a workload runs, it costs time and nothing else."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.programs import tasks
from tests.programs.programs import Program, until
from tests.programs.sites import Site, open_site
from trio_dask import Client, Future

pytestmark = pytest.mark.slow

LAUNCHERS = 2
WORKERS = 4
WIDTH = 12


class Supervisor:
    """Starts the launchers of workers, and starts them again, as systemd would."""

    def __init__(self, site: Site, address: str) -> None:
        self._site = site
        self._address = address
        self._names = [f"host{number}" for number in range(LAUNCHERS)]
        self.launchers: dict[str, Program] = {}

    def look(self) -> None:
        """Start those that are not there."""
        for name in self._names:
            launcher = self.launchers.get(name)
            if launcher is None or launcher.process.poll() is not None:
                self.launchers[name] = self._start(name)

    def _start(self, name: str) -> Program:
        # No limit to restarts, and no growing pauses: here, crashes are the weather.
        limits = ["--max-restarts", "1000000", "--restart-backoff", "0.5s:0.5s"]
        many = ["--nworkers", str(WORKERS // LAUNCHERS), "--name", name]
        return self._site.start("worker", self._address, "--nthreads", "1", *many, *limits)


def submit(client: Client, log: str, salt: int) -> tuple[list[Future], Future, int]:
    """Some tasks, of which every third starts a process, and the sum of all."""
    leaves = [
        client.submit(tasks.with_child if n % 3 == 0 else tasks.work, log, f"leaf-{salt}-{n}", 0.1, salt + n)
        for n in range(WIDTH)
    ]
    pairs = [
        client.submit(tasks.work, log, f"pair-{salt}-{n}", 0.05, None, *leaves[n : n + 2]) for n in range(0, WIDTH, 2)
    ]
    total = client.submit(tasks.work, log, f"total-{salt}", 0.01, None, *pairs)
    return leaves, total, sum(salt + n for n in range(WIDTH))


def kind_of(process: psutil.Process, supervisor: Supervisor) -> str:
    """What it is that is being killed."""
    launchers = {launcher.process.pid for launcher in supervisor.launchers.values()}
    if process.pid in launchers:
        return "launcher"
    for depth, parent in enumerate(process.parents()):
        if parent.pid in launchers:
            return ("guard", "worker", "child of a task")[min(depth, 2)]
    return "orphan"


def kill_one(
    site: Site, supervisor: Supervisor, spared: int, rng: random.Random
) -> tuple[psutil.Process, str, set[int]]:
    """Kill any process but the scheduler; gives what it was, and which others cannot live on without it."""
    while True:
        victims = sorted((process for process in site.processes() if process.pid != spared), key=lambda each: each.pid)
        victim = rng.choice(victims)
        try:
            what = kind_of(victim, supervisor)
            dead = {victim.pid, *(child.pid for child in victim.children(recursive=True))}
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue  # it was a short one, of a task
        return victim, what, dead


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(10, marks=pytest.mark.timeout(240)),
        pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_kills_of_random_processes_cost_time_and_nothing_else(tmp_path: Path, rounds: int) -> None:
    log = str(tmp_path / "log")
    rng = random.Random(3)
    killed: Counter[str] = Counter()
    slowest_s = 0.0
    began = time.monotonic()
    with open_site(tmp_path) as site:
        boss = site.scheduler("--allowed-failures", "10")
        supervisor = Supervisor(site, boss.address)
        with Client(boss.address) as client:

            def pids() -> list[int]:
                supervisor.look()
                return [info["pid"] for info in client.scheduler_info()["workers"].values()]

            def all_back(dead: set[int]) -> bool:
                now = pids()
                return len(now) == WORKERS and dead.isdisjoint(now) and all(map(psutil.pid_exists, now))

            until(lambda: all_back(set()), 20, "all workers are there")
            for number in range(rounds):
                leaves, total, expected = submit(client, log, 1000 * number)
                enough = rng.randrange(1, WIDTH)
                begun = f"-{1000 * number}-"
                until(lambda: sum(begun in line for line in tasks.lines_of(log)) >= enough, 20, "tasks begin")  # noqa: B023
                victim, what, dead = kill_one(site, supervisor, boss.program.process.pid, rng)
                print(f"{number}: killed {what} {victim.pid}")
                killed[what] += 1
                dead_at = time.monotonic()
                until(lambda: all_back(dead), 10, f"4 workers are back after the death of a {what}")  # noqa: B023
                back_s = time.monotonic() - dead_at
                assert total.result(timeout=30) == expected
                assert client.gather(leaves) == [1000 * number + n for n in range(WIDTH)]
                print(f"   workers back after {back_s:.1f} s, results after {time.monotonic() - dead_at:.1f} s")
                slowest_s = max(slowest_s, back_s)
                often = {name: times for name, times in tasks.executions(log).items() if times > 2}
                assert often == {}, f"one kill, and {often}"
                del leaves, total
        times = Counter(tasks.executions(log).values())
        print(f"{rounds} rounds in {time.monotonic() - began:.0f} s; killed {dict(killed)}; executed {dict(times)};")
        print(f"slowest return of all workers {slowest_s:.1f} s")
        assert times[2] < rounds * WIDTH / 2
