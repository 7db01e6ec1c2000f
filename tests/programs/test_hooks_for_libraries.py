"""joblib, dask and xarray know of a cluster whatever is imported first, and are imported by nothing of ours."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LIBRARIES = "import dask.array, joblib, xarray.backends"
CLIENT = "from trio_dask import Client\nclient = Client(n_workers=1, processes=False)"
CHECK = """
import sys
from xarray.backends import locks
assert "trio_dask" in joblib.parallel.BACKENDS
assert "FileLock" in repr(locks.get_write_lock("a.nc")), locks.get_write_lock("a.nc")
assert "FileLock" in repr(dask.array.core.get_scheduler_lock())
find = getattr(locks, "get_dask_scheduler", None) or locks._get_scheduler
homes = [module for module in list(sys.modules.values()) if getattr(module, find.__name__, None) not in (None, find)]
assert homes == [], homes
client.close()
assert "FileLock" not in repr(locks.get_write_lock("a.nc"))
assert "FileLock" not in repr(dask.array.core.get_scheduler_lock())
"""


@pytest.mark.parametrize("first", [LIBRARIES, CLIENT], ids=["libraries first", "client first"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    second = CLIENT if first == LIBRARIES else LIBRARIES
    subprocess.run([sys.executable, "-c", f"{first}\n{second}\n{CHECK}"], check=True)


def test_a_client_and_its_tasks_import_none_of_them() -> None:
    check = "import sys; assert not {'dask', 'joblib', 'xarray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{CLIENT}\nclient.submit(abs, -1).result()\n{check}"], check=True)
