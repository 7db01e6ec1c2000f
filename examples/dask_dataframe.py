"""A dask.dataframe: grouped, shuffled and merged between the workers."""

import dask.dataframe as dd
import numpy as np
import pandas as pd

from trio_dask import Client


def month(number: int) -> pd.DataFrame:
    """One partition. A worker makes it; it could read a file."""
    days = np.arange(30)
    return pd.DataFrame({"city": np.where(days % 3, "Oslo", "Rome"), "month": number, "rain": (days * number) % 11})


with Client(n_workers=2, threads_per_worker=1):
    rain = dd.from_map(month, range(1, 13))
    print(rain.groupby("city").rain.sum().compute().sort_index().to_dict())

    by_month = rain.set_index("month")  # moves rows between workers
    print("in spring:", int(by_month.loc[3:5].rain.sum().compute()))

    cities = dd.from_pandas(pd.DataFrame({"city": ["Oslo", "Rome"], "people": [700_000, 2_800_000]}), npartitions=1)
    merged = rain.merge(cities, on="city")
    print("wet people:", int(merged[merged.rain > 8].people.sum().compute()))
