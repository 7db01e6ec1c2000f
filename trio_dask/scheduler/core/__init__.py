"""The scheduler's decisions: plain synchronous code, to be driven by a service, a simulation or a test."""

from trio_dask.scheduler.core.admission import Admit, CallAgain, Outcome, Refuse, Resume
from trio_dask.scheduler.core.events import (
    ClientAdded,
    ClientRemoved,
    Event,
    EventRing,
    GraphAdded,
    Noted,
    TaskMoved,
    WorkerAdded,
    WorkerRemoved,
)
from trio_dask.scheduler.core.scheduler import SchedulerCore
from trio_dask.scheduler.core.state import (
    ClosePeer,
    CoreSettings,
    LogLine,
    Request,
    ServiceQuestion,
    Stop,
    WorkerInfo,
)

__all__ = [
    "Admit",
    "CallAgain",
    "ClientAdded",
    "ClientRemoved",
    "ClosePeer",
    "CoreSettings",
    "Event",
    "EventRing",
    "GraphAdded",
    "LogLine",
    "Noted",
    "Outcome",
    "Refuse",
    "Request",
    "Resume",
    "SchedulerCore",
    "ServiceQuestion",
    "Stop",
    "TaskMoved",
    "WorkerAdded",
    "WorkerInfo",
    "WorkerRemoved",
]
