"""The phases of a worker, and the table of the steps between them.

A worker is always in exactly one phase, and a phase carries only what is true in it. `worker_transitions.change_phase`
is the only function that changes a phase, and takes no step that is not in `WORKER_TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol.hello import Hello

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import Task, Worker


WORKER_TRANSITIONS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("new", "here"): "it registered",
        ("here", "away"): "its connection was lost, or it has begun another session",
        ("here", "retiring"): "it drains, or a client retires it",
        ("here", "gone"): "it said goodbye, its process ended, or it gave no sign of life",
        ("away", "returning"): "it connected again within its grace",
        ("away", "gone"): "its grace is over, its process ended, a successor took its name, or the cluster restarts",
        ("returning", "here"): "it said what it brings back",
        ("returning", "retiring"): "it said what it brings back, and is to leave",
        ("returning", "away"): "its connection was lost again",
        ("returning", "gone"): "it said goodbye, its process ended, or it gave no sign of life",
        ("retiring", "here"): "its retirement was called off: no other worker can take what it holds",
        ("retiring", "dismissed"): "it runs nothing, and no result is lost with it",
        ("retiring", "away"): "its connection was lost, or it has begun another session",
        ("retiring", "gone"): "it said goodbye, its process ended, or it gave no sign of life",
        ("dismissed", "away"): "its connection was lost, or it has begun another session",
        ("dismissed", "gone"): "it left as it was told",
    }
)
"""All transitions there are, each with its reason. The diagram in the documentation is made from this table."""


@dataclass(slots=True, eq=False, repr=False)
class ActorTrouble:
    """Why an actor has not moved so far."""

    text: str
    is_final: bool
    """No other worker is to try it."""
    tried: list[Worker] = field(default_factory=list["Worker"])
    """These could not make it."""


@dataclass(slots=True, eq=False, repr=False)
class Retirement:
    """That a worker is to leave, and why; it lasts while the worker is away."""

    reason: str
    self_initiated: bool
    """The worker drains: it takes no more runs, and cannot be kept."""
    attempts: dict[Task, int] = field(default_factory=dict["Task", int])
    """How often each result that only retiring workers hold was to be copied elsewhere."""
    actors: dict[Task, ActorTrouble] = field(default_factory=dict["Task", "ActorTrouble"])
    """Why actors have not moved elsewhere so far."""


@dataclass(slots=True, eq=False, repr=False)
class Absence:
    """What gathers from the loss of a worker's connection until the worker has said what it brings back."""

    blocked_tasks: dict[Task, None] = field(default_factory=dict["Task", None])
    """Ready tasks that wait for the worker's return, because it alone has inputs of theirs."""
    failed_readers: list[tuple[PeerId, Task]] = field(default_factory=list[tuple[PeerId, "Task"]])
    """Clients that could not get a result from the worker while it was away."""
    old_incarnations: tuple[Incarnation, ...] = ()
    """Earlier sessions: the worker may not have learnt of the later ones."""


class New:
    """Not registered yet."""

    __slots__ = ()
    name: ClassVar[str] = "new"
    has_session: ClassVar[bool] = False
    retirement: ClassVar[None] = None


class Here:
    """It has a session and is given work."""

    __slots__ = ()
    name: ClassVar[str] = "here"
    has_session: ClassVar[bool] = True
    retirement: ClassVar[None] = None


@dataclass(slots=True, eq=False, repr=False)
class Away:
    """Its connection was lost. Its results and runs are kept until its grace is over."""

    absence: Absence
    retirement: Retirement | None
    why: str
    until: float
    report_at: float
    """When the operator is told that the connection is lost."""
    offered_to: Hello | None = None
    """The last hello of the worker that was answered with the offer to go on."""
    name: ClassVar[str] = "away"
    has_session: ClassVar[bool] = False


@dataclass(slots=True, eq=False, repr=False)
class Returning:
    """It has a session again, and has not said yet what it brings back."""

    absence: Absence
    retirement: Retirement | None
    name: ClassVar[str] = "returning"
    has_session: ClassVar[bool] = True


@dataclass(slots=True, eq=False, repr=False)
class Retiring:
    """It gets no more work, and leaves once it runs nothing and others have its results."""

    retirement: Retirement
    name: ClassVar[str] = "retiring"
    has_session: ClassVar[bool] = True


@dataclass(slots=True, eq=False, repr=False)
class Dismissed:
    """It was told to leave."""

    retirement: Retirement
    name: ClassVar[str] = "dismissed"
    has_session: ClassVar[bool] = True


class Gone:
    """Left or lost for good; only stale references see it."""

    __slots__ = ()
    name: ClassVar[str] = "gone"
    has_session: ClassVar[bool] = False
    retirement: ClassVar[None] = None


WorkerPhase: TypeAlias = New | Here | Away | Returning | Retiring | Dismissed | Gone

NEW: Final = New()
HERE: Final = Here()
GONE: Final = Gone()
