"""dask and pandas, as tests use them: dask has types for some of its functions only."""

from typing import Any

import dask as _dask
import dask._task_spec
import dask.array
import dask.bag
import dask.config
import dask.dataframe
import pandas  # type: ignore[import-untyped]
from dask.delayed import Delayed as _Delayed
from dask.delayed import delayed as _delayed

da: Any = _dask.array
db: Any = _dask.bag
dd: Any = _dask.dataframe
delayed: Any = _delayed
Delayed: Any = _Delayed
Task: Any = _dask._task_spec.Task
TaskRef: Any = _dask._task_spec.TaskRef
flatten: Any = _dask.core.flatten
pd: Any = pandas
whole: Any = _dask
"""dask itself."""
