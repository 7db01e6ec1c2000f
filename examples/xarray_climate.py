"""xarray: a dataset in chunks, computed on the cluster, and one netCDF file that all workers write."""

import tempfile
from pathlib import Path

import dask.array as da
import pandas as pd
import xarray as xr

from trio_dask import Client

with Client(n_workers=2, threads_per_worker=1), tempfile.TemporaryDirectory() as folder:
    days = pd.date_range("2026-01-01", periods=365)
    warmth = da.arange(365 * 40 * 60, chunks=365 * 400).reshape(365, 40, 60) % 31
    dataset = xr.Dataset({"warmth": (("time", "lat", "lon"), warmth.rechunk((73, 20, 60)))}, {"time": days})

    monthly = dataset.warmth.resample(time="QS").mean(...)
    print("by quarter:", monthly.compute().round(2).values.tolist())

    path = Path(folder) / "warmth.nc"
    dataset.to_netcdf(path)  # workers write their chunks one after the other, by a lock that all of them share
    with xr.open_dataset(path, chunks={"time": 100}) as found:
        print("the same:", bool((found.warmth == dataset.warmth).all()), "mean:", float(found.warmth.mean().round(3)))
