"""What holds for all tests."""

import gc
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

# How long one example takes depends on what else the machine does; a test that hangs is ended by pytest's timeout.
settings.register_profile("trio_dask", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile("trio_dask")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the simulation, whose tests take longest: at the end everything would wait for one of them."""
    items.sort(key=lambda item: "simulation" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all that was imported, in each of thousands of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_real_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no program that one starts, reads or makes the cluster key of the user that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("TRIO_DASK_CLUSTER_KEY_FILE", raising=False)
        yield


@pytest.fixture
def running() -> Iterator[tuple[int, float]]:
    """Another process that lives, and when it started."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid, psutil.Process(process.pid).create_time()
        process.kill()
