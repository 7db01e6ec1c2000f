"""A dask.array that is larger than one block: its blocks are computed, kept and reduced in the workers."""

import dask.array as da

from trio_dask import Client, wait

with Client(n_workers=2, threads_per_worker=1) as client:  # from here on, collections compute on its cluster
    x = da.arange(4_000_000, chunks=500_000).reshape(2000, 2000)
    print("sum:", (x + x.T - x.mean(axis=0)).sum().compute())

    kept = (x % 7).persist()  # returns at once; the blocks stay in the cluster as long as this array lives
    wait(kept)
    print("sevenths:", da.bincount(kept.ravel(), minlength=7).compute().tolist())

    future = client.compute(kept.max(), priority=5)  # a future, as from submit
    print("largest:", future.result())
