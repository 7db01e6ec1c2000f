"""The tests of `dask-ssh` as an ordinary user: where this runs as root, a user is made for them, and removed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.programs import REPOSITORY
from tests.programs.sshd import need

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="all tests run as an ordinary user already"),
]

TESTS = (
    "test_ssh.py::test_four_hosts_run_a_job_and_nothing_is_left_after_ctrl_c",
    "test_ssh.py::test_a_killed_launcher_leaves_nothing",
    "test_ssh.py::test_a_missing_python_is_told",
    "test_ssh.py::test_an_unknown_host_key_is_told_with_its_fingerprint",
    "test_ssh_troubles.py::test_a_stopped_ssh_server_cannot_keep_what_it_started",
    "test_ssh_troubles.py::test_hostile_options_arrive_as_they_are",
    "test_dask_ssh.py::test_what_launchers_have_left_can_be_ended",
)
STARTS = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", "import trio_dask.deploy.ssh.remote"]))
"""
MAY_READ = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")


@pytest.fixture
def user() -> Iterator[str]:
    """A new user with a shell and without a home. Nobody knows its password; sshd refuses users who have none."""
    need()
    if not shutil.which("useradd") or not shutil.which("setpriv"):
        pytest.skip("after: apt-get install passwd util-linux")
    name = f"trio-dask-{os.getpid()}"
    subprocess.run(
        ["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", "--password", "*", name], check=True
    )
    try:
        yield name
    finally:
        subprocess.run(["userdel", name], check=True)


def test_an_ordinary_user_has_the_same(user: str) -> None:
    become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
    if subprocess.run(
        [*become, sys.executable, "-c", STARTS], cwd=REPOSITORY, capture_output=True, check=False
    ).returncode:
        become += MAY_READ  # Python, or this package, is in a folder of root
    with tempfile.TemporaryDirectory(prefix="trio-dask-") as folder:
        shutil.chown(folder, user, user)
        done = subprocess.run(
            [
                *[*become, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
                *["--basetemp", str(Path(folder, "tests")), *(f"tests/programs/{test}" for test in TESTS)],
            ],
            cwd=REPOSITORY,
            env={**os.environ, "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout, done.stdout
