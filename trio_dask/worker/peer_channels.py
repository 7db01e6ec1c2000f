"""Fetches values from peers. Channels are kept for the next use, and each fetch is one request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from math import inf
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

MEASURED_BYTES = 2**20
"""A value from this size on tells how fast values come; a smaller one tells more of the peer's attention."""

SMOOTHING = 0.3
"""Weight of the newest value in `bytes_per_s`."""

MAX_IDLE = 64
IDLE_S = 60.0


def _do_nothing() -> None:
    return None


class _Idle(NamedTuple):
    address: str
    channel: DataChannel
    since: float


class PeerChannels:
    """The data channels of this worker. `open_channel` connects to an address; values wait for `room`."""

    def __init__(self, open_channel: Callable[[str], Awaitable[DataChannel]], room: Room | None = None) -> None:
        self._open = open_channel
        self._room = room
        self._idle: list[_Idle] = []
        self._is_closed = False
        self.bytes_per_s: float | None = None
        """How fast large values have come of late, once there was one."""

    async def fetch(
        self, address: str, keys: Sequence[Key], take: Take, pause: Callable[[], object] = _do_nothing
    ) -> None:
        """Ask a peer for keys, and give `take` each answer as it comes: the frames, or None if the peer has none.

        It calls `pause` when it has to wait for the next answer.

        Raises:
          OSError: the peer cannot be reached, or was lost meanwhile.
          ProtocolError: its answer is something else.
        """
        left = list(reversed(keys))
        while left:
            kept = next((idle for idle in reversed(self._idle) if idle.address == address), None)
            asked = len(left)
            try:
                await self._exchange(address, kept, left, take, pause)
            except (OSError, trio.EndOfChannel) as error:
                # A kept channel may have been closed meanwhile; that says nothing about the peer.
                if not kept or len(left) < asked:
                    raise error if isinstance(error, OSError) else ConnectionError(f"{address} left") from error

    def close(self) -> None:
        """Close all unused channels, and each of the others after its use."""
        self._is_closed = True
        self.close_idle()

    def close_idle(self, now: float = inf) -> None:
        """Close the channels that were not used for a while until `now`; without it, all unused ones."""
        idle, self._idle = self._idle, []
        for one in idle:
            if one.since > now - IDLE_S:
                self._idle.append(one)
            else:
                one.channel.abort()

    def _measure(self, buffers: Frames, passed_s: float) -> None:
        nbytes = sum(map(len, buffers))
        if nbytes >= MEASURED_BYTES and passed_s > 0:
            speed = nbytes / passed_s
            known = self.bytes_per_s
            self.bytes_per_s = speed if known is None else known + SMOOTHING * (speed - known)

    async def _exchange(
        self, address: str, kept: _Idle | None, left: list[Key], take: Take, pause: Callable[[], object]
    ) -> None:
        if kept is None:
            channel = await self._open(address)
        else:
            self._idle.remove(kept)
            channel = kept.channel
        try:
            await channel.send(Fetch(tuple(reversed(left))))
            while left:
                answer = channel.receive_nowait()
                if answer is None:
                    pause()
                    waits_from = trio.current_time()
                    answer = await channel.receive(self._room)
                    self._measure(answer[1], trio.current_time() - waits_from)
                message, buffers = answer
                if not isinstance(message, Value | Absent) or message.key != left[-1]:
                    raise ProtocolError(
                        f"a peer was asked for {left[-1]!r} and answered with a {type(message).__name__}"
                    )
                take(left.pop(), buffers if isinstance(message, Value) else None)
                del answer, buffers  # while we wait for the next value, only the store may hold this one
        except BaseException:  # what is still on its way is unknown
            channel.abort()
            raise
        if len(self._idle) < MAX_IDLE and not self._is_closed:
            self._idle.append(_Idle(address, channel, trio.current_time()))
        else:
            channel.abort()
