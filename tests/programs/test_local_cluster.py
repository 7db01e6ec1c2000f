"""Clusters of real processes, used as scripts use them; whatever happens, nothing is left."""

import logging
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.programs.programs import Program, children, environment, program, survivors
from trio_dask import Client, ClusterError, LocalCluster, open_local_cluster
from trio_dask.deploy import cluster_members
from trio_dask.deploy.local_cluster import AsyncLocalCluster
from trio_dask.nanny import service
from trio_dask.processes.child_process import ChildSpec
from trio_dask.processes.clone_parent import can_fork_sibling
from trio_dask.processes.environment import raise_file_limit

pytestmark = pytest.mark.slow


PROCESSES = 5 + can_fork_sibling()
"""Of a cluster of two: a scheduler, two workers with a guard each, and perhaps a fork server."""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every process that a test of this file started is gone at its end."""
    before = set(children(os.getpid()))
    yield
    assert survivors([child for child in children(os.getpid()) if child not in before]) == []


def pids_of(cluster: LocalCluster | AsyncLocalCluster) -> list[int]:
    return [worker.pid for worker in cluster.workers.values() if worker.pid is not None]


async def test_a_cluster_is_ready_when_its_block_begins_and_gone_when_it_ends() -> None:
    async with open_local_cluster(2, 1) as cluster:
        processes = children(os.getpid())
        assert len(processes) == PROCESSES
        assert {worker.address is not None for worker in cluster.workers.values()} == {True}
        assert sorted(pids_of(cluster)) == sorted({process.pid for process in processes} & set(pids_of(cluster)))
        async with cluster.get_client() as client:
            assert await client.gather(client.map(pow, range(100), [2] * 100)) == [x**2 for x in range(100)]
    assert survivors(processes, 0) == []


async def test_workers_that_are_restarted_by_name_or_number_are_new_processes() -> None:
    async with open_local_cluster(2, 1) as cluster, cluster.get_client() as client:
        before = set(pids_of(cluster))
        assert await client.restart_workers([1, "0"], timeout=60) == {1: "OK", "0": "OK"}
        after = set(pids_of(cluster))
        assert len(after) == 2
        assert not before & after


@pytest.mark.parametrize("fork_server", ["0", "1"])
async def test_a_program_with_very_many_open_files_can_have_a_cluster(
    monkeypatch: pytest.MonkeyPatch, fork_server: str
) -> None:
    """Pipes to workers then have numbers above 1023, which `select` does not take. A hundred workers do the same."""
    monkeypatch.setenv("TRIO_DASK_FORK_SERVER", fork_server)
    raise_file_limit(4096)
    with ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        async with open_local_cluster(1, 1) as cluster, cluster.get_client() as client:
            assert await client.submit(pow, 2, 3) == 8


async def test_everything_listens_on_loopback_alone() -> None:
    async with open_local_cluster(2, 1):
        listening = [
            connection.laddr.ip
            for process in children(os.getpid())
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 3
        assert set(listening) == {"127.0.0.1"}


async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_local_cluster(1, 1):
            raise KeyError("mine")
    with trio.move_on_after(1e9) as scope:
        async with open_local_cluster(1, 1):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_scaling_up_and_down() -> None:
    async with open_local_cluster(1, 1) as cluster, cluster.get_client() as client:
        cluster.scale(3)
        await cluster.wait_for_workers(timeout=20)
        assert len(await client.nthreads()) == 3
        gone = pids_of(cluster)[1:]
        cluster.scale(1)
        assert len(cluster.workers) == 1
        while len(await client.nthreads()) > 1:  # noqa: ASYNC110 - they say goodbye to the scheduler, not to us
            await trio.sleep(0.01)
        assert survivors([psutil.Process(pid) for pid in gone if psutil.pid_exists(pid)]) == []
        assert await client.submit(pow, 2, 3) == 8
        with pytest.raises(TimeoutError, match="fewer than 2 workers after"):
            await cluster.wait_for_workers(2, timeout=0.1)


async def test_a_worker_that_is_killed_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async with open_local_cluster(2, 1) as cluster, cluster.get_client() as client:
        for _ in range(3):
            victim = cluster.workers["0"]
            assert victim.pid
            os.kill(victim.pid, signal.SIGKILL)
            while victim.address is not None:  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.001)
            await cluster.wait_for_workers(2, timeout=20)
        assert await client.gather(client.map(pow, range(10), [3] * 10)) == [x**3 for x in range(10)]
    assert "killed by SIGKILL; restarting it" in caplog.text


async def test_a_worker_that_is_told_to_stop_behind_the_clusters_back_is_followed_by_another() -> None:
    """A task may do so, or the user's own `kill`; the cluster has as many workers as it was asked for all the same."""
    async with open_local_cluster(1, 1) as cluster, cluster.get_client() as client:
        (pid,) = pids_of(cluster)
        os.kill(pid, signal.SIGTERM)
        with trio.fail_after(20):
            while pids_of(cluster) == [pid]:  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.01)
            await cluster.wait_for_workers(1)
            assert await client.submit(os.getpid, pure=False) != pid


def scheduler_of(cluster: LocalCluster | AsyncLocalCluster) -> psutil.Process:
    """The process among our children that is no worker, nor the guard of one, nor what they are forked from."""
    guards = {psutil.Process(pid).ppid() for pid in pids_of(cluster)}
    others = [process for process in psutil.Process().children() if process.pid not in guards]
    (found,) = [process for process in others if not process.cmdline()[-1].endswith("-fork-server")]
    return found


async def test_a_scheduler_that_dies_ends_the_block() -> None:
    async def block() -> None:
        async with open_local_cluster(1, 1) as cluster:
            scheduler_of(cluster).kill()
            await trio.sleep_forever()

    with pytest.raises(ClusterError, match="the scheduler of this cluster was killed by SIGKILL"):
        await block()


async def test_a_shutdown_by_a_client_is_no_failure() -> None:
    async with open_local_cluster(2, 1) as cluster:
        processes = children(os.getpid())
        async with cluster.get_client() as client:
            await client.shutdown()
        # In a thread: the nannies live in this loop, and the scheduler waits for their goodbye.
        assert await trio.to_thread.run_sync(survivors, processes) == []


async def test_closing_early_and_twice() -> None:
    async with open_local_cluster(1, 1) as cluster:
        await cluster.aclose()
        await cluster.aclose()
        assert children(os.getpid()) == []
        with pytest.raises(ClusterError, match="closed"):
            _ = cluster.scheduler_address


async def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            async with open_local_cluster(1, 1, scheduler_port=port):
                pass


@pytest.mark.parametrize("who", ["scheduler", "worker"])
async def test_a_member_that_cannot_start_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    if who == "scheduler":
        made = ChildSpec
        monkeypatch.setattr(
            cluster_members, "ChildSpec", lambda **fields: made(**{**fields, "settings": {"no_such_setting": 1}})
        )
    else:
        monkeypatch.setattr(service, "to_json", lambda settings: {"no_such_setting": 1})
    with pytest.raises(ClusterError, match=rf"(?s)-{who}.*has no setting 'no_such_setting'"):
        async with open_local_cluster(1, 1):
            pass


def test_blocking_code_has_the_same_cluster() -> None:
    with LocalCluster(2, 1) as cluster:
        processes = children(os.getpid())
        with cluster.get_client() as client:
            assert client.submit(sum, client.map(abs, [-1, -2, 3])).result(timeout=10) == 6
            cluster.scale(3)
            cluster.wait_for_workers(3, timeout=20)
            assert len(client.nthreads()) == 3
        assert "3 workers" in repr(cluster)
    assert survivors(processes, 0) == []
    cluster.close()
    with pytest.raises(ClusterError, match="closed"):
        cluster.scale(1)


@pytest.mark.parametrize("silence", [logging.WARNING, False])
def test_processes_keep_the_lines_that_they_do_not_write(
    capsys: pytest.CaptureFixture[str], silence: int | bool
) -> None:
    with LocalCluster(1, 1, silence_logs=silence) as cluster:
        logs = cluster.get_logs()
        (address,) = (worker.address for worker in cluster.workers.values())
        assert "Scheduler at:" in logs["Scheduler"]
        assert "Registered to:" in logs[address]
    assert ("Registered to:" in capsys.readouterr().err) is (silence is False)


def test_a_client_without_an_address_has_a_cluster_of_its_own() -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        processes = children(os.getpid())
        assert client.submit(pow, 2, 10).result(timeout=10) == 1024
    assert survivors(processes, 0) == []


def test_blocking_code_hears_of_the_end_of_the_scheduler() -> None:
    def block() -> None:
        with LocalCluster(1, 1) as cluster:
            scheduler_of(cluster).kill()
            cluster.wait_for_workers(2, timeout=20)

    with pytest.raises(ClusterError, match="was killed by SIGKILL"):
        block()


def test_a_cluster_that_cannot_be_started_is_an_error_of_its_constructor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ClusterError, match="cannot listen"):
        LocalCluster(1, 1, scheduler_port=taken.getsockname()[1])


# ------------------------------------------------------------------------------------------------------- scripts


def script(tmp_path: Path, text: str, *arguments: str, **options: Any) -> AbstractContextManager[Program]:
    """A running script of a user, who thinks of no main guard."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return program(str(path), *arguments, cwd=options.pop("cwd", tmp_path), **options)


def test_a_script_needs_no_main_guard_and_ends_in_silence(tmp_path: Path) -> None:
    text = """
        from trio_dask import Client
        factor = 3
        def times(x):
            return factor * x
        client = Client(n_workers=2, threads_per_worker=1)
        print(client.gather(client.map(times, range(5))))
        client.close()
    """
    with script(tmp_path, text) as running:
        assert running.end() == 0
    assert running.output == ["[0, 3, 6, 9, 12]"]
    assert running.errors == []


def test_what_tasks_print_appears_once_where_workers_write_to_the_same_place(tmp_path: Path) -> None:
    text = """
        import io, sys
        import trio_dask
        from trio_dask import Client
        with Client(n_workers=1, threads_per_worker=1) as client:
            client.submit(lambda: print("one"), output="forward").result()
            client.submit(lambda: trio_dask.print("two")).result()
            sys.stdout = shown = io.StringIO()
            client.submit(lambda: trio_dask.print("three")).result()
            sys.stdout = sys.__stdout__
            print("shown:", shown.getvalue().strip())
    """
    with script(tmp_path, text) as running:
        assert running.end() == 0
    assert running.output == ["one", "two", "three", "shown: three"]


def test_a_script_whose_tasks_have_submitted_tasks_ends_in_silence(tmp_path: Path) -> None:
    """The clients on its workers lose the scheduler then, in any order."""
    text = """
        from trio_dask import Client, get_client
        def total(n):
            return get_client().submit(sum, range(n)).result()
        with Client(n_workers=2, threads_per_worker=1) as client:
            print(client.gather(client.map(total, range(5))))
    """
    with script(tmp_path, text) as running:
        assert running.end() == 0
    assert running.output == ["[0, 0, 1, 3, 6]"]
    assert running.errors == []


def test_a_script_that_closes_nothing_leaves_nothing(tmp_path: Path) -> None:
    text = """
        from trio_dask import LocalCluster
        cluster = LocalCluster(2, 1)
        print(*(worker.pid for worker in cluster.workers.values()), flush=True)
    """
    with script(tmp_path, text) as running:
        assert running.end() == 0
    assert running.errors == []
    pids = [int(word) for word in running.output[0].split()]
    assert survivors([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]) == []


def test_modules_beside_the_script_are_there_on_workers_too(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("def shout(text):\n    return text.upper()\n")
    text = """
        import helpers
        from trio_dask import Client
        with Client(n_workers=1, threads_per_worker=1) as client:
            print(client.submit(helpers.shout, "ready").result())
    """
    with script(tmp_path, text, cwd="/") as running:
        assert running.end() == 0, running.text
    assert running.output == ["READY"]


def test_code_from_the_command_line_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("def shout(text):\n    return text.upper()\n")
    text = (
        "from trio_dask import Client; import helpers\n"
        "with Client(n_workers=1, threads_per_worker=1) as client:\n"
        "    print(client.submit(lambda text: helpers.shout(text), 'ready').result())\n"
    )
    with program("-c", text, cwd=tmp_path) as running:
        assert running.end() == 0, running.text
    assert running.output == ["READY"]


def test_tasks_see_the_environment_of_the_program_and_print_where_it_prints(tmp_path: Path) -> None:
    text = """
        import os, sys
        from trio_dask import Client
        def look():
            print("printed", flush=True)
            print("complained", file=sys.stderr, flush=True)
            return os.environ.get("PYTHONPATH"), os.environ["MINE"], os.environ["OMP_NUM_THREADS"], sys.stdin.read()
        with Client(n_workers=1, threads_per_worker=1) as client:
            print(client.submit(look).result())
    """
    env = environment(MINE="yes")
    with script(tmp_path, text, env=env) as running:
        assert running.end() == 0, running.text
    assert running.output == ["printed", str((env["PYTHONPATH"], "yes", "1", ""))]
    assert running.errors == ["complained"]


BUSY = """
    import sys, time, os
    from trio_dask import Client
    def hold(kind):
        if kind == "python":
            while True: pass
        if kind == "interpreter":
            sum(range(10**12))
        if kind == "child":
            os.system("sleep 1000")
        time.sleep(1000)
    client = Client(n_workers=2, threads_per_worker=1)
    futures = [client.submit(hold, kind) for kind in sys.argv[1:]]
    time.sleep(0.3)
    print("busy", flush=True)
    client.gather(futures)
"""


@pytest.mark.parametrize(
    ("work", "number"),
    [
        ("sleep", signal.SIGKILL),
        ("python", signal.SIGKILL),
        ("interpreter", signal.SIGKILL),
        ("child", signal.SIGKILL),
        ("interpreter", signal.SIGTERM),
        ("child", signal.SIGINT),
    ],
)
def test_the_death_of_the_program_leaves_no_process(tmp_path: Path, work: str, number: signal.Signals) -> None:
    with script(tmp_path, BUSY, work) as running:
        running.wait_for("busy", running.output)
        processes = children(running.process.pid)
        assert len(processes) >= 3
        running.process.send_signal(number)
        if number != signal.SIGINT:
            assert running.end() == -number
        assert survivors(processes, 5) == []


def test_a_forked_child_of_the_program_does_not_keep_its_workers(tmp_path: Path) -> None:
    """It inherits the other ends of all pipes."""
    text = """
        import os, time
        from trio_dask import LocalCluster
        cluster = LocalCluster(2, 1)
        child = os.fork()
        if not child:
            time.sleep(1000)
        print(child, flush=True)
        time.sleep(1000)
    """
    with script(tmp_path, text) as running:
        fork = psutil.Process(int(running.wait_for(r"(\d+)", running.output)))
        processes = [process for process in children(running.process.pid) if process != fork]
        assert len(processes) == PROCESSES
        running.process.kill()
        try:
            assert survivors(processes, 5) == []
        finally:
            fork.kill()


def test_the_interpreter_is_the_one_of_the_program() -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        assert client.submit(lambda: __import__("sys").executable).result(timeout=10) == sys.executable
