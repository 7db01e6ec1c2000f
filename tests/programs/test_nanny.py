"""`dask-worker` with nannies, as a user runs it: crashes, kills, stops, and what is left afterwards."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.programs.programs import Program, children, program, scheduler, survivors, until
from trio_dask import Client, KilledWorker, NoScheduler, RefusedError, UsageError, get_worker, rpc, worker_client
from trio_dask.deploy.program_runner import SAME_REQUEST_S

pytestmark = pytest.mark.slow

SCHEDULER_AT = r"^Scheduler at:   (tcp://127\.0\.0\.1:\d+)$"
NANNY_AT = r"^Start nanny at: (tcp://127\.0\.0\.1:\d+)$"
WORKER_AT = r"^Start worker at: (tcp://127\.0\.0\.1:\d+)$"
REGISTERED = r"^Registered to: (tcp://127\.0\.0\.1:\d+)$"


@pytest.fixture
def boss() -> Iterator[str]:
    """The address of a scheduler, which ends well."""
    with scheduler() as running:
        yield running.wait_for(SCHEDULER_AT)
        assert running.stop(signal.SIGTERM) == 0
        assert "Traceback" not in running.text


def nannies(address: str, *arguments: str, **options: Any) -> AbstractContextManager[Program]:
    """A `dask-worker` with one thread for each worker."""
    return program("-m", "trio_dask", "worker", address, "--nthreads", "1", *arguments, **options)


def count(running: Program, pattern: str) -> int:
    return sum(re.search(pattern, line) is not None for line in running.errors)


def has_registered(running: Program, times: int) -> bool:
    return count(running, REGISTERED) == times


def worker_processes(running: Program) -> list[psutil.Process]:
    """The processes that run tasks: below the launcher stand guards, and below these the workers."""
    return [worker for guard in psutil.Process(running.process.pid).children() for worker in guard.children()]


def start_processes() -> list[int]:
    """A task: start processes in our group and out of it, and an orphan."""
    script = "import os, sys, time; print(os.getpid(), flush=True); os.close(1); time.sleep(1000)"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session=True)"
    pids = []
    for code, own_session in ((script, False), (script, True), (orphan, False)):
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=own_session)
        assert process.stdout is not None
        pids.append(int(process.stdout.readline()))
    return pids


def take_a_second() -> str:
    time.sleep(1.0)
    return "done"


def hold_the_interpreter() -> None:
    sum(range(10**12))


def test_workers_join_under_their_names_and_leave_in_good_order(boss: str) -> None:
    with nannies(boss, "--nworkers", "3", "--name", "w") as running:
        until(lambda: count(running, REGISTERED) == 3)
        with Client(boss) as client:
            workers = client.scheduler_info()["workers"]
            assert sorted(worker["name"] for worker in workers.values()) == ["w-0", "w-1", "w-2"]
            assert client.gather(client.map(pow, range(9), [2] * 9)) == [x**2 for x in range(9)]
        processes = children(running.process.pid)
        assert len(processes) == 6
        assert running.stop(signal.SIGTERM) == 0
        assert count(running, WORKER_AT) == count(running, NANNY_AT) == 3
        assert survivors(processes, 0) == []
    assert "Traceback" not in running.text
    assert running.output == []


def test_a_worker_that_is_killed_is_back_and_its_task_runs_again(boss: str) -> None:
    with nannies(boss, "--restart-backoff", "50ms") as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        (worker,) = worker_processes(running)
        future = client.submit(time.sleep, 1.0, key="nap")
        time.sleep(0.5)
        worker.kill()
        assert future.result(timeout=15) is None
        assert running.wait_for(rf"Worker \S+ \(pid {worker.pid}\) died: killed by SIGKILL; restarting it")
        assert count(running, REGISTERED) == 2
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("status", [0, 3])
def test_a_task_that_ends_its_process_is_to_blame_whatever_status_it_gives(boss: str, status: int) -> None:
    """As a library may that it calls. With 0 a worker has left in good order, with 3 it has found no scheduler."""
    with nannies(boss, "--restart-backoff", "50ms") as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        with pytest.raises(KilledWorker, match=f"ended with status {status}"):
            client.submit(os._exit, status).result(timeout=45)
        assert client.submit(abs, -1).result(timeout=45) == 1
        assert running.stop(signal.SIGTERM) == 0


def sum_here(numbers: list[int]) -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(abs, numbers)))


def test_the_last_task_of_a_worker_can_wait_for_tasks_that_only_its_successor_runs(boss: str) -> None:
    with nannies(boss, "--max-tasks", "1", "--drain-timeout", "60") as running, Client(boss) as client:
        assert client.submit(sum_here, [-1, -2]).result(timeout=45) == 3
        assert running.stop(signal.SIGTERM) == 0


def test_what_a_dead_worker_leaves_behind_is_ended(boss: str) -> None:
    with nannies(boss) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        started = [psutil.Process(pid) for pid in client.submit(start_processes).result(timeout=15)]
        worker_processes(running)[0].kill()
        assert survivors(started, 1) == []


@pytest.mark.parametrize("task", [None, hold_the_interpreter], ids=["idle", "interpreter held"])
def test_nothing_is_left_when_the_launcher_is_killed(boss: str, task: Callable[[], object] | None) -> None:
    with nannies(boss, "--nworkers", "2") as running, Client(boss) as client:
        until(lambda: count(running, REGISTERED) == 2)
        pids = client.submit(start_processes).result(timeout=15)
        if task is not None:
            held = [client.submit(task, key=f"hold {number}") for number in range(2)]
            time.sleep(0.5)
            assert {future.status for future in held} == {"pending"}
        processes = [*children(running.process.pid), *map(psutil.Process, pids)]
        running.process.kill()
        assert survivors(processes, 1) == []


def test_nothing_is_left_when_a_guard_is_killed(boss: str) -> None:
    with nannies(boss, "--restart-backoff", "50ms") as running:
        running.wait_for(REGISTERED)
        (worker,) = worker_processes(running)
        guard = worker.parent()
        assert guard is not None
        guard.kill()
        assert survivors([worker], 1) == []
        until(lambda: count(running, REGISTERED) == 2)
        assert running.stop(signal.SIGTERM) == 0


PRELOADS = {
    "import": "\nraise RuntimeError('the disk is missing')\n",
    "setup": "def dask_setup(worker):\n    raise RuntimeError('the disk is missing')\n",
}


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize("kind", PRELOADS)
def test_a_preload_that_raises_ends_the_program_with_status_1_and_one_line(
    boss: str, tmp_path: Path, nanny: str, kind: str
) -> None:
    (tmp_path / "broken.py").write_text(PRELOADS[kind])
    with nannies(boss, "--preload", "broken.py", nanny, cwd=tmp_path) as running:
        assert running.end() == 1
    assert running.errors[-1].endswith(f"raised RuntimeError: the disk is missing ({tmp_path / 'broken.py'}:2)")
    assert "Traceback" not in running.text
    assert count(running, "restarting it") == 0
    assert running.text.count("missing") == 1
    with nannies(boss, "--preload", "broken.py", nanny, "--debug", cwd=tmp_path) as running:
        assert running.end() == 1
    assert "Traceback" in running.text


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_setup_of_a_preload_comes_before_the_tasks_and_teardown_at_the_end(
    boss: str, tmp_path: Path, nanny: str, number: int
) -> None:
    log = tmp_path / "log"
    (tmp_path / "its.py").write_text(
        f"def note(text): print(text, file=open({str(log)!r}, 'a'))\n"
        "def dask_setup(worker): worker.state['model'] = 42; note(f'set up {worker.nthreads}')\n"
        "async def dask_teardown(worker): note(f'torn down {worker.name}')\n"
    )
    options = ("--preload", "its.py", nanny, "--name", "alice")
    with nannies(boss, *options, cwd=tmp_path) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        assert client.submit(lambda: get_worker().state["model"]).result(timeout=15) == 42
        assert log.read_text() == "set up 1\n"
        assert running.stop(number) == 0
    assert log.read_text() == "set up 1\ntorn down alice\n"


def test_an_interpreter_that_does_not_come_up_is_status_5_with_its_own_words(boss: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif any('child_main.py' in word for word in sys.orig_argv):\n"
        "    os.write(2, b'no licence\\n'); os._exit(77)\n"
    )
    with nannies(boss, "--env", f"PYTHONPATH={tmp_path}") as running:
        assert running.end() == 5
    assert "ended with status 77 before it was ready: no licence" in running.errors[-1]


def test_a_worker_that_keeps_being_killed_ends_in_status_5(boss: str) -> None:
    with nannies(boss, "--max-restarts", "2", "--restart-backoff", "20ms") as running:
        for number in range(1, 4):
            until(partial(has_registered, running, number))
            worker_processes(running)[0].kill()
        assert running.end() == 5
    assert "crashed 3 times within 60 s; first: killed by SIGKILL" in running.errors[-1]
    assert "Traceback" not in running.text


def test_a_task_that_takes_too_much_memory_ends_in_its_own_error(boss: str) -> None:
    def grow() -> None:
        blocks = []
        while True:
            blocks.append(b"x" * 10**7)
            time.sleep(0.02)

    with nannies(boss, "--memory-limit", "200MiB", "--restart-backoff", "20ms") as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        with pytest.raises(KilledWorker, match=r"it used \d+ MiB, more than 95% of its memory limit of 200 MiB"):
            client.submit(grow).result(timeout=50)
        assert client.submit(pow, 2, 3).result(timeout=15) == 8
        assert running.stop(signal.SIGTERM) == 0


def test_a_crash_in_foreign_code_is_told_with_its_place(boss: str) -> None:
    def crash() -> None:
        import ctypes

        ctypes.string_at(0)

    with nannies(boss, "--restart-backoff", "20ms") as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        with pytest.raises(KilledWorker, match="killed by SIGSEGV in string_at"):
            client.submit(crash).result(timeout=50)
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_running_task_finish_and_its_result_survive(boss: str, number: int) -> None:
    with nannies(boss) as leaving, Client(boss) as client:
        leaving.wait_for(REGISTERED)
        future = client.submit(take_a_second)
        time.sleep(0.5)
        with nannies(boss) as staying:
            staying.wait_for(REGISTERED)
            assert leaving.stop(number) == 0
            assert future.result(timeout=10) == "done"
            assert staying.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_a_task_ends_by_a_signal_is_started_again(boss: str, number: int) -> None:
    def end_the_worker() -> int:
        os.kill(os.getpid(), number)
        return os.getpid()

    with nannies(boss) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        first = client.submit(end_the_worker).result(timeout=15)
        until(partial(has_registered, running, 2))
        assert client.submit(os.getpid).result(timeout=15) != first
        assert running.stop(signal.SIGTERM) == 0
        assert has_registered(running, 2)


def test_a_batch_system_may_signal_every_process(boss: str) -> None:
    """As systemd and Slurm do: the workers hear of it from two sides, and drain all the same."""
    with nannies(boss, "--nworkers", "2") as running, Client(boss) as client:
        until(lambda: count(running, REGISTERED) == 2)
        future = client.submit(take_a_second, key="slow")
        client.submit(pow, 2, 2)
        time.sleep(0.4)
        for process in [*children(running.process.pid), psutil.Process(running.process.pid)]:
            process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert "killed" not in running.text
        del future


def test_a_second_signal_is_at_once(boss: str) -> None:
    with nannies(boss) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        future = client.submit(time.sleep, 1000)
        time.sleep(0.4)
        processes = children(running.process.pid)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("^Stopping: received SIGTERM")
        time.sleep(2 * SAME_REQUEST_S)
        began = time.monotonic()
        running.stop(signal.SIGTERM)
        assert time.monotonic() - began < 2
        assert survivors(processes, 1) == []
        future.cancel()


def test_a_scheduler_that_stops_takes_everything_along(boss: str) -> None:
    with scheduler() as other, nannies(other.wait_for(SCHEDULER_AT), "--nworkers", "2") as running:
        until(lambda: count(running, REGISTERED) == 2)
        assert other.stop(signal.SIGTERM) == 0
        assert running.end() == 0
    assert "Traceback" not in running.text


def test_the_death_timeout_holds_for_a_worker_whose_interpreter_is_held(boss: str) -> None:
    with scheduler() as other:
        address = other.wait_for(SCHEDULER_AT)
        with nannies(address, "--death-timeout", "2s") as running, Client(address) as client:
            running.wait_for(REGISTERED)
            client.submit(hold_the_interpreter)
            time.sleep(0.4)
            processes = children(running.process.pid)
            other.stop(signal.SIGKILL)
            began = time.monotonic()
            assert running.end() == 3
            assert 2 <= time.monotonic() - began < 4.5
            assert survivors(processes, 0) == []
    assert "no scheduler for 2 s" in running.errors[-1]


def test_after_so_many_tasks_another_worker_follows(boss: str) -> None:
    with nannies(boss, "--max-tasks", "3", "--name", "m") as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        assert [client.submit(pow, x, 2).result(timeout=15) for x in range(7)] == [x**2 for x in range(7)]
        until(lambda: count(running, REGISTERED) >= 3)
        assert "died" not in running.text
        assert running.stop(signal.SIGTERM) == 0


def test_a_lifetime_ends_the_program_or_is_followed_by_another(boss: str) -> None:
    with nannies(boss, "--lifetime", "1s") as running:
        running.wait_for(REGISTERED)
        assert running.end() == 0
    with nannies(boss, "--lifetime", "1s", "--lifetime-restart") as running:
        until(lambda: count(running, REGISTERED) >= 2)
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_the_environment_and_the_preload_are_there_before_the_tasks(boss: str, tmp_path: Path, nanny: str) -> None:
    text = "import os, sys\nseen = [*sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['MINE']]\n"
    (tmp_path / "first.py").write_text(text)

    def look() -> tuple[str, str, list[str], bool]:
        seen = importlib.import_module("first").seen
        return os.environ["OMP_NUM_THREADS"], os.environ["MINE"], seen, "MALLOC_TRIM_THRESHOLD_" in os.environ

    options = [nanny, "--preload", "first.py", "--env", "MINE=yes", "a", "b"]
    with nannies(boss, *options, cwd=tmp_path) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        # Without a nanny it is our own process, whose allocator has read its variables before.
        expected = ("1", "yes", ["a", "b", "1", "yes"], nanny == "--nanny")
        assert client.submit(look).result(timeout=15) == expected
        assert running.stop(signal.SIGTERM) == 0


# ------------------------------------------------------------------------------------------------------------ rpc


def test_scheduler_nanny_and_worker_can_be_asked(boss: str) -> None:
    with nannies(boss, "--name", "bob") as running:
        running.wait_for(REGISTERED)
        nanny, worker = running.wait_for(NANNY_AT), running.wait_for(WORKER_AT)
        with rpc(boss) as asked:
            assert asked.identity()["type"] == "scheduler"
            assert (asked.identity()["address"], asked.identity()["workers"]) == (boss, (worker,))
            assert asked.status()["workers"] == 1
        with rpc(nanny) as asked:
            (process,) = worker_processes(running)
            assert (asked.identity()["type"], asked.identity()["worker"]) == ("nanny", worker)
            assert asked.identity()["pid"] == running.process.pid
            assert (asked.status()["status"], asked.status()["worker_pid"]) == ("running", process.pid)
        with rpc(worker) as asked:
            assert (asked.identity()["type"], asked.identity()["name"]) == ("worker", "bob")
            assert (asked.identity()["pid"], asked.identity()["nanny"]) == (process.pid, nanny)
            assert asked.status()["status"] == "running"
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("who", ["scheduler", "nanny", "worker"])
def test_a_restart_gives_another_process(boss: str, who: str) -> None:
    with nannies(boss) as running, Client(boss) as client:
        running.wait_for(REGISTERED)
        addresses = {"scheduler": boss, "nanny": running.wait_for(NANNY_AT), "worker": running.wait_for(WORKER_AT)}
        (before,) = worker_processes(running)
        with rpc(addresses[who]) as asked:
            asked.restart()
        until(lambda: count(running, REGISTERED) == 2)
        (after,) = worker_processes(running)
        assert after.pid != before.pid
        assert client.submit(pow, 2, 3).result(timeout=15) == 8
        assert "died" not in running.text
        assert running.stop(signal.SIGTERM) == 0


def test_a_restart_ends_a_worker_that_no_nanny_starts_again(boss: str) -> None:
    with (
        nannies(boss, "--name", "kept") as kept,
        nannies(boss, "--no-nanny", "--name", "lone") as lone,
        nannies(boss, "--no-nanny", "--name", "asked") as asked,
        Client(boss) as client,
    ):
        for running in (kept, lone, asked):
            running.wait_for(REGISTERED)
        with rpc(asked.wait_for(WORKER_AT)) as worker:
            worker.restart()
        assert asked.end() == 0
        with pytest.raises(TimeoutError, match=r"these have no nanny, .*: lone$"):
            client.restart(timeout=5)
        assert lone.end() == 0
        assert lone.text.count("and no nanny starts this worker again") == 1
        until(lambda: count(kept, REGISTERED) == 2)
        assert client.submit(pow, 2, 3).result(timeout=15) == 8
        assert len(client.nthreads()) == 1
        assert kept.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("who", ["nanny", "worker"])
def test_terminate_ends_the_program_well(boss: str, who: str) -> None:
    with nannies(boss) as running:
        running.wait_for(REGISTERED)
        with rpc(running.wait_for(NANNY_AT if who == "nanny" else WORKER_AT)) as asked:
            asked.terminate()
        assert running.end() == 0
    assert "Traceback" not in running.text


def test_a_scheduler_can_be_terminated_and_all_leave() -> None:
    with scheduler() as other:
        address = other.wait_for(SCHEDULER_AT)
        with nannies(address) as running:
            running.wait_for(REGISTERED)
            with rpc(address) as asked:
                asked.terminate()
            assert other.end() == 0
            assert running.end() == 0


async def test_rpc_is_native_in_trio_and_says_what_is_wrong(boss: str) -> None:
    async with rpc(boss) as asked:
        assert (await asked.identity())["type"] == "scheduler"
        assert (await asked.status())["status"] == "running"
        with pytest.raises(RefusedError, match="no command 'nonsense' here"):
            await asked._ask("nonsense")
    with pytest.raises(UsageError, match=r"use `async with rpc\("), rpc(boss):
        pass
    with pytest.raises(NoScheduler, match=r"nothing to ask at tcp://127.0.0.1:1: .*nothing listens there"):
        async with rpc("127.0.0.1:1"):
            pass
