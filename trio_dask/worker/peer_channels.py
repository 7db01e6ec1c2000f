"""Fetches values from peers. Channels are kept for the next use, and each fetch is one request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import trio

from trio_dask.comm import DataChannel
from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol.messages import Absent, Fetch, Value
from trio_dask.worker.result_store import Frames

Take = Callable[[Key, Frames | None], None]
"""Takes one answer: the frames of the value, or None if the peer does not have the key."""

Room = Callable[[int], AbstractAsyncContextManager[None]]
"""Waits until this many bytes can come in, and holds the room for them."""

MAX_IDLE = 64
IDLE_S = 60.0


class _Idle(NamedTuple):
    channel: DataChannel
    since: float


class PeerChannels:
    """The data channels of this worker. `open_channel` connects to an address; values wait for `room`."""

    def __init__(self, open_channel: Callable[[str], Awaitable[DataChannel]], room: Room | None = None) -> None:
        self._open = open_channel
        self._room = room
        self._idle: dict[str, list[_Idle]] = {}

    async def fetch(self, address: str, keys: Sequence[Key], take: Take) -> None:
        """Ask a peer for keys, and give `take` each answer as it comes: the frames, or None if the peer has none.

        Raises:
          OSError: the peer cannot be reached, or was lost meanwhile.
          ProtocolError: its answer is something else.
        """
        left = list(reversed(keys))
        while left:
            kept = bool(self._idle.get(address))
            asked = len(left)
            try:
                async with self._channel(address) as channel:
                    await self._exchange(channel, left, take)
            except (OSError, trio.EndOfChannel) as error:
                # A kept channel may have been closed meanwhile; that says nothing about the peer.
                if not kept or len(left) < asked:
                    raise error if isinstance(error, OSError) else ConnectionError(f"{address} left") from error

    def close_idle(self, now: float) -> None:
        """Close the channels that were not used for a while."""
        self._close(now - IDLE_S)

    def close(self) -> None:
        """Close all unused channels."""
        self._close(float("inf"))

    def _close(self, unused_since: float) -> None:
        for address, channels in list(self._idle.items()):
            kept = [idle for idle in channels if idle.since > unused_since]
            for idle in channels[: len(channels) - len(kept)]:
                idle.channel.abort()
            if kept:
                self._idle[address] = kept
            else:
                del self._idle[address]

    async def _exchange(self, channel: DataChannel, left: list[Key], take: Take) -> None:
        await channel.send(Fetch(tuple(reversed(left))))
        while left:
            message, buffers = await channel.receive(self._room)
            if not isinstance(message, Value | Absent) or message.key != left[-1]:
                raise ProtocolError(f"a peer was asked for {left[-1]!r} and answered with a {type(message).__name__}")
            take(left.pop(), buffers if isinstance(message, Value) else None)
            del buffers  # while we wait for the next value, only the store may hold this one

    @asynccontextmanager
    async def _channel(self, address: str) -> AsyncGenerator[DataChannel]:
        idle = self._idle.get(address)
        if idle:
            channel = idle.pop().channel
            if not idle:
                del self._idle[address]
        else:
            channel = await self._open(address)
        try:
            yield channel
        except BaseException:  # it is not known what is still on its way
            channel.abort()
            raise
        if sum(map(len, self._idle.values())) < MAX_IDLE:
            self._idle.setdefault(address, []).append(_Idle(channel, trio.current_time()))
        else:
            channel.abort()
