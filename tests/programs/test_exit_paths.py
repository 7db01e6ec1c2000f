"""Every way in which programs end: status, time, what they say, and that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import Program, until
from tests.programs.sites import Site, open_site
from trio_dask import Client, Future

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

KINDS = {"lone": ["--no-nanny"], "nanny": [], "two": ["--nworkers", "2"]}
NAMES = {"lone": ["lone"], "nanny": ["nanny"], "two": ["two-0", "two-1"]}
FOREVER = 1000


def launch_all(site: Site, address: str, *arguments: str, kinds: Collection[str] = KINDS) -> dict[str, Program]:
    """One program of each kind, all at the same time."""
    return {
        kind: site.start("worker", address, "--nthreads", "1", "--name", kind, *KINDS[kind], *arguments)
        for kind in kinds
    }


def lines_with(program: Program, text: str) -> int:
    return sum(text in line for line in program.errors)


def has_registered(program: Program, times: int) -> bool:
    """Or has ended."""
    return lines_with(program, "Registered to:") == times or program.process.poll() is not None


def start_all(site: Site, address: str, *arguments: str, kinds: Collection[str] = KINDS) -> dict[str, Program]:
    """The same, when their workers have registered, or when they have ended."""
    programs = launch_all(site, address, *arguments, kinds=kinds)
    for kind, program in programs.items():
        until(partial(has_registered, program, len(NAMES[kind])), 20, "registered")
    return programs


def pids(site: Site) -> list[int]:
    """All processes there are."""
    return [process.pid for process in site.processes()]


def keep_busy(client: Client, log: Path, kinds: Collection[str] = KINDS) -> list[Future]:
    """A task on each worker that goes on for ever, and has started processes that would as well."""
    names = [name for kind in kinds for name in NAMES[kind]]
    futures = [client.submit(tasks.leave_children, f"{log}-{name}", FOREVER, workers=[name]) for name in names]
    for name in names:
        until(lambda: tasks.lines_of(f"{log}-{name}"), 10, f"the task of {name} runs")  # noqa: B023
    return futures


def all_end(programs: Mapping[str, Program], status: int, within_s: float, since: float, *promised: str) -> None:
    """Each ends with this status in time, and says nothing but what was promised."""
    for kind, program in programs.items():
        try:
            found = program.process.wait(max(0.01, since + within_s - time.monotonic()))
        except Exception as error:
            raise AssertionError(f"{kind} goes on for longer than {within_s} s:\n{program.text}") from error
        assert found == status, f"{kind}:\n{program.text}"
        program.end()
        says_only_what_was_promised(program, *promised)


PROMISED = (
    r"Starting \d workers?: ",
    r"Waiting for the scheduler at ",
    r"Start (nanny|worker) at: +tcp://",
    r"Registered to: tcp://",
    r"Stopping: ((the launcher )?received SIG(INT|TERM|HUP)|another worker of this launcher failed)$",
    r"Leaving: ",
    r"Worker \S+( \(pid \d+\))? (stopped$|left: )",
    r"Scheduler at: +tcp://",
    r"Registered worker (\S+ at )?tcp://",
    r"Worker \S+ left: ",
    r"Scheduler stopped(: |$)",
)
ENDED = r"Worker \S+ \(pid \d+\) (ended with status|was killed)"


def complaint(text: str) -> str:
    """The last line of a worker that has ended for a reason, from itself or its nanny."""
    return rf"python -m trio_dask worker( \S+)?: {text}"


def hold_interpreters(client: Client, log: Path, names: Collection[str]) -> list[Future]:
    """A task on each of these workers that lets no thread of it run, for ever."""
    futures = [client.submit(tasks.hold_interpreter, log, name, FOREVER, workers=[name]) for name in names]
    until(lambda: len(tasks.lines_of(log)) == len(names), 10, "they hold the interpreter")
    return futures


def says_only_what_was_promised(program: Program, *more: str) -> None:
    """No line of it is any other than these."""
    patterns = [re.compile(pattern) for pattern in (*PROMISED, *more)]
    odd = [line for line in program.errors if not any(pattern.match(line) for pattern in patterns)]
    assert odd == [], program.text
    assert program.output == []


# --------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_idle_workers(tmp_path: Path, number: signal.Signals) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address)
        since = time.monotonic()
        for program in programs.values():
            program.process.send_signal(number)
        all_end(programs, 0, 2, since)
        since = time.monotonic()
        boss.program.process.send_signal(number)
        all_end({"scheduler": boss.program}, 0, 2, since)


@pytest.mark.parametrize(
    ("number", "options", "least_s", "within_s"),
    [(signal.SIGTERM, ["--drain-timeout", "1s"], 1, 3), (signal.SIGINT, [], 0, 3)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_to_workers_whose_tasks_never_end(
    tmp_path: Path, number: signal.Signals, options: list[str], least_s: int, within_s: int
) -> None:
    """And which have started processes that ignore SIGTERM, have sessions of their own, and children."""
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address, *options)
        with Client(boss.address) as client:
            futures = keep_busy(client, tmp_path / "log")
            since = time.monotonic()
            for program in programs.values():
                program.process.send_signal(number)
            all_end(programs, 0, within_s, since)
            assert time.monotonic() - since >= least_s
            del futures


def test_a_signal_to_every_process_at_once_as_from_a_terminal_or_a_batch_system(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address)
        with Client(boss.address) as client:
            running = [client.submit(tasks.work, log, name, 1, name, workers=[name]) for name in NAMES["two"]]
            until(lambda: len(tasks.lines_of(log)) == 2, 10, "they run")
            since = time.monotonic()
            for process in site.processes():
                if process.pid != boss.program.process.pid:
                    process.send_signal(signal.SIGTERM)
            all_end(programs, 0, 4, since)
            # What ran was done; nobody was left to take the results, and no worker was to blame.
            assert tasks.executions(log) == {"two-0": 1, "two-1": 1}
            assert [future.status for future in running] in (["finished"] * 2, ["pending"] * 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_workers_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address)
        with Client(boss.address) as client:
            futures = keep_busy(client, tmp_path / "log")
            for program in programs.values():
                program.process.send_signal(number)
            for program in programs.values():
                program.wait_for("^Stopping: ")
            time.sleep(0.3)
            since = time.monotonic()
            for program in programs.values():
                program.process.send_signal(number)
            all_end(programs, -number, 1, since)
            until(lambda: pids(site) == [boss.program.process.pid], 1, "nothing is left")
            del futures


@pytest.mark.parametrize("delay_s", [0.1, 0.4, 0.7])
def test_a_signal_at_any_moment_of_the_start_of_workers_is_quiet(tmp_path: Path, delay_s: float) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = launch_all(site, boss.address)
        time.sleep(delay_s)
        since = time.monotonic()
        for program in programs.values():
            program.process.send_signal(signal.SIGTERM)
        for kind, program in programs.items():
            # Before our first line has run, the interpreter itself answers a signal.
            status = program.process.wait(max(0.1, since + 3 - time.monotonic()))
            assert status == 0 or (status == -signal.SIGTERM and program.errors == []), f"{kind}:\n{program.text}"
            program.end()
            says_only_what_was_promised(program)


# ------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_goodbye_of_the_scheduler_ends_everything_with_status_0_within_5_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address)
        with Client(boss.address) as client:
            futures = keep_busy(client, tmp_path / "log")
            since = time.monotonic()
            boss.program.process.send_signal(number)
            all_end({**programs, "scheduler": boss.program}, 0, 5, since)
            del futures


def test_without_reconnect_the_loss_of_the_scheduler_ends_workers_with_status_3(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address, "--no-reconnect")
        with Client(boss.address) as client:
            futures = keep_busy(client, tmp_path / "log")
            since = time.monotonic()
            boss.program.process.kill()
            all_end(programs, 3, 2, since, "Lost the scheduler: ", complaint("lost the scheduler"), ENDED)
            del futures


def test_death_timeout_holds_whatever_a_task_does(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address, "--death-timeout", "2", kinds=KINDS)
        with Client(boss.address) as client:
            log = tmp_path / "log"
            futures = keep_busy(client, log, ("lone", "nanny"))
            futures += hold_interpreters(client, log, NAMES["two"])
            since = time.monotonic()
            boss.program.process.kill()
            promised = ["Lost the scheduler: ", "Not connected: ", complaint("no scheduler for 2 s: "), ENDED]
            all_end(programs, 3, 4, since, *promised)
            assert time.monotonic() - since >= 2
            del futures


def test_without_a_scheduler_from_the_start(tmp_path: Path) -> None:
    with open_site(tmp_path) as site, socket.create_server(("127.0.0.1", 0)) as mute:
        cases = {
            "127.0.0.1:1": ("nothing listens there", KINDS),
            "nosuch.invalid:1": ("unknown host name", ("lone",)),
            f"127.0.0.1:{mute.getsockname()[1]}": ("what listens there did not answer", ("nanny",)),
        }
        started = {
            address: launch_all(site, address, "--death-timeout", "3s", kinds=kinds)
            for address, (_, kinds) in cases.items()
        }
        for programs in started.values():
            for program in programs.values():
                program.wait_for("Start worker at: ")  # how long the start takes is up to the machine
        since = time.monotonic()
        for address, programs in started.items():
            all_end(programs, 3, 8, since, "Not connected: ", complaint("no scheduler for 3 s: "), ENDED)
            assert {cases[address][0] in program.errors[-1] for program in programs.values()} == {True}


def test_a_signal_while_there_is_no_scheduler_is_obeyed_at_once(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        programs = launch_all(site, "127.0.0.1:1")
        for kind, program in programs.items():
            until(lambda: lines_with(program, "Not connected: ") >= len(NAMES[kind]), 10, "it waits")  # noqa: B023
        since = time.monotonic()
        for program in programs.values():
            program.process.send_signal(signal.SIGTERM)
        all_end(programs, 0, 1, since, r"Not connected: ")


def test_an_idle_cluster_ends_by_itself_if_it_is_to(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler("--idle-timeout", "2s")
        with Client(boss.address) as client:
            # What waits for a worker, and what runs for longer than that, is work.
            future = client.submit(time.sleep, 2.5)
            programs = start_all(site, boss.address)
            assert future.result(timeout=10) is None
            del future
        since = time.monotonic()
        all_end({**programs, "scheduler": boss.program}, 0, 6, since)
        assert time.monotonic() - since >= 1.5
        assert "no work for 2 s" in boss.program.errors[-1]


# ------------------------------------------------------------------------------------------ refusals and resources


def test_a_name_that_is_taken_is_refused_with_status_4(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        start_all(site, boss.address)
        since = time.monotonic()
        programs = start_all(site, boss.address)
        all_end(programs, 4, 5, since, complaint(".*is taken by the worker at"), ENDED)


@pytest.mark.parametrize("option", ["--worker-port", "--nanny-port"])
def test_a_port_in_use_is_status_4(tmp_path: Path, option: str) -> None:
    with open_site(tmp_path) as site, socket.create_server(("127.0.0.1", 0)) as taken:
        boss = site.scheduler()
        port = taken.getsockname()[1]
        kinds = ("lone", "nanny") if option == "--worker-port" else ("nanny",)
        since = time.monotonic()
        programs = start_all(site, boss.address, option, str(port), kinds=kinds)
        all_end(programs, 4, 3, since, complaint(f".*{port}"), ENDED)


def take_two_ports() -> tuple[socket.socket, socket.socket]:
    """Two ports of loopback, one after the other, that are listened on."""
    for first in range(20_000, 30_000, 7):
        try:
            one = socket.create_server(("127.0.0.1", first))
        except OSError:
            continue
        try:
            return one, socket.create_server(("127.0.0.1", first + 1))
        except OSError:
            one.close()
    raise AssertionError("no two free ports")


@pytest.mark.parametrize("option", ["--worker-port", "--nanny-port"])
def test_a_range_of_ports_that_are_all_in_use_is_status_4(tmp_path: Path, option: str) -> None:
    one, two = take_two_ports()
    with open_site(tmp_path) as site, one, two:
        boss = site.scheduler()
        first = one.getsockname()[1]
        kinds = ("lone", "nanny") if option == "--worker-port" else ("nanny",)
        since = time.monotonic()
        programs = start_all(site, boss.address, option, f"{first}:{first + 1}", kinds=kinds)
        words = f".*all ports from {first} to {first + 1} are in use"
        all_end(programs, 4, 3, since, complaint(words), ENDED)


def test_workers_share_a_range_of_ports_and_one_that_is_killed_finds_another(tmp_path: Path) -> None:
    one, two = take_two_ports()
    first = one.getsockname()[1]
    two.close()
    with open_site(tmp_path) as site, one:  # the first of the range is taken, the second is free
        boss = site.scheduler()
        ports = (f"{first}:{first + 9}", f"{first + 10}:{first + 19}")
        options = ("--worker-port", ports[0], "--nanny-port", ports[1], "--restart-backoff", "0.1s:0.1s")
        program = site.worker(boss.address, "--nworkers", "2", *options)
        with Client(boss.address) as client:

            def listening() -> list[int]:
                return sorted(int(address.rpartition(":")[2]) for address in client.run(os.getpid) or {})

            client.wait_for_workers(2, timeout=30)
            before = listening()
            assert all(first < port <= first + 9 for port in before)
            pids = client.run(os.getpid) or {}
            victim = min(pids, key=lambda address: int(address.rpartition(":")[2]))
            os.kill(pids[victim], signal.SIGKILL)

            def replaced() -> bool | set[int]:
                now = client.run(os.getpid, on_error="ignore") or {}
                return len(now) == 2 and set(now.values()) - set(pids.values())

            until(replaced, 20, "a new process in the place of the one that was killed")
            assert all(first < port <= first + 9 for port in listening())
        assert "CancelScope" not in "".join(program.errors)


def test_a_scheduler_port_in_use_is_status_4(tmp_path: Path) -> None:
    with open_site(tmp_path) as site, socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        since = time.monotonic()
        files = ["--scheduler-file", "s.json", "--pid-file", "s.pid"]
        program = site.start("scheduler", "--host", "127.0.0.1", "--port", port, *files)
        all_end({"scheduler": program}, 4, 3, since, rf"python -m trio_dask scheduler: .*{port}")


# ------------------------------------------------------------------------------------------------- planned ends


def test_the_end_of_a_lifetime(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        since = time.monotonic()
        programs = start_all(site, boss.address, "--lifetime", "1s", "--drain-timeout", "1s")
        all_end(programs, 0, 8, since)
        assert time.monotonic() - since >= 1


def test_a_lifetime_after_which_another_worker_follows(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        program = site.worker(boss.address, "--name", "phoenix", "--lifetime", "1s", "--lifetime-restart")
        until(lambda: sum("Registered to:" in line for line in program.errors) >= 2, 15, "a second worker")
        since = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        all_end({"phoenix": program}, 0, 3, since)


def test_the_end_after_so_many_tasks(tmp_path: Path) -> None:
    """Without a nanny that is all; with one another worker follows. What they computed is handed on."""
    log = str(tmp_path / "log")
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        programs = start_all(site, boss.address, "--max-tasks", "3", kinds=("lone", "nanny"))
        with Client(boss.address) as client:
            names = ["lone"] * 3 + ["nanny"] * 9
            site.worker(boss.address, "--name", "keeper")
            calls = [client.submit(tasks.work, log, n, 0.01, n, workers=[name]) for n, name in enumerate(names)]
            assert client.gather(calls) == list(range(12))
            all_end({"lone": programs["lone"]}, 0, 5, time.monotonic())
            assert client.gather(calls) == list(range(12))
        assert set(tasks.executions(log).values()) == {1}
        assert len({line.split()[1] for line in tasks.lines_of(log)}) == 4
        programs["nanny"].stop(signal.SIGTERM)
        says_only_what_was_promised(programs["nanny"])


# ----------------------------------------------------------------------------------------- the death of the launcher


@pytest.mark.parametrize("task", ["children", "interpreter", "drain"])
def test_nothing_is_left_one_second_after_the_launcher_was_killed(tmp_path: Path, task: str) -> None:
    """The last one is what batch systems do: first they ask, and then they kill."""
    with open_site(tmp_path) as site:
        boss = site.scheduler()
        launcher = start_all(site, boss.address, kinds=("two",))["two"]
        with Client(boss.address) as client:
            log = tmp_path / "log"
            if task != "interpreter":
                futures = keep_busy(client, log, ("two",))
            else:
                futures = hold_interpreters(client, log, NAMES["two"])
            assert len(site.processes()) >= 6
            if task == "drain":
                launcher.process.send_signal(signal.SIGTERM)
                launcher.wait_for("^Stopping: the launcher received")
            launcher.process.kill()
            until(lambda: pids(site) == [boss.program.process.pid], 1, "nothing is left")
            launcher.end()
            del futures
