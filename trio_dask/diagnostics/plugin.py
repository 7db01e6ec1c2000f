"""What distributed has in `distributed.diagnostics.plugin`."""

from trio_dask.plugins.bases import Environ, NannyPlugin, WorkerPlugin
from trio_dask.plugins.files import UploadDirectory
from trio_dask.plugins.installs import InstallPlugin, PipInstall
from trio_dask.scheduler.plugins import SchedulerPlugin

__all__ = [
    "Environ",
    "InstallPlugin",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "WorkerPlugin",
]
