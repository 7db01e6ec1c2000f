"""The systems that are measured. A new one: a subclass of ``Rival`` in a file of its own, and a line below.

Modules are imported only where they are measured: a rival that is not installed is reported, not missed.
"""

from __future__ import annotations

import importlib

from .base import Rival

RIVALS = {
    "trio_dask": "benchmarks.rivals.trio_dask:TrioDask",
    "distributed": "benchmarks.rivals.distributed:Distributed",
    "sync": "benchmarks.rivals.one_process:OneProcess",
    "ppe": "benchmarks.rivals.process_pool:ProcessPool",
}


def load(name: str) -> Rival:
    module, _, attribute = RIVALS[name].partition(":")
    rival = getattr(importlib.import_module(module), attribute)()
    assert isinstance(rival, Rival)
    return rival
