"""Workers under a real Slurm: each takes its own share, drains when it is told to, and the example works."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import REPOSITORY, environment
from tests.programs.slurm import Slurm, need, slurm, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(180)]

OWN = "Starting 1 worker: 1 thread (SLURM_CPUS_PER_TASK), memory limit 1.00 GiB (SLURM_MEM_PER_CPU)"
PROGRAM = """
import os, time
from trio_dask import Client
with Client(scheduler_file=os.environ["SCHEDULER_FILE"], timeout=30) as client:
    client.wait_for_workers(4, timeout=30)
    print("sum", client.submit(sum, client.map(abs, range(-100, 0))).result(timeout=30), flush=True)
    time.sleep(float(os.environ.get("LINGER", "0")))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    need()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with slurm(tmp_path_factory.mktemp("slurm"), environment(measured=False, PATH=programs)) as up:
        yield up


@pytest.fixture
def script(cluster: Slurm) -> Callable[[str], Path]:
    """Write a batch script."""

    def write(text: str) -> Path:
        path = cluster.folder / "script.sh"
        path.write_text(f"#!/bin/bash\n{text}\n")
        return path

    return write


def starts(text: str) -> list[str]:
    return ["Starting " + line.partition("Starting ")[2] for line in text.splitlines() if "Starting " in line]


WORKER = f"{sys.executable} -m trio_dask worker tcp://127.0.0.1:1 --death-timeout 0.5s"


def test_tasks_of_srun_share_their_node(cluster: Slurm, script: Callable[[str], Path]) -> None:
    """Two tasks on one node: neither takes what is the other's."""
    options = ("--ntasks=2", "--nodes=1", "--cpus-per-task=1", "--mem-per-cpu=1G")
    job = cluster.submit(script(f"srun --cpus-per-task=1 {WORKER}"), options=options)
    cluster.wait(job)
    assert starts(cluster.output(job)) == [OWN, OWN]


def test_tasks_of_a_step_over_two_nodes_know_their_node(cluster: Slurm, script: Callable[[str], Path]) -> None:
    """Two tasks on one node, one on the other, which has its processors for itself."""
    options = ("--ntasks=3", "--nodes=2", "--distribution=block", "--mem=2G", "--exclusive")
    job = cluster.submit(script(f"srun {WORKER}"), options=options)
    cluster.wait(job)
    lines = sorted(re.findall(r"(\d) threads? .*limit (\S+) GiB \((\w+)\)", cluster.output(job)))
    assert lines == [("1", "1.00", "SLURM_MEM_PER_NODE")] * 2 + [("2", "2.00", "rlimit")]


def test_a_bare_srun_shares_memory_too(cluster: Slurm) -> None:
    """It tells its tasks nothing about memory; their resource limit is that of the whole job on this node."""
    done = cluster.run(
        "srun", "--ntasks=2", "--cpus-per-task=1", "--mem-per-cpu=1G", "bash", "-c", f"{WORKER} 2>&1; true"
    )
    assert len(re.findall(r"1 thread \(SLURM_CPUS_PER_TASK\).*1.00 GiB \(SLURM_STEP_TASKS_PER_NODE\)", done)) == 2


def test_a_batch_script_has_the_whole_nodes_share(cluster: Slurm, script: Callable[[str], Path]) -> None:
    options = ("--ntasks=2", "--nodes=1", "--cpus-per-task=1", "--mem-per-cpu=1G")
    job = cluster.submit(script(WORKER), options=options)
    cluster.wait(job)
    (line,) = starts(cluster.output(job))
    assert "2 threads" in line
    assert "memory limit 2.00 GiB (rlimit)" in line  # the variables say the same


def example(cluster: Slurm, **variables: Any) -> int:
    program = cluster.folder / "program.py"
    program.write_text(PROGRAM)
    return cluster.submit(
        REPOSITORY / "examples" / "slurm.sh",
        sys.executable,
        str(program),
        SCHEDULER_OPTIONS="--host 127.0.0.1",
        **variables,
    )


def test_the_example_computes_and_ends(cluster: Slurm) -> None:
    job = example(cluster)
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    text = cluster.output(job)
    assert "sum 5050" in text
    assert starts(text) == [OWN] * 4
    assert not re.search("Traceback|Killed", text), text
    assert list(cluster.folder.glob("scheduler-*.json")) == []


def test_the_example_drains_when_its_time_is_nearly_up(cluster: Slurm) -> None:
    """`--signal=B:TERM@60` reaches the batch script alone; here it is sent by hand."""
    job = example(cluster, LINGER="60")
    wait_for(lambda: "sum 5050" in cluster.output(job), "the program computes")
    cluster.run("scancel", "--batch", "--signal=TERM", str(job))
    cluster.wait(job, 40)
    text = cluster.output(job)
    assert not re.search(r"Traceback|Killed|srun: error", text), text
    assert len(re.findall(r"\(pid \d+\) stopped", text)) == 4, text
    assert list(cluster.folder.glob("scheduler-*.json")) == []
