"""Names under which users of distributed import them: `from trio_dask.diagnostics import MemorySampler`."""

from trio_dask.client.memory_sampler import MemorySampler
from trio_dask.client.progress import progress
from trio_dask.plugins.bases import Environ, NannyPlugin, WorkerPlugin
from trio_dask.plugins.files import UploadDirectory
from trio_dask.plugins.installs import InstallPlugin, PipInstall
from trio_dask.scheduler.plugins import SchedulerPlugin

__all__ = [
    "Environ",
    "InstallPlugin",
    "MemorySampler",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "WorkerPlugin",
    "progress",
]
