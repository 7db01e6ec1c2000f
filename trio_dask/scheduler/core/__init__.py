"""The scheduler's decisions: plain synchronous code, to be driven by a service, a simulation or a test."""

from trio_dask.scheduler.core.scheduler import SchedulerCore
from trio_dask.scheduler.core.state import ClosePeer, CoreSettings, LogLine, Request, Stop, WorkerInfo

__all__ = ["ClosePeer", "CoreSettings", "LogLine", "Request", "SchedulerCore", "Stop", "WorkerInfo"]
