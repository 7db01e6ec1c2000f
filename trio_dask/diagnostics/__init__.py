"""Names under which users of distributed import them: `from trio_dask.diagnostics import MemorySampler`."""

from trio_dask.client.memory_sampler import MemorySampler
from trio_dask.client.progress import progress
from trio_dask.plugins.bases import Environ, NannyPlugin, WorkerPlugin
from trio_dask.plugins.files import UploadDirectory, UploadFile
from trio_dask.plugins.installs import InstallPlugin, PipInstall
from trio_dask.scheduler.plugins import SchedulerPlugin
from trio_dask.worker.forwarded_output import ForwardOutput

__all__ = [
    "Environ",
    "ForwardOutput",
    "InstallPlugin",
    "MemorySampler",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "UploadFile",
    "WorkerPlugin",
    "progress",
]
