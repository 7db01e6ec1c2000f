"""What the worker core asks of the service that drives it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType

from trio_dask.ids import Digest, Key
from trio_dask.protocol.messages import (
    FromWorker,
    HandOverActor,
    Run,
    SettleActor,
    SetUpPlugin,
    TakeActor,
    TearDownPlugin,
)

FetchId = NewType("FetchId", int)
"""Names one attempt to fetch from one peer; minted by the core, counting up."""


class CancelRun(NamedTuple):
    """Stop this run, which a slot has taken, if it can be stopped; report its outcome to the core all the same."""

    run: Run


class StartFetch(NamedTuple):
    """Ask the peer at `address` for `keys`; report each answer and the end to the core."""

    fetch: FetchId
    address: str
    keys: tuple[Key, ...]


class CancelFetch(NamedTuple):
    """The rest of this fetch is not needed; the core has forgotten it."""

    fetch: FetchId


class FreeKeys(NamedTuple):
    """Drop these values."""

    keys: tuple[Key, ...]


class ForgetFunctions(NamedTuple):
    """Drop whatever was unpickled from these blobs."""

    digests: tuple[Digest, ...]


class Then(Enum):
    """What follows a session that the scheduler has ended."""

    LEAVE = "the worker leaves for good"
    RESTART = "the worker registers again, as a new incarnation"
    SUCCESSOR = "the scheduler stops: the worker waits for the next one, or leaves, as its settings say"


class EndSession(NamedTuple):
    """The scheduler ends this session."""

    reason: str
    then: Then


Request = (
    CancelRun
    | StartFetch
    | CancelFetch
    | FreeKeys
    | ForgetFunctions
    | SetUpPlugin
    | TearDownPlugin
    | HandOverActor
    | TakeActor
    | SettleActor
    | EndSession
)


class Effects(NamedTuple):
    """Everything the core wants done since it was last asked, each list in order.

    `messages` go to the scheduler before any run of this batch starts. `offered` is the number of runs that have become
    ready, and of slots to wake.
    """

    messages: list[FromWorker]
    requests: list[Request]
    offered: int
