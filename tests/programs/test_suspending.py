"""Ctrl-Z and `fg` in a terminal: what a program has started stops with it, and goes on with it."""

import os
import pty
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.programs import children, tasks
from tests.programs.programs import environment, scheduler, survivors, until
from trio_dask import Client
from trio_dask.processes import job_control
from trio_dask.processes.child_process import ChildSpec, run_child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

CTRL_C, CTRL_Z = b"\x03", b"\x1a"
BASH = shutil.which("bash")


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            os.execve(BASH or "bash", ["bash", "--norc", "-i"], environment())
        self.shell = psutil.Process(pid)
        self._output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._fd, 65536):
                self._output += data
        except OSError:  # how the end of a terminal is told
            pass

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait_for(self, *texts: str) -> None:
        until(lambda: all(text.encode() in self._output for text in texts), 20, ", ".join(texts))

    def close(self) -> None:
        left = self.shell.children(recursive=True)
        self.shell.kill()
        os.close(self._fd)
        self._reader.join(0.1)
        for process in left:
            if process.is_running():
                process.kill()
        os.waitpid(self.shell.pid, 0)
        self._reader.join()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    if BASH is None:
        pytest.skip("there is no bash")
    terminal = Terminal()
    yield terminal
    terminal.close()


def are_stopped(processes: list[psutil.Process]) -> bool:
    return all(process.status() == psutil.STATUS_STOPPED for process in processes)


def go_on(processes: list[psutil.Process]) -> bool:
    return not any(process.status() == psutil.STATUS_STOPPED for process in processes)


def stop_and_go_on(terminal: Terminal, log: Path, processes: list[psutil.Process]) -> None:
    """Ctrl-Z, a look at what happens meanwhile, `fg`."""
    until(lambda: tasks.lines_of(log), 20, "tasks run")
    terminal.type(CTRL_Z)
    terminal.wait_for("Stopped")
    until(lambda: are_stopped(processes), 2, "all have stopped")
    before = len(tasks.lines_of(log))
    time.sleep(0.3)
    assert len(tasks.lines_of(log)) == before
    terminal.type(b"fg\n")
    until(lambda: go_on(processes), 2, "all go on")


def test_the_workers_of_a_launcher_stop_and_go_on_with_it(terminal: Terminal, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with scheduler() as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        terminal.type(f"{sys.executable} -m trio_dask worker {address} --nworkers 2 --nthreads 1\n".encode())
        with Client(address) as client:
            client.wait_for_workers(2, timeout=20)
            workers = [psutil.Process(one["pid"]) for one in client.scheduler_info()["workers"].values()]
            (launcher,) = terminal.shell.children()
            futures = [client.submit(tasks.work, log, number, 0.02, number) for number in range(100)]
            stop_and_go_on(terminal, log, [launcher, *workers])
            assert client.gather(futures) == list(range(100))
            assert len(tasks.lines_of(log)) == 100  # nobody was given up, and nothing computed twice
        terminal.type(CTRL_C)
        until(lambda: survivors([launcher, *workers], 0) == [], 10, "Ctrl-C ends what went on")


def test_a_local_cluster_stops_and_goes_on_with_its_program(terminal: Terminal, tmp_path: Path) -> None:
    log, pids = tmp_path / "log", tmp_path / "pids"
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from tests.programs import children, tasks
            from trio_dask import Client, LocalCluster, rpc
            with LocalCluster(2, 1) as cluster, Client(cluster) as client, rpc(cluster) as boss:
                futures = [client.submit(tasks.work, {str(log)!r}, number, 0.02, number) for number in range(100)]
                pids = [boss.identity()["pid"], *(worker.pid for worker in cluster.workers.values())]
                open({str(pids)!r}, "w").write(" ".join(map(str, pids)))
                print("the sum is", sum(client.gather(futures)))
            """
        )
    )
    terminal.type(f"{sys.executable} {script}\n".encode())
    until(lambda: pids.exists() and pids.read_text(), 20, "the cluster is there")
    processes = [*terminal.shell.children(), *map(psutil.Process, map(int, pids.read_text().split()))]
    stop_and_go_on(terminal, log, processes)
    terminal.wait_for("the sum is 4950")
    assert len(tasks.lines_of(log)) == 100
    until(lambda: survivors(processes, 0) == [], 10, "the script has ended")


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_child_stops_with_what_it_has_started_and_goes_on(guarded: bool) -> None:
    spec = ChildSpec(name="child", program=children.well_behaved, settings={}, guarded=guarded)

    async def start(task_status: trio.TaskStatus[Any]) -> None:
        await run_child(spec, lambda child, report: task_status.started((child, report["started"])))

    async with trio.open_nursery() as nursery:
        child, started = await nursery.start(start)
        processes = [psutil.Process(pid) for pid in (child.pid, *started)]
        for _ in range(2):
            child.suspend()
            with trio.fail_after(2):
                while not are_stopped(processes):  # noqa: ASYNC110 - nothing says when
                    await trio.sleep(0.001)
            child.resume()
            with trio.fail_after(2):
                while not go_on(processes):  # noqa: ASYNC110 - nothing says when
                    await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    child.suspend()  # it has ended: this is nothing


def test_a_program_that_answers_ctrl_z_itself_goes_on_doing_so() -> None:
    own = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGTSTP, own)
    try:
        job_control.handle_ctrl_z()
        assert signal.getsignal(signal.SIGTSTP) is own
    finally:
        signal.signal(signal.SIGTSTP, before)
