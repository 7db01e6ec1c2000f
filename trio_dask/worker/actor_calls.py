"""Calls of actors that come on a data channel, and their answers, which leave in the order in which they are there."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from typing import NoReturn

import trio

from trio_dask.comm import DataChannel
from trio_dask.comm.transport import first_error
from trio_dask.errors import ProtocolError
from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import ActorAnswer, ActorCall, ActorMoved, Message
from trio_dask.worker.hosted_actors import Answer, HostedActors
from trio_dask.worker.result_store import Frames


class ActorCalls:
    """The calls of one channel, from the first one until the caller leaves."""

    def __init__(self, channel: DataChannel, actors: HostedActors) -> None:
        self._channel = channel
        self._actors = actors
        self._answers: deque[tuple[int, Answer] | ActorMoved] = deque()
        self.was_told = False
        """The caller was told that an actor is not here, and will end this channel."""
        self._woken = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    async def serve(self, first: ActorCall, frames: Frames) -> NoReturn:
        """Take this call and all that follow.

        Raises:
          EndOfChannel: the caller has left.
          ConnectionLost: it is gone.
          ProtocolError: something else came.
        """
        self._channel.go_both_ways()
        self._actors.begin_calls(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_answers)
                self._take(first, frames)
                while True:
                    self._take(*(self._channel.receive_nowait() or await self._channel.receive()))
        except BaseExceptionGroup as group:  # the nursery is ours; callers expect the error in it
            raise first_error(group) from None
        finally:
            self._actors.end_calls(self)

    def tell_moved(self, key: Key, run: RunId) -> None:
        """Tell the caller that this actor is not here, after the answers of all calls that were made here."""
        self.was_told = True
        self._answers.append(ActorMoved(key, run))
        self._woken.set()

    def _take(self, call: Message, frames: Frames) -> None:
        if not isinstance(call, ActorCall):
            raise ProtocolError(f"a {type(call).__name__} came among the calls of actors")
        actor = self._actors.find(call.key, call.run)
        if actor is None:
            self.tell_moved(call.key, call.run)
        else:
            actor.call(call.name, frames, partial(self._reply, call))

    def _reply(self, call: ActorCall, answer: Answer) -> None:
        """In any thread."""
        if answer.outcome == "elsewhere":
            self._answers.append(ActorMoved(call.key, call.run))
            self.was_told = True
        else:
            self._answers.append((call.number, answer))
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
                found = answers.popleft()
                if isinstance(found, ActorMoved):
                    await send(found, more=bool(answers))
                    continue
                number, (outcome, text, frames) = found
                sizes = tuple([memoryview(frame).nbytes for frame in frames])
                await send(ActorAnswer(number, outcome, text, sizes), frames, more=bool(answers))
            await self._channel.flush()
