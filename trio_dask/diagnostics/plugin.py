"""What distributed has in `distributed.diagnostics.plugin`."""

from trio_dask.plugins.bases import Environ, NannyPlugin, WorkerPlugin
from trio_dask.plugins.files import UploadDirectory, UploadFile
from trio_dask.plugins.installs import InstallPlugin, PipInstall
from trio_dask.scheduler.plugins import SchedulerPlugin
from trio_dask.worker.forwarded_output import ForwardOutput

__all__ = [
    "Environ",
    "ForwardOutput",
    "InstallPlugin",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "UploadFile",
    "WorkerPlugin",
]
