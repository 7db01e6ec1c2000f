"""Fetches results from one worker, and reports each to the core."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from functools import partial

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetch_queue import FetchRequest
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, WorkerChannels, failure_text
from trio_dask.comm.transport import PeerSilent
from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import Absent, Fetch, Value

Lock = AbstractContextManager[object]


async def fetch(request: FetchRequest, channels: WorkerChannels, core: ClientCore, lock: Lock) -> None:
    """Carry out one request; if the worker fails, report each remaining key to the core."""
    address, states = request
    left = deque(states)
    reason, is_silent = "", False
    try:
        await channels.exchange(address, partial(_fetch_each, address, left, core, lock))
    except CHANNEL_FAILURES as error:
        channels.drop(address)
        reason, is_silent = failure_text(address, error), isinstance(error, PeerSilent)
    finally:
        with lock:
            for state in left:
                core.fetch_failed(address, state, reason or "the fetch was given up", is_silent=is_silent)
            core.fetch_ended(address)


async def _fetch_each(address: str, left: deque[KeyState], core: ClientCore, lock: Lock, channel: Channel) -> None:
    await channel.send(Fetch(tuple(state.key for state in left)))
    while left:
        message, frames = await channel.receive()
        state = left[0]
        if isinstance(message, Value) and message.key == state.key:
            left.popleft()
            with lock:
                core.fetched(address, state, frames)
        elif isinstance(message, Absent) and message.key == state.key:
            left.popleft()
            reason = message.text or f"{address} no longer holds it"
            with lock:
                core.fetch_failed(address, state, reason, final=bool(message.text))
        else:
            raise ProtocolError(f"asked for {state.key!r}, got {type(message).__name__}")
