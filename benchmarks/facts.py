"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .rivals import load


@dataclass(frozen=True)
class Facts:
    date: str
    cpus: int
    processor: str
    system: str
    python: str
    load_before: str
    versions: dict[str, str]
    repeats: int
    quick: bool

    def lines(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        size = "quick: small sizes, not for publication" if self.quick else "full size"
        return [
            f"{self.date}; {self.cpus} CPUs ({self.processor}); {self.system}; load before {self.load_before}",
            f"{self.python}; {versions}",
            f"median of {self.repeats}, rivals in turn, {size}; scheduler, two workers of one thread and client are "
            "processes of their own; TCP on loopback",
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(from the checkout)"


def collect(rivals: Sequence[str], *, repeats: int, quick: bool) -> Facts:
    versions = {}
    for name in rivals:
        try:
            distribution = load(name).distribution
        except ImportError:
            versions[name] = "(not installed)"
        else:
            versions[name] = _version(distribution) if distribution else "(standard library)"
    for name in ("trio", "numpy", "msgpack"):
        versions[name] = _version(name)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load_before = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return Facts(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpus=cpus,
        processor=_processor(),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        load_before=load_before,
        versions=versions,
        repeats=repeats,
        quick=quick,
    )
