"""Answers requests on data channels: values for peers and clients, values from clients, `client.run`, actors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any, ClassVar

import trio

from trio_dask.comm import DataChannel
from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.plugins.function_calls import FunctionCalls
from trio_dask.protocol.messages import Absent, ActorCall, Call, CallResult, Fetch, Put, PutDone, Value
from trio_dask.protocol.pickling import describe_exception
from trio_dask.worker.actor_calls import ActorCalls
from trio_dask.worker.core.held_keys import Held
from trio_dask.worker.hosted_actors import HostedActors
from trio_dask.worker.memory_monitor import MemoryMonitor
from trio_dask.worker.result_store import Frames, ResultStore
from trio_dask.worker.task_context import WorkerHandle
from trio_dask.worker.transfer_limit import TransferLimit

SMALL_BYTES = 64 * 2**10
BIG_BYTES = 2**20
MAX_SENDS = 16
MAX_SEND_BYTES = 512 * 2**20
SENDS_SHARE = 0.1


class DataServer:
    """What peers and clients can ask of this worker.

    `held` has the values held here and their sizes; `keep(put, frames)` stores a value from a client, and returns False
    between sessions, when no scheduler would free it. `memory` makes room for incoming values, and bounds what goes out
    at once: the part of a spilled value that is being sent is in memory.
    """

    def __init__(
        self,
        store: ResultStore,
        held: Mapping[Key, Held],
        keep: Callable[[Put, Frames], bool],
        worker: WorkerHandle,
        memory: MemoryMonitor | None = None,
        actors: HostedActors | None = None,
    ) -> None:
        self._store = store
        self._held = held
        self._keep = keep
        self._actors = HostedActors() if actors is None else actors
        limit = inf if memory is None else SENDS_SHARE * memory.limits.limit
        self._sends = TransferLimit(MAX_SENDS, int(min(MAX_SEND_BYTES, limit)))
        self._room = None if memory is None else memory.room
        self._calls = FunctionCalls(worker)

    async def handle(self, channel: DataChannel) -> None:
        """Answer requests, one after the other, until the peer leaves.

        Raises:
          ProtocolError: the peer sent a message that is no request.
        """
        self._actors.channel_began(channel)
        try:
            while await self._answer(channel):
                pass
        finally:
            self._actors.channel_spoke(channel)

    async def _answer(self, channel: DataChannel) -> bool:
        """Take one request; False if there are no more. Its buffers are not kept afterwards."""
        try:
            message, buffers = await channel.receive(self._room)
            self._actors.channel_spoke(channel)
            handler = self.HANDLERS.get(type(message))
            if handler is None:
                raise ProtocolError(f"a peer sent a {type(message).__name__}, which is no request")
            await handler(self, channel, message, buffers)
        except trio.EndOfChannel:  # calls of actors last until then, too
            return False
        return True

    async def _fetch(self, channel: DataChannel, message: Fetch, buffers: Frames) -> None:
        last = len(message.keys) - 1
        for number, key in enumerate(message.keys):
            await self._send_value(channel, key, more=number < last)

    async def _put(self, channel: DataChannel, message: Put, buffers: Frames) -> None:
        if not buffers:
            raise ProtocolError("a value came without any bytes")
        if self._keep(message, buffers):
            await channel.send(PutDone(message.key, sum(message.sizes)))
        else:
            await channel.send(Absent(message.key, "this worker has no scheduler at the moment"))

    async def _call(self, channel: DataChannel, message: Call, buffers: Frames) -> None:
        ok, text, frames = await self._calls.call(buffers)
        await channel.send(CallResult(ok, text, _sizes(frames)), frames)

    async def _call_actor(self, channel: DataChannel, message: ActorCall, buffers: Frames) -> None:
        await ActorCalls(channel, self._actors).serve(message, buffers)

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, DataChannel, Any, Frames], Awaitable[None]]]] = {
        Fetch: _fetch,
        Put: _put,
        Call: _call,
        ActorCall: _call_actor,
    }

    async def _send_value(self, channel: DataChannel, key: Key, *, more: bool) -> None:
        """Answer for one key; with `more`, another answer follows."""
        held = self._held.get(key)
        if held is None:
            await channel.send(Absent(key, ""), more=more)
        elif held.nbytes <= SMALL_BYTES:
            await self._dump_and_send(channel, key, held.nbytes, more=more)
        else:
            await channel.flush()
            async with self._sends.share(held.nbytes):
                await self._dump_and_send(channel, key, held.nbytes, more=more)

    async def _dump_and_send(self, channel: DataChannel, key: Key, nbytes: int, *, more: bool) -> None:
        store = self._store
        copied_bytes = store.copied_bytes(key)
        if copied_bytes > BIG_BYTES and self._room is not None:
            # Only until the copy is made: two workers that held room while sending could wait for each other.
            async with self._room(copied_bytes):
                dumped = await trio.to_thread.run_sync(self._dump, key, abandon_on_cancel=True)
        elif not store.is_pickled(key) and (nbytes > BIG_BYTES or store.is_spilled(key)):
            dumped = await trio.to_thread.run_sync(self._dump, key, abandon_on_cancel=True)
        else:
            dumped = self._dump(key)
        if isinstance(dumped, Absent):
            await channel.send(dumped, more=more)
        else:
            await channel.send(Value(key, _sizes(dumped)), dumped, more=more)

    def _dump(self, key: Key) -> Frames | Absent:
        if key not in self._store:
            return Absent(key, "")  # freed while it waited
        try:
            return self._store.dump(key)
        except BaseException as error:  # pickling runs the user's code
            if key not in self._store:
                return Absent(key, "")  # it was on disk, and is gone from there
            return Absent(key, describe_exception(error)[1])


def _sizes(frames: Sequence[Any]) -> tuple[int, ...]:
    return tuple(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
