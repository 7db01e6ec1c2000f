"""A launcher over real SSH servers: what it starts, what it says, and that nothing is left however it ends."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.programs.programs import Program, children, survivors, until
from tests.programs.sshd import Sshd, launcher, make_key, name_of, need, nothing_left, processes_of, ready, run_of, sshd
from trio_dask import Client, SSHCluster, open_ssh_cluster
from trio_dask.deploy.ssh.session import HostError
from trio_dask.procfs import children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need()
    with sshd(tmp_path_factory.mktemp("ssh"), "MaxStartups 100") as running:
        yield running


@pytest.fixture(params=["asyncssh", "openssh"])
def client(request: pytest.FixtureRequest) -> str:
    """What logs in."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _home(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(server.home))  # the key of the cluster is there


# ------------------------------------------------------------------------------------------------- starts and ends


def test_four_hosts_run_a_job_and_nothing_is_left_after_ctrl_c(server: Sshd, client: str, tmp_path: Path) -> None:
    logs, temporary = tmp_path / "logs", tmp_path / "tmp"
    temporary.mkdir()
    variables = {"TMPDIR": str(temporary)}
    more: dict[str, Any] = {"log_directory": str(logs), "remote_env": variables, "variables": variables}
    with launcher(server, *server.hosts(4), ssh_client=client, **more) as running:
        run, address = ready(running)
        assert len({Path(f"/proc/{pid}/comm").read_text() for pid in processes_of(run)}) > 4
        with Client(address) as user:
            assert user.gather(user.map(pow, range(100), [2] * 100)) == [number**2 for number in range(100)]
        began = time.monotonic()
        assert running.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5
        assert processes_of(run) == []
    assert re.search(
        r"(ended in [\d.]+ s( and answered after [\d.]+ s)?[,;] .*){4}0 processes left on 4 hosts$", running.errors[-1]
    )
    assert running.errors[0].startswith("Run ")
    assert running.errors[1:-1] == ["Stopping: received SIGINT"]
    names = {path.name for path in logs.iterdir()}
    assert len(names) == 5, names
    assert list(temporary.iterdir()) == []


def test_a_second_signal_ends_everything_at_once(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(2), ssh_client=client) as running:
        run, address = ready(running)
        with Client(address) as user:
            future = user.submit(time.sleep, 30)
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            began = time.monotonic()
            assert running.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < 5
            del future
        assert processes_of(run) == []


def test_ctrl_c_during_the_start_leaves_nothing(server: Sshd, client: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = *server.hosts(2), f"127.0.0.1:{silent.getsockname()[1]}"
        with launcher(server, *hosts, ssh_client=client) as running:
            run = run_of(running)
            running.wait_for(r"^event 127.0.0.3\S+ started", running.output)
            assert running.stop(signal.SIGINT) == 0
            assert processes_of(run) == []


def test_a_workers_remote_death_is_told_and_mended(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(2), ssh_client=client) as running:
        run, address = ready(running)
        leaders = [pid for pid in processes_of(run) if name_of(pid).startswith(f"tds-{run}0001")]
        os.kill(leaders[0], signal.SIGKILL)
        running.wait_for(
            r"127.0.0.3\S* workers: it (?:was killed by SIGKILL|ended with status 255).*starting its workers again"
        )
        until(lambda: "\n".join(running.output).count("127.0.0.3") and joined(running) == 3, what="joined again")
        with Client(address) as user:
            until(lambda: len(user.scheduler_info()["workers"]) == 2, what="two workers")
        assert running.stop(signal.SIGTERM) == 0
        nothing_left(run)


def joined(running: Program) -> int:
    return sum(" joined " in line for line in running.output)


def test_a_lost_scheduler_ends_everything_with_status_3(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(2), ssh_client=client) as running:
        run, _ = ready(running)
        # The scheduler's program and that of the workers of the same host carry one name.
        leaders = [pid for pid in processes_of(run) if name_of(pid).startswith(f"tds-{run}0000")]
        scheduler = next(pid for pid in leaders if not children_of(pid))
        os.kill(scheduler, signal.SIGKILL)
        assert running.end() == 3
        nothing_left(run)
    assert "the scheduler's host is lost" in running.errors[-1]


SIGN_OF_LIFE = "import os, sys, time\nwhile True:\n    os.utime(sys.argv[1])\n    time.sleep(0.01)\n"


def test_a_killed_launcher_leaves_nothing(server: Sshd, client: str, tmp_path: Path) -> None:
    sign = tmp_path / "sign of life"
    sign.touch()
    command = shlex.join([sys.executable, "-c", SIGN_OF_LIFE, str(sign)])
    with launcher(server, *server.hosts(2), ssh_client=client) as running:
        run, address = ready(running)
        with Client(address) as user:
            before = set(processes_of(run))
            started = user.submit(os.system, f"setsid {command} &")
            assert started.result() == 0
            busy = [user.submit(time.sleep, 600, pure=False) for _ in range(4)]
            until(lambda: set(processes_of(run)) - before and sign.stat().st_mtime > time.time() - 0.1, what="a sign")
            assert all(future.status == "pending" for future in busy)
        here = children(running.process.pid)
        assert client == "asyncssh" or here
        killed_at = time.time()
        running.process.kill()
        running.process.wait()
        nothing_left(run)
        # The remote side says when it ended: what asks for its processes here may be late.
        assert sign.stat().st_mtime - killed_at < 2
        assert survivors(here) == []


# ------------------------------------------------------------------------------------------------- hosts that fail


def fails(server: Sshd, client: str, bad: str, *said: str, **settings: Any) -> Program:
    """Four hosts, one of which fails: it is told, and nothing is left on the others."""
    good = server.hosts(3)
    with launcher(server, *good, bad, ssh_client=client, **settings) as running:
        run = run_of(running)
        assert running.end(40) == 4, running.text
        assert processes_of(run) == []
    for words in said:
        assert re.search(words, running.errors[-1]), running.text
    assert any(re.match(r"event \S+ failed ", line) for line in running.output), running.text
    return running


def test_an_unknown_host_name_is_told(server: Sshd, client: str) -> None:
    said = r"no-such-host.invalid: resolve: ", r"try `ssh -F \S+ no-such-host.invalid true`"
    fails(server, client, "no-such-host.invalid", *said)


def test_a_refused_connection_is_told(server: Sshd, client: str) -> None:
    fails(server, client, "127.0.0.5:1", r"127.0.0.5:1: connect: .*Connection refused")


def test_a_host_that_says_nothing_is_told(server: Sshd, client: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        running = fails(server, client, f"127.0.0.1:{port}", rf"127.0.0.1:{port}: ", connect_timeout_s=2)
    assert re.search(r"no login within 2 s|timed out", running.errors[-1])


def test_a_refused_user_is_told(server: Sshd, client: str) -> None:
    fails(server, client, f"no-such-user@127.0.0.5:{server.port}", r"login: .*Permission denied \(publickey\)")


def test_an_unknown_host_key_is_told_with_its_fingerprint(server: Sshd, client: str) -> None:
    said = r"unknown host key: ssh-ed25519 SHA256:\S+; ", r"`ssh-keyscan -p \d+ 127.0.0.8 >> "
    fails(server, client, f"127.0.0.8:{server.port}", *said)


def test_a_changed_host_key_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    known = server.home / ".ssh" / "known_hosts"
    before = known.read_text()
    known.write_text(f"{before}[127.0.0.9]:{server.port} {other}\n")
    try:
        said = r"its host key has changed: it is .*SHA256:\S+ now", r"ssh-keygen -R '\[127.0.0.9\]:\d+'"
        fails(server, client, f"127.0.0.9:{server.port}", *said)
    finally:
        known.write_text(before)


def script(path: Path, *lines: str) -> str:
    """A program that stands for a Python."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return f"python={path}"


def test_a_missing_python_is_told(server: Sshd, client: str) -> None:
    fails(
        server,
        client,
        f"127.0.0.5:{server.port} python=/no/such/python",
        r"python: .*/no/such/python.*(not found|No such file)",
    )


def test_an_old_python_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    old = script(
        tmp_path / "python3.9",
        '[ "$1" = -V ] && { echo Python 3.9.2; exit; }',
        "echo /usr/bin/python3.9: No module named trio_dask >&2; exit 1",
    )
    said = r"python3.9 is Python 3.9.2 and has no trio_dask; give --remote-python or python= for this host"
    fails(server, client, f"127.0.0.5:{server.port} {old}", said)


def test_a_python_without_the_package_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f'unset PYTHONPATH; exec {sys.executable} -S "$@"')
    fails(server, client, f"127.0.0.5:{server.port} {bare}", r"bare is Python 3\.\d+\.\d+ and has no trio_dask")


def test_another_version_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    greeting = json.dumps({"greeting": {"package": "0.0.1", "python": "3.11.0", "executable": "x", "reached": ""}})
    other = script(tmp_path / "other", f"printf '\\036%s\\n' '{greeting}'; exec cat > /dev/null")
    fails(server, client, f"127.0.0.5:{server.port} {other}", r"version: trio_dask 0.0.1 there, \d")


def test_a_worker_that_crashes_at_its_start_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('this module is bad')")
    options = [f"--preload={tmp_path / 'bad.py'}"]
    fails(server, client, server.hosts(4)[3], r"workers: .*this module is bad", worker_options=options)


def test_a_log_directory_that_cannot_be_written_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(server, client, server.hosts(4)[3], r"cannot write to the log directory", log_directory=f"{tmp_path}/file/x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_of_logs_is_told(server: Sshd, client: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path / "logs")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small file system")
    try:
        with open(tmp_path / "logs" / "full", "wb", buffering=0) as file:
            file.write(b"x" * 4096)
        said = r"cannot write to the log directory .*: No space left on device"
        fails(server, client, server.hosts(4)[3], said, log_directory=str(tmp_path / "logs"))
    finally:
        subprocess.run(["umount", str(tmp_path / "logs")], check=True)


def test_a_host_may_be_missing_if_that_is_allowed(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(2), "127.0.0.5:1", ssh_client=client, allow_missing=1) as running:
        run, address = ready(running)
        assert any("going on without it" in line for line in running.errors)
        with Client(address) as user:
            assert user.submit(pow, 2, 3).result() == 8
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)


# ------------------------------------------------------------------------------------------------- ways to log in


def test_a_tunnel_leads_to_the_scheduler(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(1), ssh_client=client, tunnel=True) as running:
        run, address = ready(running)
        assert address.startswith("tls://127.0.0.1:")
        with Client(address) as user:
            assert user.submit(pow, 2, 3).result() == 8
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)


# ------------------------------------------------------------------------------------------------- in programs


def test_a_program_has_a_cluster_for_a_block(server: Sshd, client: str) -> None:
    hosts = server.hosts(3)
    options = {"nthreads": 1, "memory_limit": 0, "n_workers": 2}
    with SSHCluster(hosts, worker_options=options, ssh_config=server.configuration, ssh_client=client) as cluster:
        run = cluster.name.removeprefix("ssh-")
        assert cluster.scheduler_address.startswith("tls://")
        with Client(cluster) as user:
            assert user.gather(user.map(pow, range(10), [2] * 10)) == [number**2 for number in range(10)]
            workers = user.scheduler_info()["workers"]
            assert len(workers) == 4
            described = cluster.scheduler_info
            assert described["address"] == cluster.scheduler_address
            assert described["workers"].keys() == workers.keys()
            for address, worker in described["workers"].items():
                for field in ("type", "name", "nthreads", "memory_limit"):
                    assert (worker[field] or 0) == (workers[address][field] or 0)
                assert worker["host"] in hosts[1:]
            assert "<td" in described._repr_html_()
            cluster.scale(1)
            until(lambda: len(user.scheduler_info()["workers"]) == 2, what="one host left")
            cluster.scale(2)
            cluster.wait_for_workers(4, timeout=20)
        assert set(cluster.logs()) == {"127.0.0.2:" + str(server.port), *hosts[1:]}
        assert processes_of(run)
    assert processes_of(run) == []


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(server: Sshd, client: str) -> None:
    with pytest.raises(HostError, match="Connection refused"):
        SSHCluster([server.hosts(1)[0], "127.0.0.3:1"], ssh_config=server.configuration, ssh_client=client)


def test_a_cluster_that_grows_and_shrinks_loses_no_result(server: Sshd, client: str) -> None:
    options = {"nthreads": 1, "memory_limit": 0}
    with (
        SSHCluster(
            server.hosts(4), worker_options=options, ssh_config=server.configuration, ssh_client=client
        ) as cluster,
        Client(cluster) as user,
    ):
        run = cluster.name.removeprefix("ssh-")
        kept = user.map(pow, range(60), [2] * 60)
        user.gather(kept)
        for number in (1, 3, 2, 3, 1):
            cluster.scale(number)
            time.sleep(0.5)  # while those that leave still drain
        until(lambda: len(user.scheduler_info()["workers"]) == 1, 20, what="one host left")
        assert user.gather(kept) == [number**2 for number in range(60)]
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=20)
        leaving = next(iter(list(cluster.workers.values())[1].workers.values()))
        cluster.scale_down([leaving])
        until(lambda: leaving not in user.scheduler_info()["workers"], 20, what="that worker is gone")
        assert len(user.scheduler_info()["workers"]) == 2
        assert user.gather(kept) == [number**2 for number in range(60)]
    assert processes_of(run) == []


ADAPTS_FAST: dict[str, Any] = {"interval": 0.1, "wait_count": 2, "target_duration": 0.5}


def test_a_cluster_adapts_by_hosts_and_loses_no_result(server: Sshd, client: str) -> None:
    options = {"nthreads": 1, "memory_limit": 0, "n_workers": 2}
    with (
        SSHCluster(
            server.hosts(4), worker_options=options, ssh_config=server.configuration, ssh_client=client
        ) as cluster,
        Client(cluster) as user,
    ):
        run = cluster.name.removeprefix("ssh-")
        adaptive = cluster.adapt(minimum=1, maximum=3, **ADAPTS_FAST)
        until(lambda: len(cluster.workers) == 1 and len(user.scheduler_info()["workers"]) == 2, 20, "one host left")
        kept = user.map(pow, range(20), [2] * 20)
        user.gather(kept)
        slow = user.map(time.sleep, [0.5] * 60, pure=False)
        until(lambda: len(user.scheduler_info()["workers"]) == 6, 30, "two workers on each of three hosts")
        user.gather(slow)
        del slow
        until(lambda: len(cluster.workers) == 1 and len(user.scheduler_info()["workers"]) == 2, 20, "one host left")
        assert user.gather(kept) == [number**2 for number in range(20)]
        adaptive.stop()
        assert set(cluster.workers) < set(server.hosts(4)[1:])
    assert processes_of(run) == []


async def test_a_cluster_adapts_to_nothing_and_grows_again(server: Sshd, client: str) -> None:
    options = {"nthreads": 1, "memory_limit": 0}
    hosts, configuration = server.hosts(2), server.configuration
    async with (
        open_ssh_cluster(
            hosts, worker_options=options, ssh_config=configuration, ssh_client=client, scheduler="localhost"
        ) as cluster,
        cluster.get_client() as user,
    ):
        run = cluster.name.removeprefix("ssh-")
        cluster.adapt(**ADAPTS_FAST)
        with trio.fail_after(30):
            while cluster.workers or (await user.scheduler_info())["workers"]:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.05)
            assert await user.submit(pow, 2, 3) == 8
    assert processes_of(run) == []


async def test_a_trio_program_has_a_cluster_with_a_scheduler_here(server: Sshd, client: str) -> None:
    options = {"nthreads": 1, "memory_limit": 0}
    hosts, configuration = server.hosts(2), server.configuration
    async with open_ssh_cluster(
        hosts, worker_options=options, ssh_config=configuration, ssh_client=client, scheduler="localhost"
    ) as cluster:
        run = cluster.name.removeprefix("ssh-")
        async with cluster.get_client() as user:
            assert await user.submit(pow, 2, 3) == 8
    assert processes_of(run) == []
