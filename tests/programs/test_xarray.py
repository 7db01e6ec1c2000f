"""xarray computes, reads and writes on a cluster; several processes write one file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.backends import locks

from trio_dask import Client
from trio_dask.client.collections.file_lock import FileLock

pytestmark = pytest.mark.slow

CLUSTERS: dict[str, dict[str, Any]] = {
    "processes": {"n_workers": 3, "threads_per_worker": 2},
    "in the program": {"n_workers": 2, "threads_per_worker": 2, "processes": False},
}


@pytest.fixture(scope="module", params=CLUSTERS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(**CLUSTERS[request.param]) as client:
        yield client


@pytest.fixture
def dataset(client: Client) -> xr.Dataset:
    """Its chunks are in the cluster, spread over the workers."""
    numbers = da.random.default_rng(0).random((120, 120), chunks=20)
    return xr.Dataset({"field": (("x", "y"), numbers), "line": (("x",), da.arange(120, chunks=10))}).persist()


@pytest.fixture
def expected() -> xr.Dataset:
    with dask.config.set(scheduler="sync"):
        numbers = da.random.default_rng(0).random((120, 120), chunks=20)
        return xr.Dataset({"field": (("x", "y"), numbers), "line": (("x",), da.arange(120, chunks=10))}).compute()


def test_compute_load_and_persist(client: Client, dataset: xr.Dataset, expected: xr.Dataset) -> None:
    xr.testing.assert_identical(dataset.compute(), expected)
    assert all(client.has_what().values()), "every worker has some of it"
    xr.testing.assert_allclose(dataset.mean("x").load(), expected.mean("x"))


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_many_tasks_write_one_file(dataset: xr.Dataset, expected: xr.Dataset, engine: Any, tmp_path: Path) -> None:
    pytest.importorskip(engine if engine == "h5netcdf" else "netCDF4")
    path = tmp_path / "data.nc"
    dataset.to_netcdf(path, engine=engine)
    assert os.listdir(tmp_path) == ["data.nc"], "the file of the lock is gone"
    with xr.open_dataset(path, engine=engine) as found:
        xr.testing.assert_identical(found.load(), expected)
    with xr.open_dataset(path, engine=engine, chunks={"x": 30}) as found:
        xr.testing.assert_allclose(found.sum().compute(), expected.sum())


def test_a_file_can_be_written_later(dataset: xr.Dataset, expected: xr.Dataset, tmp_path: Path) -> None:
    written = dataset.to_netcdf(tmp_path / "data.nc", engine="netcdf4", compute=False)
    written.compute()
    with xr.open_dataset(tmp_path / "data.nc", engine="netcdf4") as found:
        xr.testing.assert_identical(found.load(), expected)


def test_many_tasks_write_one_store(dataset: xr.Dataset, expected: xr.Dataset, tmp_path: Path) -> None:
    dataset.to_zarr(tmp_path / "data.zarr", zarr_format=2)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "data.zarr").load(), expected)


def test_tasks_that_write_parts_of_the_same_chunk_wait_for_each_other(dataset: xr.Dataset, tmp_path: Path) -> None:
    """Each reads the whole chunk, changes its part, and writes it back."""
    target: Any = zarr.create_array(store=tmp_path / "one.zarr", shape=(120, 120), chunks=(120, 120), dtype=float)
    da.store(dataset.field.data, target, lock=True)
    np.testing.assert_equal(target[:], dataset.field.values)


def test_the_lock_is_ours_only_where_the_cluster_computes(client: Client, tmp_path: Path) -> None:
    assert isinstance(locks.get_write_lock(str(tmp_path / "a")), FileLock)
    assert isinstance(dask.utils.get_scheduler_lock(), FileLock)
    assert isinstance(dask.utils.get_scheduler_lock(scheduler=client.get), FileLock)
    with dask.config.set(scheduler="threads"):
        assert not isinstance(locks.get_write_lock(str(tmp_path / "a")), FileLock)
        assert not isinstance(dask.utils.get_scheduler_lock(), FileLock)
    with dask.config.set(scheduler=client.get):
        assert isinstance(locks.get_write_lock(str(tmp_path / "a")), FileLock)


def test_an_engine_that_cannot_write_in_pieces_says_so(dataset: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="scipy"):
        dataset.to_netcdf(tmp_path / "data.nc", engine="scipy")
