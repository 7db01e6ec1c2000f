"""Random graphs, and what they must evaluate to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from trio_dask.ids import Key

ALWAYS = 1_000_000
"""A task that fails this many times fails for good."""


@dataclass
class Job:
    """One task: its inputs, how long it takes, how often it fails before it succeeds."""

    key: Key
    inputs: tuple[Key, ...]
    seconds: float
    failing: int
    retries: int
    small: bool
    version: int = 0
    """Counts up when the key is given to another call."""
    executions: int = 0
    reschedules: int = 0
    """How often it asks to be run elsewhere."""
    rescheduled: int = 0
    movable: bool = False
    """The actor that it makes may move."""

    @property
    def call(self) -> bytes:
        """What is to be computed, for `compute`."""
        return f"{self.key}#{self.version}".encode()


def compute(call: bytes, inputs: Sequence[int]) -> int:
    """The value of a task: depends on its call and on every input, and on nothing else."""
    text = b"%b:%b" % (call, ",".join(map(str, inputs)).encode())
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


def expected(jobs: dict[Key, Job]) -> dict[Key, int | None]:
    """What each task must give: its value, or None where it or an ancestor fails for good."""
    values: dict[Key, int | None] = {}
    for key, job in jobs.items():  # inputs come first
        inputs = [values[name] for name in job.inputs]
        known = [value for value in inputs if value is not None]
        values[key] = None if job.failing > job.retries or len(known) < len(inputs) else compute(job.call, known)
    return values


def random_jobs(rng: random.Random, count: int) -> dict[Key, Job]:
    """A random acyclic graph: chains, fans, merges and loners, some tasks failing, some only at first."""
    jobs: dict[Key, Job] = {}
    keys: list[Key] = []
    shape = rng.choice(("any", "chain", "fan", "tree"))
    for number in range(count):
        key = f"t{number}"
        if not keys or rng.random() < (0.05 if shape == "chain" else 0.3):
            inputs: tuple[Key, ...] = ()
        elif shape == "chain":
            inputs = (keys[-1],)
        elif shape == "fan":
            inputs = (keys[0],)
        elif shape == "tree" and len(keys) > 1:
            inputs = tuple(dict.fromkeys((keys[-1 - number % 2], keys[len(keys) // 2])))
        else:
            inputs = tuple(dict.fromkeys(rng.choices(keys, k=rng.choice((1, 1, 2, 2, 3, 6)))))
        fate = rng.random()
        failing, retries = 0, 0
        if fate < 0.03:
            failing = ALWAYS
        elif fate < 0.10:
            failing = rng.randint(1, 2)
            retries = failing
        seconds = rng.choice((0.0, 0.0001, 0.001, 0.01, rng.expovariate(20.0)))
        jobs[key] = Job(key, inputs, seconds, failing, retries, rng.random() < 0.5)
        keys.append(key)
    return jobs


def renewable_jobs(rng: random.Random) -> dict[Key, Job]:
    """Tasks on their own, whose keys one client gives to one call after another."""
    keys = [f"r{number}" for number in range(rng.randint(0, 3))]
    return {key: Job(key, (), rng.random() * 0.05, 0, 0, rng.random() < 0.7) for key in keys}
