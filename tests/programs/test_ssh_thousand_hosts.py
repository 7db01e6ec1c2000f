"""A launcher on a thousand hosts, which one SSH server plays: what it needs of memory and processor time."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from tests.programs.programs import REPOSITORY, environment, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOSTS = ("good@node[0001-0900]", "bad@node[0901-1000]")


def test_a_thousand_hosts_take_200_mb_and_20_s(tmp_path: Path) -> None:
    home = tmp_path / ".ssh"
    home.mkdir(mode=0o700)
    (home / "id_ed25519").touch(mode=0o600)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(home / "id_ed25519")
    command = [sys.executable, "-m", "tests.deploy.ssh.scripted_server", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            key = (tmp_path / "host_key.pub").read_text()
            (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
            (home / "config").write_text(f"Host node*\n  HostName 127.0.0.1\n  Port {port}\n")
            arguments = ("-c", MEASURED, *HOSTS, "--allow-missing", "100", "--ssh-client", "asyncssh")
            with program(*arguments, env={**environment(), "HOME": str(tmp_path), "SSH_AUTH_SOCK": ""}) as running:
                running.wait_for("^Workers +900 workers on 900 hosts, without bad@", running.output, timeout_s=200)
                running.process.send_signal(signal.SIGINT)
                assert running.end(100) == 0, running.text
        finally:
            server.kill()
    failed = [line for line in running.errors if "going on without it" in line]
    assert len(failed) == 100
    assert all(re.match(r"bad@node\d+: login: Permission denied \(publickey\); try `ssh bad@", line) for line in failed)
    assert "0 processes left on 900 hosts" in running.text
    used = running.wait_for(r"^used (.*)$", running.output).split()
    processor_s, memory_kib = float(used[0]), int(used[1])
    assert processor_s < 20, used
    assert memory_kib < 200_000, used


MEASURED = """
import resource, sys
from trio_dask.cli.ssh import main
status = main()
used = resource.getrusage(resource.RUSAGE_SELF)  # its maximum of memory is that of the parent, if this is larger
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("used", used.ru_utime + used.ru_stime, peak)
sys.exit(status)
"""
