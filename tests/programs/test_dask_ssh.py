"""`dask-ssh` over real SSH servers: what it shows in a pipe and on a terminal, and how it ends."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.programs.pages import run_page
from tests.programs.programs import PATIENCE_S, REPOSITORY, Program, program
from tests.programs.sshd import Sshd, make_key, need, processes_of, sshd
from trio_dask import Client
from trio_dask.deploy.ssh.orders import RUN_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MORE = ("--scheduler-port", "0", "--nthreads", "1", "--memory-limit", "0", "--", "--memory-target", "off")
SLOW_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need()
    with sshd(tmp_path_factory.mktemp("ssh"), "MaxStartups 100") as running:
        yield running


def dask_ssh(server: Sshd, *arguments: str, cwd: Path | None = None) -> AbstractContextManager[Program]:
    return program("-m", "trio_dask", "ssh", *arguments, env=server.environment(), cwd=cwd)


def test_in_a_pipe_each_host_is_a_line_and_what_a_user_needs_is_on_stdout(server: Sshd) -> None:
    hosts = server.hosts(2)
    with dask_ssh(server, *hosts, *MORE) as running:
        address = running.wait_for(r"^Scheduler +(tls://\S+)$", running.output, timeout_s=SLOW_S)
        running.wait_for("^Stop +Ctrl-C$", running.output)
        with Client(address) as client:
            assert client.submit(pow, 2, 10).result() == 1024
        assert running.stop(signal.SIGINT) == 0, running.text
    assert running.output == [
        f"Scheduler  {address}",
        "Workers    2 workers on 2 hosts",
        f'Client     from trio_dask import Client; client = Client("{address}")',
        "Stop       Ctrl-C",
    ]
    steps = ", ".join(rf"{step} [\d.]+ s" for step in ("resolve", "login", "python", "version", "started", "joined"))
    python = ".".join(map(str, sys.version_info[:3]))
    for host in hosts:
        line = re.compile(rf"{re.escape(host)}: Python {python}, trio_dask \S+, 1 worker \({steps}\)")
        assert sum(bool(line.fullmatch(found)) for found in running.errors) == 1, running.text
    assert len(running.errors) == 5, running.text
    assert re.fullmatch(r"Run \w+ on 2 hosts", running.errors[0])
    assert running.errors[-1].endswith("; 0 processes left on 2 hosts")


def test_a_failure_is_told_once_and_ends_everything_with_status_4(server: Sshd) -> None:
    with dask_ssh(server, *server.hosts(1), "no-such-host.invalid", *MORE) as running:
        assert running.end(SLOW_S) == 4
    assert running.output == []
    told = [line for line in running.errors if "no-such-host.invalid" in line]
    assert len(told) == 1, running.text
    assert "no-such-host.invalid: resolve: unknown host name" in told[0]
    assert "try `ssh no-such-host.invalid true`" in told[0]


def test_the_others_go_on_without_a_host_that_may_be_missing(server: Sshd) -> None:
    with dask_ssh(server, *server.hosts(1), "no-such-host.invalid", "--allow-missing", "1", *MORE) as running:
        running.wait_for(
            r"^Workers +1 worker on 1 host, without no-such-host.invalid$", running.output, timeout_s=SLOW_S
        )
        assert running.stop(signal.SIGTERM) == 0
    assert sum("no-such-host.invalid" in line for line in running.errors) == 1, running.text


def test_the_scheduler_may_have_a_host_of_its_own(server: Sshd) -> None:
    first, second = server.hosts(2)
    with dask_ssh(server, first, "--scheduler", second, *MORE) as running:
        running.wait_for(r"^Workers +1 worker on 1 host$", running.output, timeout_s=SLOW_S)
        assert running.stop(signal.SIGINT) == 0
    assert [line for line in running.errors if line.startswith(f"{second}: ") and "the scheduler (" in line]
    assert running.errors[-1].endswith("0 processes left on 2 hosts")


def test_workers_join_a_scheduler_that_runs_and_leave_it_as_it_was(server: Sshd) -> None:
    variables = server.environment()
    with program("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", env=variables) as scheduler:
        address = scheduler.wait_for(r"Scheduler at: +(\S+)$")
        with dask_ssh(server, *server.hosts(2), "--scheduler", address, *MORE[2:]) as running:
            running.wait_for(r"^Workers +2 workers on 2 hosts$", running.output, timeout_s=SLOW_S)
            assert running.output[0].endswith(address)
            with Client(address) as client:
                assert client.submit(pow, 2, 10).result() == 1024
                assert running.stop(signal.SIGINT) == 0, running.text
                assert client.scheduler_info()["workers"] == {}
        assert scheduler.stop(signal.SIGINT) == 0


def test_a_check_starts_nothing_and_tells_every_host_that_fails(server: Sshd) -> None:
    bad = ["no-such-host.invalid", f"{server.hosts(1)[0]} python=/no/such/python"]
    with dask_ssh(server, *bad, server.hosts(2)[1], "--check") as running:
        assert running.end(SLOW_S) == 4
    assert running.output == ["1 of 3 hosts can run workers"]
    assert running.errors[-1].endswith("2 hosts cannot be used")
    assert len(running.errors) == 4
    (line,) = [line for line in running.errors if "failed: python: " in line]
    assert line.startswith(server.hosts(1)[0])


def test_a_check_has_each_host_reach_the_schedulers_place(server: Sshd) -> None:
    with dask_ssh(server, *server.hosts(2), "--check", "--scheduler-port", "0") as running:
        assert running.end(SLOW_S) == 0, running.text
    assert running.output == ["2 of 2 hosts can run workers"]
    assert re.search(r"127.0.0.2\S*: .*listens at \S+:\d+", running.text), running.text
    assert re.search(r"127.0.0.3\S*: .*reaches \S+:\d+", running.text), running.text


def test_a_check_tells_a_way_back_that_is_closed(server: Sshd) -> None:
    with dask_ssh(server, *server.hosts(2), "--check", "--scheduler", "tcp://127.0.0.1:1") as running:
        assert running.end(SLOW_S) == 4
    assert running.output == ["0 of 2 hosts can run workers"]
    told = "failed: reach: cannot reach 127.0.0.1:1: Connection refused; open the scheduler's port"
    assert sum(told in line for line in running.errors) == 2, running.text


def test_a_check_tells_that_the_schedulers_port_is_taken(server: Sshd) -> None:
    with dask_ssh(server, *server.hosts(2), "--check", "--scheduler-port", str(server.port)) as running:
        assert running.end(SLOW_S) == 4
    told = f"failed: scheduler: cannot listen at port {server.port}: Address already in use"
    assert any(told in line for line in running.errors), running.text


def test_what_launchers_have_left_can_be_ended(server: Sshd) -> None:
    with subprocess.Popen(["sleep", "600"], env={**os.environ, RUN_VARIABLE: "leftover"}) as leftover:
        with dask_ssh(server, *server.hosts(2), "--clean") as running:
            assert running.end(SLOW_S) == 0
        assert leftover.wait(PATIENCE_S) == -signal.SIGKILL
    assert re.fullmatch(r"[1-9]\d* process(es)? ended on 2 hosts", running.output[0])


def test_quiet_says_nothing(server: Sshd, tmp_path: Path) -> None:
    with dask_ssh(server, server.hosts(1)[0], "-q", "--scheduler-file", "cluster.json", *MORE, cwd=tmp_path) as running:
        deadline = time.monotonic() + SLOW_S
        while not (tmp_path / "cluster.json").exists():
            assert time.monotonic() < deadline, running.text
            time.sleep(0.05)
        file = tmp_path / "cluster.json"
        assert file.stat().st_mode & 0o777 == 0o600
        with Client(scheduler_file=str(file)) as client:  # the key of this cluster stands in no other place here
            assert client.submit(pow, 2, 10).result(timeout=PATIENCE_S) == 1024
        assert running.stop(signal.SIGINT) == 0
    assert running.text == "-- stderr"


class Terminal:
    """A program on a terminal of 100 columns."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self._fd, end = pty.openpty()
        more = {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=end, stdout=end, stderr=end, env={**env, **more}, start_new_session=True
        )
        os.close(end)
        self.text = ""

    def wait_for(self, pattern: str) -> None:
        """Read until this has appeared."""
        deadline = time.monotonic() + SLOW_S
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            self._read()

    def write(self, text: str) -> None:
        """Type this."""
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Its status."""
        while self._read():
            pass
        os.close(self._fd)
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode()).replace("\r", "")
        return bool(data)


def test_on_a_terminal_a_table_is_drawn_until_all_is_ready(server: Sshd) -> None:
    hosts = server.hosts(2)
    terminal = Terminal("-m", "trio_dask", "ssh", *hosts, *MORE, env=server.environment())
    terminal.wait_for("Stop +Ctrl-C")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0, terminal.text
    last = terminal.text[terminal.text.rindex("HOST ") :].splitlines()
    assert last[0].split() == ["HOST", "RESOLVE", "LOGIN", "PYTHON", "VERSION", "STARTED", "JOINED"]
    for host, line in zip(hosts, last[1:], strict=False):
        assert re.fullmatch(rf"{re.escape(host)}(\s+[\d.]+ s){{6}}\s*", line), terminal.text
    assert last[3].strip() == ""
    assert last[4].startswith("Scheduler")
    assert "0 processes left on 2 hosts" in terminal.text


def test_a_passphrase_is_asked_once_beside_the_table(tmp_path: Path) -> None:
    need()
    with sshd(tmp_path / "ssh") as server:
        key = server.home / ".ssh" / "id_ed25519"
        key.unlink()
        key.with_suffix(".pub").unlink()
        make_key(key, "secret words")
        command = ("-m", "trio_dask", "ssh", *server.hosts(2), "--check")
        terminal = Terminal(*command, env=server.environment())
        terminal.wait_for("Passphrase for .*id_ed25519: ")
        terminal.write("secret words\n")
        assert terminal.end() == 0, terminal.text
        assert terminal.text.count("Passphrase for") == 1
        assert "secret" not in terminal.text
        with program(*command, env=server.environment()) as running:
            assert running.end(SLOW_S) == 4
        assert "passphrase" in running.text


def test_the_example_runs_on_two_hosts(server: Sshd, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [REPOSITORY / "examples" / "ssh.sh", *server.hosts(2)],
        env=server.environment(PATH=path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SLOW_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sum: 285" in done.stdout
    assert "0 processes left on 2 hosts" in done.stderr


def test_the_guide_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need()
    addresses = ("127.0.0.1", "127.0.0.2")
    with sshd(tmp_path / "ssh", addresses=addresses) as server:
        (server.home / ".ssh" / "config").write_text(f"Host {' '.join(addresses)}\n    Port {server.port}\n")
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        run_page(REPOSITORY / "docs" / "ssh.md", tmp_path, 18786)
    runs = re.findall(r"\bRun (\w+) on ", (tmp_path / "output.log").read_text())
    assert runs
    assert [processes_of(run) for run in runs] == [[]] * len(runs)
