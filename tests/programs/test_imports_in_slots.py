"""The first tasks of a worker may import a large package in several slots at the same time."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("dask.dataframe", reason="pip install 'trio_dask[dask]'")

PROGRAM = """
import pickle, threading
from trio_dask.worker.serial_loading import load_alone

def text(name):
    return b"\\x8c" + bytes([len(name)]) + name

def name(module, attribute):
    return b"\\x80\\x04" + text(module) + text(attribute) + b"\\x93."

def load(module):
    barrier.wait()
    loaded.append(load_alone(pickle.loads, name(module, b"__name__")))

modules = {modules!r}
barrier, loaded = threading.Barrier(len(modules)), []
threads = [threading.Thread(target=load, args=(module,)) for module in modules]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sorted(loaded) == sorted(module.decode() for module in modules), loaded
"""


@pytest.mark.parametrize(
    "modules",
    [
        (b"dask.dataframe", b"dask.dataframe.dask_expr._expr"),
        (b"dask.dataframe.dask_expr._groupby", b"dask.dataframe.dask_expr.datasets"),
        (b"dask.dataframe.methods", b"dask.dataframe.dask_expr._shuffle", b"dask.dataframe.dask_expr.io.io"),
    ],
)
def test_slots_that_load_parts_of_one_package_do_not_meet_it_half_made(modules: tuple[bytes, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(modules=modules)], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
