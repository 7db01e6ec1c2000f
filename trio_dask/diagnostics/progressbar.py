"""What distributed has in `distributed.diagnostics.progressbar`."""

from trio_dask.client.progress import progress

__all__ = ["progress"]
