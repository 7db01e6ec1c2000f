"""What distributed has in `distributed.diagnostics.memory_sampler`."""

from trio_dask.client.memory_sampler import MemorySampler

__all__ = ["MemorySampler"]
