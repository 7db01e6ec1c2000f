"""dask and pandas, as tests use them: dask has types for some of its functions only."""

from typing import Any

import dask
import dask.array
import dask.bag
import dask.dataframe
import pandas  # type: ignore[import-untyped]
from dask.delayed import delayed as _delayed

da: Any = dask.array
db: Any = dask.bag
dd: Any = dask.dataframe
delayed: Any = _delayed
flatten: Any = dask.core.flatten
pd: Any = pandas
