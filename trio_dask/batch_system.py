"""Processors and memory that a batch system grants to this process: Slurm, Grid Engine, PBS.

Each amount names the environment variable that it comes from. Where a system binds its tasks to processors, or puts
them into control groups, `host_limits` finds those limits too, and the smallest counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

MIB = 2**20
TASKS = "SLURM_STEP_TASKS_PER_NODE"


class Amount(NamedTuple):
    """An amount of processors or bytes, and what limits it."""

    number: int
    source: str


def cpus(environment: Mapping[str, str]) -> Iterator[Amount]:
    """Processors that a batch system grants to this process. The first of equal amounts is the one to name."""
    yield from _slurm_cpus(environment)
    yield from _grid_engine_cpus(environment)
    if "PBS_JOBID" in environment:
        yield from _amount(environment, "NCPUS")


def memory(environment: Mapping[str, str], available_bytes: int) -> Iterator[Amount]:
    """Memory that a batch system grants to this process, in bytes.

    A bare `srun --mem-per-cpu` tells its tasks nothing about memory. The tasks of the job on this node then share what
    the other limits leave, since Slurm sets those for all of them together.
    """
    tasks = _slurm_tasks(environment)
    amounts = [amount._replace(number=amount.number * MIB) for amount in _slurm_memory(environment)]
    if not amounts and tasks > 1:
        amounts = [Amount(available_bytes // tasks, TASKS)]
    yield from amounts


def _slurm_cpus(environment: Mapping[str, str]) -> Iterator[Amount]:
    tasks = _slurm_tasks(environment)
    if tasks:
        yield from _amount(environment, "SLURM_CPUS_PER_TASK")
    node = [*_amount(environment, "SLURM_CPUS_ON_NODE"), *_of_node(environment, "SLURM_JOB_CPUS_PER_NODE")][:1]
    yield from (amount._replace(number=max(1, amount.number // max(1, tasks))) for amount in node)


def _slurm_memory(environment: Mapping[str, str]) -> Iterator[Amount]:
    """In MiB. A job has a limit for the node or one for each processor; 0 means all of the node."""
    tasks = max(1, _slurm_tasks(environment))
    for amount in _amount(environment, "SLURM_MEM_PER_NODE"):
        yield amount._replace(number=max(1, amount.number // tasks))
    share = min((amount.number for amount in _slurm_cpus(environment)), default=0)
    for amount in _amount(environment, "SLURM_MEM_PER_CPU"):
        if share:
            yield amount._replace(number=amount.number * share)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node; 0 outside steps: a batch script is the only process of its node."""
    if "SLURM_STEP_ID" not in environment:
        return 0
    for name in (TASKS, "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"):
        for amount in _of_node(environment, name):
            return amount.number
    return 1


def _of_node(environment: Mapping[str, str], name: str) -> Iterator[Amount]:
    """This node's part of a list such as `2(x3),1`: three nodes with 2, and one with 1."""
    index = number_in(environment.get("SLURM_NODEID", "0"))
    for part in environment.get(name, "").split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if found is None or index is None:
            return
        repeats = int(found[2] or 1)
        if index < repeats:
            if int(found[1]):
                yield Amount(int(found[1]), name)
            return
        index -= repeats


def _grid_engine_cpus(environment: Mapping[str, str]) -> Iterator[Amount]:
    """NSLOTS counts the slots on all hosts of a job; if there are several hosts, PE_HOSTFILE has those of this one."""
    if "JOB_ID" not in environment:
        return
    if environment.get("NHOSTS", "1") == "1":
        yield from _amount(environment, "NSLOTS")
        return
    try:
        rows = Path(environment.get("PE_HOSTFILE", "")).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return  # the processes on other hosts may not be able to read it
    here = os.uname().nodename.partition(".")[0]
    for words in map(str.split, rows):
        if len(words) > 1 and words[0].partition(".")[0] == here and (number := number_in(words[1])):
            yield Amount(number, "PE_HOSTFILE")
            return


def _amount(environment: Mapping[str, str], name: str) -> Iterator[Amount]:
    number = number_in(environment.get(name, ""))
    if number:
        yield Amount(number, name)


def number_in(text: str) -> int | None:
    """A number of at most 15 digits; None for anything else, which limits nothing."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None
