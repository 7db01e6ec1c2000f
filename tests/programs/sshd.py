"""OpenSSH's server, started by a test on addresses of loopback, with keys and a configuration of its own.

Needs Debian's openssh-server.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.programs import programs
from tests.programs.programs import REPOSITORY, Program, environment, until

REQUIRED = "TRIO_DASK_TESTS_REQUIRE_SSHD"  # .ci/run sets it: there, a test that does not run has failed
ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 10))

CONFIGURATION = """
{more}
Port {port}
{listen}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/home/.ssh/id_ed25519.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
SetEnv PYTHONPATH={repository} HOME={remote_home}
"""


def need() -> None:
    """Skip the test where there is no OpenSSH, and say how to get it; fail it where OpenSSH is promised."""
    if program() is None or shutil.which("ssh") is None:
        _lack("openssh-server")


def need_shell(shell: str) -> None:
    """The same for a login shell, whose package has its name."""
    if shutil.which(shell) is None:
        _lack(shell)


def _lack(package: str) -> None:
    import pytest  # benchmarks use this file without it

    why = f"after: apt-get install {package}"
    if os.environ.get(REQUIRED):
        pytest.fail(why)
    pytest.skip(why)


def program() -> str | None:
    """Where sshd is; often not on the path of users."""
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class Sshd:
    """A server that runs. `home` is the home of a user who may log in to it, and knows its first six addresses."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = port
        self.process = process

    def hosts(self, number: int) -> list[str]:
        """The first addresses at which it listens, as hosts with a port."""
        return [f"{address}:{self.port}" for address in ADDRESSES[:number]]

    @property
    def configuration(self) -> str:
        """The file with that user's configuration of SSH."""
        return str(self.home / ".ssh" / "config")

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a program of that user."""
        return {**environment(), "SSH_AUTH_SOCK": "", "HOME": str(self.home), **more}

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "sshd.log").read_text()


def make_key(path: Path, passphrase: str = "") -> None:
    """A new pair of keys."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)


@contextmanager
def sshd(
    folder: Path,
    *more: str,
    addresses: Sequence[str] = ADDRESSES,
    remote_home: Path | None = None,
    within: Sequence[str] = (),
) -> Iterator[Sshd]:
    """A server with these lines of configuration before ours, on a free port of these addresses, started by `within`.

    A login finds `remote_home`, or an empty home, for the start-up files of the real one may do anything (pyenv's
    wait a minute for a lock that a killed shell has left).
    """
    home = folder / "home" / ".ssh"
    home.mkdir(parents=True)
    (folder / "remote_home").mkdir()
    home.chmod(0o700)
    make_key(folder / "host_key")
    make_key(home / "id_ed25519")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    port = _free_port(addresses)
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (home / "known_hosts").write_text("".join(f"[{address}]:{port} {host_key}\n" for address in addresses[:6]))
    # The `ssh` program looks for the home of its user in the list of users, and not in the environment.
    (home / "config").write_text(f"Host *\n  UserKnownHostsFile {home}/known_hosts\n  IdentityFile {home}/id_ed25519\n")
    (folder / "sshd_config").write_text(
        CONFIGURATION.format(
            port=port,
            listen="\n".join(f"ListenAddress {address}" for address in addresses),
            folder=folder,
            repository=REPOSITORY,
            remote_home=remote_home or folder / "remote_home",
            more="\n".join(more),
        )
    )
    command = [*within, program() or "sshd", "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(addresses[-1], port, process)
        yield Sshd(folder, port, process)
    finally:
        process.terminate()
        process.wait(10)


def _free_port(addresses: Sequence[str]) -> int:
    """A port that is free on all of these addresses."""
    while True:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    with socket.socket() as other:
                        other.bind((address, port))
            except OSError:
                continue
            return port


def _wait_until_it_listens(address: str, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((address, port)).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, "sshd has ended"
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.01)


def processes_of(run: str) -> list[int]:
    """The processes of a launcher's run, found by what each carries, and by other code than ours."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit():
                comm = Path(f"/proc/{entry}/comm").read_text().strip()
                environ = Path(f"/proc/{entry}/environ").read_bytes()
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and (comm.startswith(f"tds-{run}") or f"SSH_RUN={run}".encode() in environ):
                    found.append(int(entry))
        except OSError:
            pass
    return found


def name_of(pid: int) -> str:
    """What a process calls itself."""
    return Path(f"/proc/{pid}/comm").read_text()


def launcher(
    server: Sshd, *hosts: str, variables: Mapping[str, str] | None = None, **settings: Any
) -> AbstractContextManager[Program]:
    """A launcher on these hosts."""
    settings = {"ssh_config": server.configuration, "ssh_client": "asyncssh", **settings}
    return programs.program(
        "-m",
        "tests.programs.launch_ssh",
        json.dumps(settings),
        *hosts,
        env=server.environment(**(variables or {})),
        cwd=REPOSITORY,
    )


def run_of(running: Program) -> str:
    """The name of the run."""
    return running.wait_for(r"\bRun (\w+) on ")


def ready(running: Program) -> tuple[str, str]:
    """The name of the run, and the scheduler's address, once everything is ready."""
    address = running.wait_for(r"^ready (.*)", running.output, timeout_s=60)
    return run_of(running), address


def nothing_left(run: str, within_s: float = 2) -> None:
    """Within this time nothing of the run is left."""
    until(lambda: not processes_of(run), within_s, f"no process of run {run}")
