"""A real Slurm without systemd: a controller and two nodes on this host, on loopback. Needs root, and packages."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

INSTALL = "apt-get install slurmctld slurmd slurm-client munge"
REQUIRED = "TRIO_DASK_TESTS_REQUIRE_SLURM"  # .ci/run sets it: there, a test that does not run has failed

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
KillWait=30
InactiveLimit=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def need() -> None:
    """Skip the test where there is no Slurm, and say how to get it; fail it where Slurm is promised."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun", "sbatch") if not shutil.which(name)]
    if not missing and os.geteuid() == 0:
        return
    why = f"as root, after: {INSTALL}"
    if os.environ.get(REQUIRED):
        pytest.fail(why)
    pytest.skip(why)


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody uses at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Slurm:
    """Runs commands of a Slurm that is up."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment

    def run(self, *command: str, **variables: str) -> str:
        """The output of a command of Slurm; it has to succeed."""
        done = subprocess.run(
            command,
            env={**self._environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> int:
        """Submit a batch script; gives the number of its job, whose output goes to `output(job)`."""
        return int(self.run("sbatch", "--parsable", "--output=%j.out", *options, str(script), *arguments, **variables))

    def output(self, job: int) -> str:
        """What the job has written so far."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: int) -> str:
        """RUNNING, COMPLETED, FAILED, ..."""
        words = self.run("scontrol", "show", "job", str(job), "--oneliner").split()
        return next(word.removeprefix("JobState=") for word in words if word.startswith("JobState="))

    def wait(self, job: int, timeout_s: float = 60) -> str:
        """The state in which the job has ended."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < deadline, f"job {job} is {state}:\n{self.output(job)}"
            time.sleep(0.2)
        return state


@contextmanager
def slurm(folder: Path, environment: dict[str, str]) -> Iterator[Slurm]:
    """A Slurm with two idle nodes. Its daemons have ended when the block is left."""
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "n1", "n2", "work"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3)))
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    munged = ["munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed"]
    munged += [f"--{option}={folder / name}" for option, name in files.items()]
    environment = {**environment, "SLURM_CONF": str(configuration)}
    with ExitStack() as stack:
        stack.enter_context(daemon(munged, folder, environment))
        wait_for((folder / "munge.socket").exists, "munged")
        stack.enter_context(daemon(["slurmctld", "-D"], folder, environment))
        for name in ("n1", "n2"):
            stack.enter_context(daemon(["slurmd", "-D", "-N", name], folder, environment))
        up = Slurm(folder / "work", environment)
        wait_for(lambda: up.run("sinfo", "--noheader", "-o", "%T %D").split() == ["idle", "2"], "two idle nodes")
        yield up


@contextmanager
def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}-{command[-1].strip('-')[:2]}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except AssertionError:
            pass  # the controller does not answer yet
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
