"""Calls of actors that come on a data channel, and their answers, which leave in the order in which they are there."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial

import trio

from trio_dask.comm import DataChannel
from trio_dask.comm.transport import first_error
from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import ActorAnswer, ActorCall, Message
from trio_dask.worker.hosted_actors import Answer, HostedActors
from trio_dask.worker.result_store import Frames


class ActorCalls:
    """The calls of one channel, from the first one until the caller leaves."""

    def __init__(self, channel: DataChannel, actors: HostedActors) -> None:
        self._channel = channel
        self._actors = actors
        self._answers: deque[tuple[int, Answer]] = deque()
        self._woken = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    async def serve(self, first: ActorCall, frames: Frames) -> None:
        """Take this call and all that follow.

        Raises:
          ProtocolError: something else came.
          OSError: the caller is gone.
        """
        self._channel.go_both_ways()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_answers)
                self._take(first, frames)
                with suppress(trio.EndOfChannel):
                    while True:
                        self._take(*(self._channel.receive_nowait() or await self._channel.receive()))
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # the nursery is ours; callers expect the error in it
            raise first_error(group) from None

    def _take(self, call: Message, frames: Frames) -> None:
        if not isinstance(call, ActorCall):
            raise ProtocolError(f"a {type(call).__name__} came among the calls of actors")
        reply = partial(self._reply, call.number)
        actor = self._actors.find(call.key, call.run)
        if actor is None:
            reply(Answer("gone", f"the actor {call.key!r} is not on this worker (any more)", []))
        else:
            actor.call(call.name, frames, reply)

    def _reply(self, number: int, answer: Answer) -> None:
        """In any thread."""
        self._answers.append((number, answer))
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._woken.set()

    async def _send_answers(self) -> None:
        answers, send = self._answers, self._channel.send
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            while answers:
                number, (outcome, text, frames) = answers.popleft()
                sizes = tuple([memoryview(frame).nbytes for frame in frames])
                await send(ActorAnswer(number, outcome, text, sizes), frames, more=bool(answers))
            await self._channel.flush()
