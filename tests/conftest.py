"""What holds for all tests."""

import os
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

# How long one example takes depends on what else the machine does; a test that hangs is ended by pytest's timeout.
settings.register_profile("trio_dask", deadline=None)
settings.load_profile("trio_dask")


# What the user of this machine has configured is for the user's own clusters.
os.environ["TRIO_DASK_CONFIG"] = ""


@pytest.fixture
def running() -> Iterator[tuple[int, float]]:
    """Another process that lives, and when it started."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid, psutil.Process(process.pid).create_time()
        process.kill()
