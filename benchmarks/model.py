"""What a case, a metric and a required bound are."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .rivals.base import Rival

OURS = "trio_dask"


class Unsupported(Exception):
    """This rival has no such thing: a fact about it, not a failure."""


class Kind(enum.Enum):
    """The dimension of a figure, in base units: seconds, bytes per second, bytes, percent, or a plain number."""

    TIME = "s"
    RATE = "B/s"
    SIZE = "B"
    PERCENT = "%"
    NUMBER = ""


@dataclass(frozen=True)
class Bound:
    """``value <= limit`` or ``>= limit``; the value is ours, or ours divided by a rival's."""

    limit: float
    text: str
    rival: str | None = None
    at_least: bool = False
    strict: bool = False

    def holds(self, value: float) -> bool:
        if self.at_least:
            return value >= self.limit
        return value < self.limit if self.strict else value <= self.limit


def at_most_of(rival: str, divisor: float) -> Bound:
    """Our time is at most ``1/divisor`` of the rival's."""
    return Bound(1 / divisor, f"at most 1/{divisor:g} of {rival}", rival=rival)


def at_least_times(rival: str, factor: float) -> Bound:
    return Bound(factor, f"at least {factor:g} times {rival}", rival=rival, at_least=True)


def at_most_times(rival: str, factor: float) -> Bound:
    return Bound(factor, f"at most {factor:g} times {rival}", rival=rival)


def below(rival: str) -> Bound:
    return Bound(1.0, f"below {rival}", rival=rival, strict=True)


def absolute(limit: float, text: str, *, strict: bool = False) -> Bound:
    return Bound(limit, text, strict=strict)


def at_least(limit: float, text: str) -> Bound:
    return Bound(limit, text, at_least=True)


@dataclass(frozen=True)
class Metric:
    key: str
    label: str
    kind: Kind
    bounds: tuple[Bound, ...] = ()
    rivals_key: str | None = None
    """Rivals' figure to compare with, when they have no such metric of their own."""


@dataclass(frozen=True)
class Sizes:
    """How much work each case does."""

    latency_calls: int
    map_tasks: int
    gather_tasks: int
    gather_tasks_slow: int
    chain_steps: int
    tree_exponent: int
    merge_tasks: int
    dag_tasks: int
    bag_shape_parts: int
    handovers: int
    handovers_slow: int
    queue_items: int
    collection_share: float
    """How much of its full size each collection has."""
    shuffle_bytes: int
    array_bytes: int
    array_count: int
    argument_bytes: int
    transfer_bytes: int
    transfer_count: int
    stream_bytes: int
    idle_s: float
    memory_limit: int
    memory_times: int
    block_bytes: int
    core_tasks: int
    core_memory_tasks: int
    core_workers: tuple[int, ...] = (1, 10, 100, 1000)


MB = 1_000_000

FULL = Sizes(
    latency_calls=500,
    map_tasks=20_000,
    gather_tasks=100_000,
    gather_tasks_slow=20_000,
    chain_steps=2_000,
    tree_exponent=14,
    merge_tasks=25_000,
    dag_tasks=20_000,
    bag_shape_parts=50,
    handovers=100_000,
    handovers_slow=2_000,
    queue_items=20_000,
    collection_share=1.0,
    shuffle_bytes=2_000 * MB,
    array_bytes=20 * MB,
    array_count=10,
    argument_bytes=2**30,
    transfer_bytes=50 * MB,
    transfer_count=4,
    stream_bytes=2**28,
    idle_s=10.0,
    memory_limit=256 * MB,
    memory_times=4,
    block_bytes=4 * MB,
    core_tasks=100_000,
    core_memory_tasks=1_000_000,
)

QUICK = Sizes(
    latency_calls=100,
    map_tasks=2_000,
    gather_tasks=10_000,
    gather_tasks_slow=2_000,
    chain_steps=200,
    tree_exponent=10,
    merge_tasks=2_500,
    dag_tasks=2_000,
    bag_shape_parts=15,
    handovers=4_000,
    handovers_slow=400,
    queue_items=1_000,
    collection_share=0.1,
    shuffle_bytes=100 * MB,
    array_bytes=20 * MB,
    array_count=3,
    argument_bytes=16 * MB,
    transfer_bytes=50 * MB,
    transfer_count=2,
    stream_bytes=2**25,
    idle_s=3.0,
    memory_limit=256 * MB,
    memory_times=2,
    block_bytes=4 * MB,
    core_tasks=10_000,
    core_memory_tasks=100_000,
)


@dataclass(frozen=True)
class Context:
    """What a case is given: the rival under test, the sizes, and a scratch folder."""

    rival: Rival
    sizes: Sizes
    folder: Path


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    run: Callable[[Context], dict[str, float]]
    metrics: tuple[Metric, ...]
    cluster: bool = True
    """Start the rival's cluster and warm it up first; neither is measured."""
    encrypted: bool = False
    """All connections of the cluster use TLS, with certificates both ways."""
    only_ours: bool = False
    moves_data: bool = False
    """Memory is touched before it, so that nobody pays for what a virtual machine's host has taken away."""
    note: str = ""
