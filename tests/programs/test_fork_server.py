"""Processes that a fork server has forked are as good as any; without it there are some as well."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import trio
import trio.testing

from tests.programs import children as behaviours
from tests.programs import onlookers
from tests.programs.programs import children, program, survivors
from trio_dask import open_local_cluster
from trio_dask.deploy import child_services
from trio_dask.processes import fork_server
from trio_dask.processes.child_process import Child, ChildSpec, run_child
from trio_dask.processes.clone_parent import can_fork_sibling
from trio_dask.processes.fork_server import ForkServer
from trio_dask.processes.spawn import start_by_exec

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_fork_sibling(), reason="no fork server here")]


@asynccontextmanager
async def serving(load: Callable[[], object] = child_services.load_worker) -> AsyncIterator[ForkServer]:
    """A fork server that is ready."""
    server = ForkServer("the fork server", load)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await server.wait_decided()
        yield server
        nursery.cancel_scope.cancel()


def spec(
    function: str, start: Any, *, where: ModuleType = onlookers, settings: dict[str, Any] | None = None, **options: Any
) -> ChildSpec:
    settings = settings or {}
    return ChildSpec(
        name="child", program=getattr(where, function), settings=settings, start=start, guarded=True, **options
    )


async def first_report(
    given: ChildSpec, *, then: Callable[[Child, Mapping[str, Any]], object] = lambda child, report: None
) -> Mapping[str, Any]:
    """What a child says first; then it is ended."""
    reports = []

    def heard(child: Child, report: Mapping[str, Any]) -> None:
        reports.append(report)
        then(child, report)
        child.leave()

    await run_child(given, heard)
    return reports[0]


def open_here() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_in(pid: int | None) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def replace(number: int, path: Path | str) -> None:
    """Have this file open by this number."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), number)


def zombies() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def is_forked(pid: int | None) -> bool:
    """Whether it shares the command line of a fork server."""
    return psutil.Process(pid).cmdline()[-1].endswith(("-fork-server", "the fork server"))


# --------------------------------------------------------------------------------------------- what is forked


async def test_a_forked_child_finds_what_one_started_by_exec_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the time of its own start, not at that of the server."""
    async with serving() as server:
        monkeypatch.setenv("LATE", "y\udcffs")
        monkeypatch.delenv("PATH")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path, "", "/no/such/folder"])
        inherited = os.open(os.devnull, os.O_RDONLY)
        options: dict[str, Any] = {"environment": {"GIVEN": "1"}, "inherit": (inherited,)}
        forked = await first_report(spec("looks_around", server.start, **options))
        executed = await first_report(spec("looks_around", start_by_exec, **options))
        os.close(inherited)
    assert forked["environment"]["LATE"] == "y\udcffs"
    assert forked["environment"]["GIVEN"] == "1"
    assert forked["folder"] == str(tmp_path)
    # What the server was started with, and what a nanny sets for each worker, is not there by itself.
    for same in ("environment", "folder", "path", "main", "descriptors", "signals", "nofile", "threads"):
        assert forked[same] == executed[same], same


async def test_a_forked_child_has_loaded_nothing_of_the_user() -> None:
    async with serving() as server:
        report = await first_report(spec("looks_around", server.start))
    found = {name.partition(".")[0] for name in report["modules"]}
    assert {"trio", "tests", "trio_dask"} <= found  # the program that it is itself stands in `tests`
    assert not found & {"pytest", "numpy", "psutil", "dask", "_pytest"}
    assert report["main"].endswith("child_main.py")


async def test_a_forked_child_is_the_launchers_and_its_guard_is_between(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = []
    async with serving() as server:
        await first_report(
            spec("looks_around", server.start),
            then=lambda child, report: parents.append((psutil.Process(report["parent"]).ppid(), report["session"])),
        )
    (guards_parent, session) = parents[0]
    assert guards_parent == os.getpid()
    assert session not in (os.getsid(0), server.pid)


async def test_chance_differs_between_forked_children() -> None:
    async with serving() as server:
        reports = [await first_report(spec("looks_around", server.start)) for _ in range(2)]
    assert all(one != other for one, other in zip(reports[0]["random"], reports[1]["random"], strict=True))


async def test_the_memory_of_a_forked_child_is_counted_like_any() -> None:
    async with serving() as server:
        forked = await first_report(spec("looks_around", server.start))
        executed = await first_report(spec("looks_around", start_by_exec))
    assert 0.5 < forked["memory"] / executed["memory"] < 1.5


async def test_a_forked_child_prints_where_the_launcher_prints_by_then(tmp_path: Path) -> None:
    """Our own output is a descriptor that is replaced while the server runs."""
    async with serving() as server:
        kept = os.dup(1)
        try:
            replace(1, tmp_path / "output")
            await first_report(spec("prints", server.start))
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert (tmp_path / "output").read_text() == "printed\n"


async def test_a_large_environment_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        for number in range(10):
            monkeypatch.setenv(f"LARGE_{number}", "x" * 100_000)
        report = await first_report(spec("looks_around", server.start))
    assert [len(report["environment"][f"LARGE_{number}"]) for number in range(10)] == [100_000] * 10


async def test_numbers_that_are_larger_than_the_server_was_allowed_arrive() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with serving() as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            replace(300, os.devnull)
            report = await first_report(spec("looks_around", server.start, inherit=(300,)))
            os.close(300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert report["descriptors"]["300"] == os.devnull


@pytest.mark.parametrize(
    ("function", "settings", "status", "words"),
    [
        ("says_and_ends", {}, 0, "a line on stderr"),
        ("kills_itself", {}, -signal.SIGKILL, ""),
        ("has_a_fatal_error", {}, -signal.SIGSEGV, "a line before it"),
        ("speaks_and_dies", {"status": 7}, 7, "last words"),
        ("takes_memory", {"bytes": 150 * 2**20}, 0, ""),
    ],
)
async def test_the_end_of_a_forked_child_is_told_like_any(
    function: str, settings: dict[str, int], status: int, words: str
) -> None:
    async with serving() as server:
        forked, executed = [
            await run_child(spec(function, start, where=behaviours, settings=settings))
            for start in (server.start, start_by_exec)
        ]
    assert forked.status == executed.status == status
    assert forked.words.last_line == executed.words.last_line == words
    assert forked.words.stack[:1] == executed.words.stack[:1]
    assert 0.5 < forked.peak_bytes / executed.peak_bytes < 1.5
    assert forked.started == executed.started


# ----------------------------------------------------------------------------------------------- the server


async def test_the_server_has_one_thread_and_nothing_to_say() -> None:
    async with serving() as server:
        for _ in range(2):
            assert os.listdir(f"/proc/{server.pid}/task") == [str(server.pid)]
            await first_report(spec("looks_around", server.start))
        process = psutil.Process(server.pid)
    assert survivors([process], 0) == []


async def test_many_children_leave_no_descriptor_and_no_zombie() -> None:
    async with serving() as server:
        await first_report(spec("looks_around", server.start))
        before = open_here(), open_in(server.pid)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(first_report, spec("looks_around", server.start))
        assert (open_here(), open_in(server.pid)) == before
        assert zombies() == []
        assert [child.pid for child in psutil.Process().children()] == [server.pid]


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.01, 0.05, 0.15])
async def test_a_start_that_is_cancelled_leaves_nothing(delay_s: float) -> None:
    before = open_here()
    with trio.move_on_after(delay_s):
        async with serving() as server:
            with trio.move_on_after(delay_s):
                await run_child(spec("looks_around", server.start))
            assert [child.pid for child in psutil.Process().children()] == [server.pid]
    assert psutil.Process().children() == []
    assert open_here() == before


async def test_a_start_that_is_cancelled_while_the_server_works_leaves_nothing() -> None:
    async with serving() as server:
        process = psutil.Process(server.pid)
        process.suspend()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_child, spec("looks_around", server.start))
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
            process.resume()
        await first_report(spec("looks_around", server.start))
        assert psutil.Process().children() == [process]


async def test_what_dies_with_the_server_before_it_is_known_is_reaped() -> None:
    leader = subprocess.Popen(["sleep", "1000"], process_group=0)  # noqa: ASYNC220
    stray = subprocess.Popen(["sleep", "1000"], process_group=leader.pid)  # noqa: ASYNC220
    os.killpg(leader.pid, signal.SIGKILL)
    os.waitpid(leader.pid, 0)  # noqa: ASYNC222
    await fork_server._reap_strays(leader.pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(stray.pid, os.WNOHANG)  # noqa: ASYNC222
    leader.returncode = stray.returncode = 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_is_killed_takes_nobody_along(number: signal.Signals) -> None:
    ends = []

    async def live(nursery: trio.Nursery, function: str = "looks_around") -> None:
        def heard(child: Child, report: Mapping[str, Any]) -> None:
            children.append(child)
            changed.set()

        async def run() -> None:
            ends.append(await run_child(spec(function, server.start), heard))

        changed = trio.Event()
        nursery.start_soon(run)
        await changed.wait()

    children: list[Child] = []
    async with serving() as server, trio.open_nursery() as nursery:
        await live(nursery)
        assert server.pid
        os.kill(server.pid, number)
        with trio.fail_after(5):
            while server.pid is not None:  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.001)
            await live(nursery)
        assert [is_forked(child.pid) for child in children] == [True, False]
        assert zombies() == []
        assert ends == []
        os.kill(children[0].pid, signal.SIGKILL)
        with trio.fail_after(5):
            while not ends:  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert ends[0].status == -signal.SIGKILL
        children[1].leave()


async def test_a_server_that_is_killed_while_asked_costs_nobody_his_start() -> None:
    """However far it has come: with it dies what nobody knows of, and what is known lives."""
    for _ in range(5):
        async with serving() as server, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(first_report, spec("looks_around", server.start))
            await trio.sleep(0.004)
            assert server.pid
            os.kill(server.pid, signal.SIGKILL)
        assert psutil.Process().children() == []


async def test_a_server_that_does_not_answer_is_replaced_by_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "ANSWER_S", 0.3)
    async with serving() as server:
        process = psutil.Process(server.pid)
        process.suspend()
        forked = []
        with trio.fail_after(10):
            await first_report(
                spec("looks_around", server.start), then=lambda child, report: forked.append(is_forked(child.pid))
            )
        assert forked == [False]
        assert survivors([process], 1) == []


async def test_a_server_that_cannot_start_is_no_loss() -> None:
    async with serving(onlookers.cannot_be_loaded) as server:
        assert (await first_report(spec("looks_around", server.start)))["folder"] == os.getcwd()


# ------------------------------------------------------------------------------------------------- clusters


async def test_a_cluster_outlives_its_server() -> None:
    async with open_local_cluster(2, 1) as cluster, cluster.get_client() as client:
        (server,) = [
            child
            for child in psutil.Process().children()
            if child.cmdline()[-1].endswith("-fork-server") and not child.children()
        ]
        pids = [worker.pid for worker in cluster.workers.values()]
        assert all(map(is_forked, pids))
        server.kill()
        assert survivors([server], 2) == []
        assert await client.gather(client.map(pow, range(20), [2] * 20)) == [x**2 for x in range(20)]
        assert pids == [worker.pid for worker in cluster.workers.values()]
        cluster.scale(3)
        await cluster.wait_for_workers(3, timeout=20)
        victim = cluster.workers["0"]
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        while victim.address is not None:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.001)
        await cluster.wait_for_workers(3, timeout=20)
        assert len(await client.nthreads()) == 3
        assert zombies() == []


async def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_DASK_FORK_SERVER", "0")
    async with open_local_cluster(1, 1) as cluster:
        assert not is_forked(cluster.workers["0"].pid)
        assert len(children(os.getpid())) == 3


SCRIPT = """
    import sys, time
    from trio_dask import Client
    def hold(kind):
        if kind == "interpreter":
            sum(range(10**12))
        time.sleep(1000)
    client = Client(n_workers=2, threads_per_worker=1)
    future = client.submit(hold, sys.argv[1])
    time.sleep(0.3)
    print("busy", flush=True)
    future.result()
"""


@pytest.mark.parametrize("work", ["sleep", "interpreter"])
def test_the_death_of_the_launcher_ends_the_server_and_all(tmp_path: Path, work: str) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    with program(str(tmp_path / "script.py"), work, cwd=tmp_path) as running:
        running.wait_for("busy", running.output)
        processes = children(running.process.pid)
        assert any(process.cmdline()[-1].endswith("-fork-server") for process in processes)
        assert len(processes) == 6  # a scheduler, a fork server, two workers with a guard each
        running.process.kill()
        assert survivors(processes, 2) == []
        assert running.errors == []
