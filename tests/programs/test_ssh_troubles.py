"""A launcher over real SSH servers, in trouble: cut links, stopped servers, hostile names and shells, hidden hosts."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.programs.programs import until
from tests.programs.proxy import open_proxy
from tests.programs.sshd import (
    Sshd,
    launcher,
    need,
    need_shell,
    nothing_left,
    processes_of,
    ready,
    run_of,
    sshd,
)
from trio_dask import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


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


# ------------------------------------------------------------------------------------------------- links and servers


def test_a_cut_link_ends_the_host_and_a_mended_one_brings_it_back(server: Sshd, client: str) -> None:
    with open_proxy(f"127.0.0.3:{server.port}") as proxy:
        far = f"127.0.0.1:{proxy.port}"
        hosts = server.hosts(1)[0], far
        with launcher(server, *hosts, ssh_client=client, accept_new_host_keys=True) as running:
            run, address = ready(running)
            proxy.reset()
            until(lambda: not processes_of(f"{run}0001"), 4, "nothing behind the link")
            running.wait_for(rf"{far}: connection: the connection was lost; starting its workers again")
            proxy.restore()
            with Client(address) as user:
                until(lambda: len(user.scheduler_info()["workers"]) == 2, what="two workers")
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)


def test_what_a_stalled_link_hides_ends_after_the_death_timeout(server: Sshd, client: str) -> None:
    with open_proxy(f"127.0.0.3:{server.port}") as proxy:
        hosts = server.hosts(1)[0], f"127.0.0.1:{proxy.port}"
        with launcher(server, *hosts, ssh_client=client, accept_new_host_keys=True, death_timeout_s=3) as running:
            run, _ = ready(running)
            proxy.stall()
            running.process.kill()
            running.process.wait()
            nothing_left(f"{run}0000")
            nothing_left(run, 6)


def test_a_stopped_ssh_server_cannot_keep_what_it_started(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(1), ssh_client=client, death_timeout_s=3) as running:
        run, _ = ready(running)
        sessions = psutil.Process(server.process.pid).children(recursive=True)
        stopped = [one for one in sessions if one.name().startswith("sshd")]
        for one in stopped:
            one.send_signal(signal.SIGSTOP)
        try:
            running.process.kill()
            running.process.wait()
            nothing_left(run, 6)
        finally:
            for one in stopped:
                one.send_signal(signal.SIGCONT)


def test_a_killed_worker_is_started_again_by_its_nanny(server: Sshd, client: str) -> None:
    with launcher(server, *server.hosts(1), ssh_client=client) as running:
        run, address = ready(running)
        with Client(address) as user:
            pid = user.submit(os.getpid).result()
            os.kill(pid, signal.SIGKILL)
            running.wait_for(r"died: .*SIGKILL.*restarting it")
            until(lambda: len(user.scheduler_info()["workers"]) == 1, what="a worker again")
            assert user.submit(os.getpid, pure=False).result() != pid
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)


def test_sixty_four_hosts_take_turns_at_a_busy_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    """The server drops connections at random once five have not logged in; no host may fail for that."""
    number = 64
    with sshd(tmp_path, "MaxStartups 5:50:20") as busy:
        monkeypatch.setenv("HOME", str(busy.home))
        configuration = configured(
            busy, tmp_path / "config", *(f"Host n{n}\n  HostName 127.0.0.2\n  Port {busy.port}" for n in range(number))
        )
        hosts = [f"n{n} python=/no/such/python" for n in range(number)]
        with launcher(busy, *hosts, allow_missing=64, ssh_client=client, ssh_config=configuration) as running:
            assert running.end(100) == 4
        told = [line for line in running.output if " failed " in line]
        assert all("No such file" in line for line in told), told


# ------------------------------------------------------------------------------------------------- hostile places


def test_a_hostile_host_name_runs_nothing(server: Sshd, client: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in (f"x;touch {canary}", f"$(touch {canary})", f"-oProxyCommand=touch {canary}", f"`touch {canary}`"):
        with launcher(server, f'"{name}"', ssh_client=client) as running:
            assert running.end() != 0
        assert not canary.exists()


def test_hostile_options_arrive_as_they_are(server: Sshd, client: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    value = f"'\"; touch {canary}; $(touch {canary})\n`touch {canary}` \\ ä \udcff"
    with launcher(server, *server.hosts(1), ssh_client=client, remote_env={"HOSTILE": value}) as running:
        run, address = ready(running)
        with Client(address) as user:
            assert user.submit(os.getenv, "HOSTILE").result() == value
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)
    assert not canary.exists()


@pytest.mark.parametrize("shell", ["bash", "dash", "tcsh", "fish"])
def test_a_shell_that_chatters_is_understood(
    shell: str, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_shell(shell)
    wrapper = tmp_path / "a shell"
    wrapper.write_text(
        "#!/bin/sh\nprintf 'Welcome to this host!\\nhave you read the news? '\necho quota exceeded >&2\n"
        f'export HOME=/nonexistent/home\nexec {shell} -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    wrapper.chmod(0o755)
    (tmp_path / "ssh").mkdir()
    with sshd(tmp_path / "ssh", f'ForceCommand "{wrapper}"') as chatty:
        monkeypatch.setenv("HOME", str(chatty.home))
        spaced = tmp_path / "my python"
        spaced.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        spaced.chmod(0o755)
        host = f'{chatty.hosts(1)[0]} python="{spaced}"'
        with launcher(chatty, host, ssh_client=client, setup="true") as running:
            run, address = ready(running)
            with Client(address) as user:
                assert user.submit(pow, 2, 3).result() == 8
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)


@pytest.mark.skipif(not shutil.which("bash"), reason="after: apt-get install bash")
def test_a_bashrc_may_fail_and_one_that_asks_is_told(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "their home"
    home.mkdir()
    wrapper = tmp_path / "shell"
    wrapper.write_text(f'#!/bin/sh\nSHLVL=0 HOME="{home}" exec bash -c "$SSH_ORIGINAL_COMMAND"\n')
    wrapper.chmod(0o755)
    (tmp_path / "ssh").mkdir()
    with sshd(tmp_path / "ssh", f'ForceCommand "{wrapper}"') as server:
        monkeypatch.setenv("HOME", str(server.home))
        (home / ".bashrc").write_text("echo this bashrc fails >&2\nfalse\nno-such-command\nreturn 3\n")
        with launcher(server, *server.hosts(1), ssh_client=client) as running:
            run, _ = ready(running)
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)
        (home / ".bashrc").write_text("printf 'Which project? '\nread project\n")
        with launcher(server, *server.hosts(1), ssh_client=client, start_timeout=2) as running:
            run = run_of(running)
            assert running.end(30) == 4
            nothing_left(run)
        assert "said nothing for 2 s, and the host's shell said 'Which project?'" in running.errors[-1]


# ------------------------------------------------------------------------------------------------- ways to log in


def configured(server: Sshd, path: Path, *lines: str) -> str:
    """A configuration of SSH with these lines first."""
    path.write_text("\n".join([*lines, Path(server.configuration).read_text()]))
    return str(path)


def test_a_host_is_logged_in_to_once_whatever_runs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    with sshd(tmp_path) as server:
        monkeypatch.setenv("HOME", str(server.home))
        hosts = [f"{host} nworkers=2" for host in server.hosts(2)]
        with launcher(server, *hosts, ssh_client=client) as running:
            run, address = ready(running)
            with Client(address) as user:
                assert len(user.scheduler_info()["workers"]) == 4
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)
        assert server.log.count("Accepted publickey") == 2


def test_what_asyncssh_does_not_know_openssh_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The host would take an answer to a question too, which asyncssh does not give; this `ssh` knows the key."""
    program, key = shutil.which("ssh"), tmp_path / "key"
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {program} -i {key} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "ssh").mkdir()
    with sshd(tmp_path / "ssh", "KbdInteractiveAuthentication yes") as server:
        monkeypatch.setenv("HOME", str(server.home))
        shutil.move(server.home / ".ssh" / "id_ed25519", key)
        variables = {"PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"}
        with launcher(server, *server.hosts(1), variables=variables, ssh_client="auto") as running:
            run, _ = ready(running)
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)
        with launcher(server, *server.hosts(1), variables=variables, ssh_client="asyncssh") as running:
            assert running.end() == 4
        assert "Permission denied (publickey,keyboard-interactive)" in running.errors[-1]


def test_what_a_host_says_does_nothing_to_a_terminal(server: Sshd, client: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '\\033]0;mine\\007no \\033[31mmodule\\n' >&2\nexit 1\n")
    python.chmod(0o755)
    with launcher(server, *server.hosts(1), ssh_client=client, output="all", remote_python=str(python)) as running:
        assert running.end() == 4
    assert r"python: \x1b]0;mine\x07no \x1b[31mmodule; give --remote-python" in running.errors[-1]
    assert "\x1b" not in running.text


def test_a_jump_leads_to_a_host_and_its_port_is_configured(server: Sshd, client: str, tmp_path: Path) -> None:
    # The `ssh` that the other one starts for the jump would read the configuration of the real user.
    jump = (
        f"ProxyJump 127.0.0.2:{server.port}"
        if client == "asyncssh"
        else f"ProxyCommand ssh -F {server.configuration} -W [%h]:%p -p {server.port} 127.0.0.2"
    )
    configuration = configured(
        server, tmp_path / "config", f"Host inner\n  HostName 127.0.0.4\n  Port {server.port}\n  {jump}"
    )
    with launcher(server, "inner", ssh_client=client, ssh_config=configuration) as running:
        run, address = ready(running)
        with Client(address) as user:
            assert user.submit(pow, 2, 3).result() == 8
        assert running.stop(signal.SIGINT) == 0
        nothing_left(run)


def test_an_agent_has_the_key(server: Sshd, client: str, tmp_path: Path) -> None:
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        until(socket.exists, what="an agent")
        variables = {"SSH_AUTH_SOCK": str(socket)}
        key = server.home / ".ssh" / "id_ed25519"
        subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, **variables}, check=True)
        configuration = tmp_path / "config"
        configuration.write_text(f"Host *\n  UserKnownHostsFile {server.home}/.ssh/known_hosts\n  IdentityFile /none\n")
        with launcher(
            server, *server.hosts(1), variables=variables, ssh_client=client, ssh_config=str(configuration)
        ) as running:
            run, _ = ready(running)
            assert running.stop(signal.SIGINT) == 0
            nothing_left(run)
    finally:
        agent.terminate()
        agent.wait()
