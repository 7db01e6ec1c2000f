"""Channels to workers, for values and for calls: opened when needed, and kept for the next use.

A channel carries one request at a time. After an exchange that was cut short it is never used again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import trio

from trio_dask.client.core.key_state import Frames
from trio_dask.errors import TrioDaskError
from trio_dask.protocol.messages import Message, OnDataPlane

_T = TypeVar("_T")

MAX_IDLE: Final = 32

CHANNEL_FAILURES: Final = (OSError, TrioDaskError, trio.ClosedResourceError, trio.EndOfChannel)
"""The errors of an exchange with a worker."""


class Channel(Protocol):
    """What a client needs of `comm.data_channel.DataChannel`."""

    async def send(self, message: OnDataPlane, buffers: Frames = ()) -> None: ...
    async def receive(self) -> tuple[Message, Frames]: ...
    def abort(self) -> None: ...
    async def aclose(self) -> None: ...


class WorkerChannels:
    """The channels of one client."""

    def __init__(self, open_channel: Callable[[str], Awaitable[Channel]]) -> None:
        self._open = open_channel
        self._idle: dict[str, list[Channel]] = {}
        self._idle_count = 0
        self._is_closed = False

    async def exchange(self, address: str, use: Callable[[Channel], Awaitable[_T]], *, repeatable: bool = True) -> _T:
        """Have `use` talk to the worker at `address`, and return what it returns.

        The worker may have closed a kept channel, which shows only in use: then `use` is called again with a new one.
        An exchange that must not happen twice is not `repeatable`, and gets a new channel from the start.

        Raises one of `CHANNEL_FAILURES`.
        """
        if repeatable and (kept := self._take(address)) is not None:
            try:
                return await self._use(address, kept, use)
            except CHANNEL_FAILURES:
                self.drop(address)
        return await self._use(address, await self._open(address), use)

    def drop(self, address: str) -> None:
        """Close the idle channels to a worker."""
        for channel in self._idle.pop(address, ()):
            self._idle_count -= 1
            channel.abort()

    async def aclose(self) -> None:
        """Close every idle channel, and each of the others after its use."""
        self._is_closed = True
        idle = [channel for channels in self._idle.values() for channel in channels]
        self._idle, self._idle_count = {}, 0
        try:
            for channel in idle:
                await channel.aclose()
        finally:  # also those that a cancellation has left
            for channel in idle:
                channel.abort()

    async def _use(self, address: str, channel: Channel, use: Callable[[Channel], Awaitable[_T]]) -> _T:
        try:
            result = await use(channel)
        except BaseException:  # whatever cut it short: its next answer would belong to this exchange
            channel.abort()
            raise
        if self._idle_count < MAX_IDLE and not self._is_closed:
            self._idle.setdefault(address, []).append(channel)
            self._idle_count += 1
        else:
            await channel.aclose()
        return result

    def _take(self, address: str) -> Channel | None:
        idle = self._idle.get(address)
        if not idle:
            return None
        self._idle_count -= 1
        return idle.pop()


def failure_text(address: str, error: BaseException) -> str:
    """One line that says which worker an exchange failed with, and how."""
    if isinstance(error, trio.EndOfChannel):
        return f"{address} closed the connection"
    text = str(error) or type(error).__name__
    return text if address in text else f"{address}: {text}"
