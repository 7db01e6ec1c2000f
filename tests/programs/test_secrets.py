"""What programs leave on disk is for their user alone, whatever the umask; and where a planted key shows: nowhere."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.programs import tasks
from tests.programs.programs import environment, program, seen_in_proc, until
from tests.programs.sshd import need, processes_of, sshd
from trio_dask import Client
from trio_dask.security.cluster_key import ClusterKey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CARELESS = ("sh", "-c", 'umask 0 && exec "$@"', "sh")
SSH_MORE = ("--scheduler-port", "0", "--nthreads", "1", "--memory-limit", "0", "--", "--memory-target", "off")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def files_with(secret: bytes, folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()}


def test_files_with_a_key_or_with_values_are_for_their_user_alone(tmp_path: Path) -> None:
    for name in ("config", "run", "scratch"):
        (tmp_path / name).mkdir()
    env = environment(XDG_CONFIG_HOME=str(tmp_path / "config"), TMPDIR=str(tmp_path / "scratch"))
    kept = ("--pid-file", str(tmp_path / "run" / "pid"), "--log-file", str(tmp_path / "run" / "log"), "--debug")
    file = tmp_path / "run" / "scheduler.json"
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    join = ("-m", "trio_dask", "worker", "--nthreads", "1", "--scheduler-file", str(file))
    spilling = ("--memory-limit", "400MB", "--memory-target", "0.05")
    with program(*start, *kept, env=env, within=CARELESS) as boss:
        until(file.exists)
        with program(*join, *spilling, "--debug", env=env, within=CARELESS) as hand:
            hand.wait_for("Registered to")
            with Client(scheduler_file=str(file)) as client:
                values = [client.submit(tasks.bytes_of, str(tmp_path / "ran"), n, 10_000_000) for n in range(8)]
                assert [value.status for value in values if value.exception(timeout=20)] == []
                until(lambda: any(path.is_file() for path in (tmp_path / "scratch").rglob("*")), what="a spilled value")
                key = tmp_path / "config" / "trio_dask" / "cluster.key"
                secret = key.read_text().strip()
                assert files_with(secret.encode(), tmp_path) == {key, file}
                assert (mode(key), mode(key.parent), mode(file)) == (0o600, 0o700, 0o600)
                for path in (tmp_path / "scratch").rglob("*"):
                    assert mode(path) == (0o700 if path.is_dir() else 0o600), path
                assert seen_in_proc(secret) == []
            assert hand.stop(signal.SIGTERM) == 0
        assert boss.stop(signal.SIGTERM) == 0
        assert secret not in boss.text + hand.text
        assert files_with(secret.encode(), tmp_path) == {key}
        assert "Scheduler at:" in (tmp_path / "run" / "log").read_text()


def test_a_planted_key_shows_neither_at_a_launcher_over_ssh_nor_on_its_hosts(tmp_path: Path) -> None:
    need()
    folder = tmp_path / "config" / "trio_dask"
    folder.mkdir(mode=0o700, parents=True)
    key, secret = folder / "cluster.key", ClusterKey.draw().hex()
    key.touch(mode=0o600)
    key.write_text(f"{secret}\n")
    (tmp_path / "ssh").mkdir()
    (tmp_path / "scratch").mkdir()
    with sshd(tmp_path / "ssh", "LogLevel DEBUG3") as server:
        env = server.environment(XDG_CONFIG_HOME=str(tmp_path / "config"), TMPDIR=str(tmp_path / "scratch"))
        start = ("-m", "trio_dask", "ssh", *server.hosts(2), "--verbose", *SSH_MORE)
        with program(*start, env=env, within=CARELESS) as running:
            address = running.wait_for(r"^Scheduler +(tls://\S+)$", running.output, timeout_s=60)
            run = running.wait_for(r"^Run (\w+)")
            running.wait_for("^Stop +Ctrl-C$", running.output, timeout_s=60)
            with Client(address, cluster_key=key) as client:
                assert client.submit(pow, 2, 10).result(timeout=20) == 1024
            assert processes_of(run)
            assert seen_in_proc(secret) == []
            assert files_with(secret.encode(), tmp_path) == {key}
            assert running.stop(signal.SIGINT) == 0, running.text
        assert secret not in running.text
        assert files_with(secret.encode(), tmp_path) == {key}
        assert not os.listdir(tmp_path / "scratch")
