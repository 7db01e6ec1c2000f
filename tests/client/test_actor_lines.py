"""Calls of actors, below the futures that stand for their answers."""

from __future__ import annotations

import threading
from typing import Any, cast

import trio

from trio_dask.client.actor_lines import ActorLines, BothWays, Outgoing
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import SharedState
from trio_dask.ids import RunId
from trio_dask.protocol.messages import KeyFailed


class Shared:
    def __init__(self) -> None:
        self.core = ClientCore()
        self.lock = threading.Lock()

    def check_open(self) -> None: ...


class Calls:
    """Counts the lines that are begun."""

    def __init__(self) -> None:
        self.lines = 0

    def start(self, *_: Any) -> None:
        self.lines += 1

    def run_soon(self, *_: Any) -> None: ...


async def open_nothing(address: str) -> BothWays:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


async def find_nothing(key: str) -> str:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


def test_a_call_of_an_actor_that_is_known_to_be_lost_fails_at_once() -> None:
    """Its worker may be silent: no answer would come, and no news of the scheduler either."""
    calls = Calls()
    lines = ActorLines(cast("SharedState", Shared()), cast("LoopCalls", calls), open_nothing, find_nothing)
    actor, call = KeyState("actor"), KeyState("actor.method")
    actor.status = "error"
    actor.failure = KeyFailed("actor", "actor", "actor", None, "its worker left", {})
    lines.call("tcp://silent:1", Outgoing(call, "actor", RunId(1), "method", [], None), actor)
    assert (call.status, calls.lines) == ("error", 0)
    assert isinstance(call.failure, KeyFailed)
    assert (call.failure.kind, call.failure.text) == ("actor", "its worker left")


def test_a_call_of_an_actor_that_is_there_is_sent() -> None:
    calls = Calls()
    lines = ActorLines(cast("SharedState", Shared()), cast("LoopCalls", calls), open_nothing, find_nothing)
    actor, call = KeyState("actor"), KeyState("actor.method")
    actor.status = "finished"
    lines.call("tcp://there:1", Outgoing(call, "actor", RunId(1), "method", [], None), actor)
    assert (call.status, calls.lines) == ("pending", 1)
