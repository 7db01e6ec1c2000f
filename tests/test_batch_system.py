import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask import batch_system
from trio_dask.batch_system import Amount
from trio_dask.host_limits import cpus, memory

MIB = 2**20
GIB = 2**30

# As Slurm 22.05 sets them for `srun --ntasks=2 --cpus-per-task=1` inside a job with --mem-per-cpu=1G.
TASK = {
    "SLURM_CPUS_ON_NODE": "2",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_JOB_CPUS_PER_NODE": "2",
    "SLURM_MEM_PER_CPU": "1024",
    "SLURM_NODEID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2",
}


PER_TASK, ON_NODE, TASKS = "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE"
PER_CPU, PER_NODE = "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE"


def granted(environment: Mapping[str, str | None]) -> list[str | None]:
    """Processors, and memory in MiB, with where they come from. Variables that are None are not set."""
    set_ones = {name: value for name, value in environment.items() if value is not None}
    found = []
    for amounts, unit in ((batch_system.cpus(set_ones), 1), (batch_system.memory(set_ones, 8 * GIB), MIB)):
        least = min(amounts, key=lambda amount: amount.number, default=None)
        found.append(None if least is None else f"{least.number // unit} {least.source}")
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["1 SLURM_CPUS_PER_TASK", "1024 SLURM_MEM_PER_CPU"]),
        ({PER_TASK: None}, ["1 SLURM_CPUS_ON_NODE", "1024 SLURM_MEM_PER_CPU"]),
        ({PER_TASK: "4", ON_NODE: "8"}, ["4 SLURM_CPUS_PER_TASK", "4096 SLURM_MEM_PER_CPU"]),
        # A step with more tasks than its job was planned for: the job's --cpus-per-task reaches them all the same.
        ({PER_TASK: "8", ON_NODE: "8"}, ["4 SLURM_CPUS_ON_NODE", "4096 SLURM_MEM_PER_CPU"]),
        ({PER_TASK: None, ON_NODE: None}, ["1 SLURM_JOB_CPUS_PER_NODE", "1024 SLURM_MEM_PER_CPU"]),
        ({PER_CPU: None, PER_NODE: "3000"}, ["1 SLURM_CPUS_PER_TASK", "1500 SLURM_MEM_PER_NODE"]),
        ({PER_CPU: None, PER_NODE: "0"}, ["1 SLURM_CPUS_PER_TASK", "4096 SLURM_STEP_TASKS_PER_NODE"]),
        ({PER_CPU: None}, ["1 SLURM_CPUS_PER_TASK", "4096 SLURM_STEP_TASKS_PER_NODE"]),
        ({PER_CPU: None, TASKS: "1"}, ["1 SLURM_CPUS_PER_TASK", None]),
        ({PER_CPU: "nonsense", TASKS: "1"}, ["1 SLURM_CPUS_PER_TASK", None]),
    ],
)
def test_a_task_of_srun_has_its_own_share_of_the_node(
    changes: dict[str, str | None], expected: list[str | None]
) -> None:
    assert granted({**TASK, **changes}) == expected


def test_a_batch_script_has_the_whole_nodes_share() -> None:
    script = {**TASK, "SLURM_STEP_ID": None, TASKS: None}
    assert granted(script) == ["2 SLURM_CPUS_ON_NODE", "2048 SLURM_MEM_PER_CPU"]
    assert granted({**script, PER_CPU: None, PER_NODE: "3000"}) == ["2 SLURM_CPUS_ON_NODE", "3000 SLURM_MEM_PER_NODE"]


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("2(x3),1", "0", 3), ("2(x3),1", "2", 3), ("2(x3),1", "3", 6), ("1,2(x2),3", "3", 2), ("2(x3),1", "4", 6)],
)
def test_tasks_are_counted_on_the_node_of_the_task(tasks: str, node: str, expected: int) -> None:
    """A node that the list does not have counts as one with a single task."""
    task = {**TASK, PER_TASK: None, ON_NODE: "6", TASKS: tasks, "SLURM_TASKS_PER_NODE": None, "SLURM_NODEID": node}
    assert granted(task)[0] == f"{expected} SLURM_CPUS_ON_NODE"


@pytest.mark.parametrize("name", ["SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"])
def test_tasks_are_counted_where_the_step_does_not_tell(name: str) -> None:
    task = {**TASK, TASKS: None, "SLURM_TASKS_PER_NODE": None, PER_TASK: None}
    assert granted(task)[0] == "2 SLURM_CPUS_ON_NODE"
    assert granted({**task, name: "2"})[0] == "1 SLURM_CPUS_ON_NODE"


@given(st.dictionaries(st.sampled_from(sorted(TASK)), st.text(max_size=20) | st.sampled_from(["2(x3),1", "0", "9"])))
def test_no_nonsense_stops_a_program(environment: dict[str, str]) -> None:
    for amount in [*batch_system.cpus(environment), *batch_system.memory(environment, GIB)]:
        assert amount.number >= 1


def test_slots_of_grid_engine() -> None:
    assert granted({"JOB_ID": "7", "NSLOTS": "4"}) == ["4 NSLOTS", None]
    assert granted({"JOB_ID": "7", "NSLOTS": "4", "NHOSTS": "1"}) == ["4 NSLOTS", None]
    assert granted({"NSLOTS": "4"}) == [None, None]  # no job of Grid Engine


def test_slots_of_grid_engine_on_several_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NSLOTS is then the sum over all hosts."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="node2"))
    hosts = tmp_path / "pe_hostfile"
    hosts.write_text("node1.example 8 all.q@node1 UNDEFINED\nnode2.example 3 all.q@node2 UNDEFINED\n")
    job = {"JOB_ID": "7", "NSLOTS": "11", "NHOSTS": "2", "PE_HOSTFILE": str(hosts)}
    assert granted(job) == ["3 PE_HOSTFILE", None]
    assert granted({**job, "PE_HOSTFILE": str(tmp_path / "missing")}) == [None, None]


def test_processors_of_pbs() -> None:
    assert granted({"PBS_JOBID": "7.server", "NCPUS": "4"}) == ["4 NCPUS", None]
    assert granted({"NCPUS": "4"}) == [None, None]


def test_the_kernel_wins_where_it_grants_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    task = {**TASK, PER_TASK: "4", ON_NODE: "8", PER_CPU: "1"}
    assert cpus(tmp_path, task) == Amount(1, "affinity")
    assert memory(tmp_path, task) == Amount(4 * MIB, "SLURM_MEM_PER_CPU")


def test_limits_that_slurm_sets_for_all_tasks_of_a_node_are_shared_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare srun sets resource limits and control groups to the job's memory on the node, and no variable."""
    monkeypatch.setattr("resource.getrlimit", lambda kind: (GIB, GIB))
    assert memory(tmp_path, {**TASK, PER_CPU: ""}) == Amount(GIB // 2, TASKS)
    assert memory(tmp_path, {**TASK, PER_CPU: "", TASKS: "1"}) == Amount(GIB, "rlimit")
