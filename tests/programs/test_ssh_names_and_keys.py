"""A launcher over real SSH servers: names and folders that are unusual, private keys, and the key of the cluster."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import program, seen_in_proc, until
from tests.programs.sshd import Sshd, launcher, make_key, need, nothing_left, processes_of, ready, run_of, sshd
from trio_dask import Client
from trio_dask.deploy.ssh.login_options import KEEPALIVE_S
from trio_dask.security.cluster_key import ClusterKey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

READY_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need()
    with sshd(tmp_path_factory.mktemp("ssh"), "MaxStartups 100") as running:
        yield running


@pytest.fixture(autouse=True)
def _home(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(server.home))


@pytest.fixture(params=["asyncssh", "openssh"])
def client(request: pytest.FixtureRequest) -> str:
    """What logs in."""
    return str(request.param)


def runs_a_job(server: Sshd, *hosts: str, **settings: Any) -> None:
    """A task runs on these hosts, and nothing is left."""
    with launcher(server, *hosts, **settings) as running:
        run, address = ready(running)
        with Client(address) as user:
            assert user.submit(pow, 2, 3).result() == 8
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)


# ------------------------------------------------------------------------------------------------- names and folders

ANOTHER_LIST = 'mount --bind "$0" /etc/passwd && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have a user for the server alone")
def test_the_name_of_a_user_may_have_spaces(client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "alice b. smith"
    users = tmp_path / "passwd"
    users.write_text(f"{Path('/etc/passwd').read_text()}{name}:*:0:0::{tmp_path}:/bin/sh\n")
    within = ["unshare", "--mount", "sh", "-c", ANOTHER_LIST, str(users)]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let root have a list of users for one program")
    (tmp_path / "ssh").mkdir()
    with sshd(tmp_path / "ssh", within=within) as server:
        monkeypatch.setenv("HOME", str(server.home))
        (place,) = server.hosts(1)
        user = {"LOGNAME": name, "USER": name}
        runs_a_job(server, f'"{name}@{place}" nworkers=1', ssh_client=client, remote_env=user)
        runs_a_job(server, f'"{name}"@{place}', place.replace("2:", "3:"), ssh_client=client, ssh_username=name)
        accepted = re.findall(r"Accepted publickey for (.*) from", server.log)
        assert set(accepted) == {name}


def test_a_home_may_be_one_that_nobody_can_write_to(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path("/sys")  # even root cannot write there
    with pytest.raises(OSError, match=r"Permission denied|Read-only|not permitted"):
        (home / "file").touch()
    with sshd(tmp_path, "MaxStartups 100", remote_home=home) as server:
        monkeypatch.setenv("HOME", str(server.home))
        runs_a_job(server, *server.hosts(2), ssh_client=client)


def test_folders_and_python_may_have_spaces(server: Sshd, client: str, tmp_path: Path) -> None:
    python, logs, scratch = tmp_path / "my python", tmp_path / "my logs" / "of today", tmp_path / "my scratch"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    with launcher(
        server,
        *server.hosts(2),
        ssh_client=client,
        remote_python=str(python),
        log_directory=str(logs),
        local_directory=str(scratch),
    ) as running:
        run, address = ready(running)
        with Client(address) as user:
            folders = user.gather([user.submit(scratch_folder, pure=False) for _ in range(2)])
            assert all(Path(folder).is_relative_to(scratch) for folder in folders), folders
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)
    assert len(list(logs.iterdir())) == 3
    assert list(scratch.iterdir()) == []


def scratch_folder() -> str:
    """Where the worker spills to."""
    from trio_dask import get_worker

    return str(get_worker().local_directory)


# ------------------------------------------------------------------------------------------------- private keys


def refused(server: Sshd, client: str, key: Path) -> str:
    """What a launcher that cannot log in with this key alone says last; its status is 4, and nothing is left."""
    configuration = key.parent / "config"
    configuration.write_text(f"UserKnownHostsFile {server.home}/.ssh/known_hosts\n")
    settings: dict[str, Any] = {"ssh_client": client, "ssh_private_key": str(key), "ssh_config": str(configuration)}
    with launcher(server, *server.hosts(2), **settings) as running:
        assert running.end() == 4, running.text
        if running.errors[0].startswith("Run "):
            nothing_left(run_of(running))
    assert "Traceback" not in running.text
    return running.errors[-1]


def test_a_private_key_that_cannot_be_used_is_named_before_anybody_logs_in(
    server: Sshd, client: str, tmp_path: Path
) -> None:
    key = tmp_path / "a key"
    assert f"cannot read the private key {key}: No such file or directory" in refused(server, client, key)
    key.mkdir(mode=0o700)
    assert f"cannot read the private key {key}: Is a directory" in refused(server, client, key)
    key.rmdir()
    os.mkfifo(key, 0o600)
    assert f"{key} is no file" in refused(server, client, key)
    key.unlink()
    key.touch(mode=0o600)
    assert f"{key} holds no private key" in refused(server, client, key)
    with open(key, "wb") as file:
        file.truncate(2**40)
    assert f"{key} holds no private key" in refused(server, client, key)
    key.unlink()
    make_key(key)
    public = tmp_path / "a key.pub"
    assert f"{public} is a public key" in refused(server, client, public)
    key.chmod(0o640)
    told = f"others can read the private key {key}; run: chmod 600 '{key}'"
    assert told in refused(server, client, key)
    with program("-m", "trio_dask", "ssh", *server.hosts(1), "--ssh-private-key", str(key), "--dry-run") as running:
        assert running.end() == 4
    assert running.errors == [f"python -m trio_dask ssh: --ssh-private-key: {told}"]


def test_a_damaged_private_key_is_named(server: Sshd, client: str, tmp_path: Path) -> None:
    key = tmp_path / "a key"
    make_key(key)
    lines = key.read_text().splitlines()
    key.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:], ""]))
    said = refused(server, client, key)
    assert re.match(r"launcher: 127\S+: login: .*Permission denied \(publickey\)\.?: ", said), said
    assert str(key) in said


def test_a_private_key_that_the_host_does_not_know_is_no_login(server: Sshd, client: str, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    said = refused(server, client, tmp_path / "other")
    assert "Permission denied (publickey)" in said
    assert f"-i {tmp_path / 'other'}" in said


def test_a_locked_key_is_refused_with_a_sentence_without_a_terminal(server: Sshd, client: str, tmp_path: Path) -> None:
    key = tmp_path / "a key"
    make_key(key, "open sesame")
    said = refused(server, client, key)
    assert f"{key} is locked" in said
    assert said.endswith(f"`ssh-add '{key}'`")
    assert client == "openssh" or "there is no terminal to ask for its passphrase" in said


def test_a_given_key_is_tried_before_those_of_the_configuration(server: Sshd, client: str, tmp_path: Path) -> None:
    """As with `ssh -i`: those are tried too."""
    make_key(tmp_path / "other")
    runs_a_job(server, *server.hosts(1), ssh_client=client, ssh_private_key=str(tmp_path / "other"))


def test_a_bad_key_of_the_configuration_is_passed_over(server: Sshd, client: str, tmp_path: Path) -> None:
    """As `ssh` does: it may be for another host."""
    bad = tmp_path / "bad"
    bad.touch(mode=0o600)
    configuration = tmp_path / "config"
    configuration.write_text(f"IdentityFile {bad}\n{Path(server.configuration).read_text()}")
    runs_a_job(server, *server.hosts(1), ssh_client=client, ssh_config=str(configuration))


# ------------------------------------------------------------------------------------------------- the cluster's key


def test_a_planted_cluster_key_shows_nowhere(server: Sshd, client: str, tmp_path: Path) -> None:
    key = tmp_path / "config" / "trio_dask" / "cluster.key"
    key.parent.mkdir(parents=True, mode=0o700)
    key.touch(mode=0o600)
    key.write_text(f"{ClusterKey.draw().hex()}\n")
    secret = key.read_text().strip()
    logs = tmp_path / "logs"
    options = [
        *("--ssh-client", client, "--ssh-config", server.configuration, "-v", "--debug", "--nthreads", "1"),
        *("--scheduler-port", "0", "--log-directory", str(logs), "--remote-env", "SEEN=1"),
    ]
    environment = server.environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    with program("-m", "trio_dask", "ssh", *server.hosts(2), *options, env=environment) as running:
        run = run_of(running)
        address = running.wait_for(r"^Scheduler +(tls://\S+)$", running.output, timeout_s=READY_S)
        with Client(address, cluster_key=key) as user:
            assert user.submit(pow, 2, 3).result() == 8
            carries = [Path(f"/proc/{pid}/environ").read_bytes() for pid in processes_of(run)]
            assert any(b"SEEN=1" in environ for environ in carries)
            assert seen_in_proc(secret) == []
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)
    files = [path for folder in (logs, server.folder) for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if path.parent == logs]) == 3
    texts = [running.text.encode(), *(path.read_bytes() for path in files)]
    assert "Registered" in running.text
    assert not any(secret.encode() in text or bytes.fromhex(secret) in text for text in texts)


def test_an_idle_link_says_something_from_time_to_time(client: str, tmp_path: Path) -> None:
    """A firewall forgets links that are idle for minutes; ours are not for longer than some ten seconds."""
    with (
        sshd(tmp_path / "ssh", "LogLevel DEBUG1") as server,
        launcher(server, server.hosts(1)[0], ssh_client=client, scheduler="localhost") as running,
    ):
        run, _ = ready(running)
        until(lambda: "rtype keepalive@openssh.com" in server.log, 2 * KEEPALIVE_S, "a sign of life")
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)
