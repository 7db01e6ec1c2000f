"""What a worker does for actors that move: it hands the pickled object over, or takes one in.

The scheduler orders each step, and its word alone says where an actor lives (`scheduler.core.actor_moves`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from trio_dask.errors import SerializationError, TrioDaskError
from trio_dask.ids import Key, RunId, actor_state
from trio_dask.protocol.messages import ActorHeld, ActorTaken, HandOverActor, Run, SettleActor, TakeActor
from trio_dask.protocol.pickling import pickle_value
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.hosted_actors import HostedActor, HostedActors
from trio_dask.worker.peer_channels import PeerChannels
from trio_dask.worker.result_store import Frames, ResultStore
from trio_dask.worker.task_context import TaskContext

NOT_MOVABLE = "neither its class nor the object says `movable = True`"


class ActorMoves:
    """The actors of one worker that go or come. In the worker's own thread.

    `context_of` gives what an actor's code sees of its worker; `act` carries out what the core wants by now.
    """

    def __init__(
        self,
        core: WorkerCore,
        store: ResultStore,
        actors: HostedActors,
        peers: PeerChannels,
        context_of: Callable[[Run], TaskContext],
        inline_limit_bytes: int,
        act: Callable[[], None],
    ) -> None:
        self._core = core
        self._store = store
        self._actors = actors
        self._peers = peers
        self._context_of = context_of
        self._act = act
        self._inline_limit = inline_limit_bytes
        self._going: dict[Key, int] = {}
        """The order by which each is to be handed over."""
        self._coming: dict[Key, trio.CancelScope] = {}

    def carry_out(self, request: HandOverActor | TakeActor | SettleActor, nursery: trio.Nursery) -> None:
        """Do what the scheduler has ordered."""
        match request:
            case HandOverActor():
                self._hand_over(request)
            case TakeActor():
                nursery.start_soon(self._take, request)
            case SettleActor():
                self._settle(request)

    def _hand_over(self, message: HandOverActor) -> None:
        """Have an actor rest, and keep its pickled object for another worker."""
        key, order = message
        actor = self._actors.present(key)
        if actor is None:
            self._stays(key, order, RunId(-1), "it is not there")
        elif not actor.may_move:
            self._stays(key, order, actor.run.run, NOT_MOVABLE)
        else:
            self._going[key] = order
            token = trio.lowlevel.current_trio_token()

            def offer(state: Frames | str) -> None:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._rests, actor, order, state)

            actor.rest(offer)

    def _settle(self, message: SettleActor) -> None:
        """The scheduler says where an actor lives."""
        self._going.pop(message.key, None)
        if not message.here and message.key in self._coming:
            self._coming.pop(message.key).cancel()
        self._actors.settle(message.key, here=message.here)

    def reset(self) -> None:
        """The scheduler knows nothing of this worker any more."""
        self._going.clear()
        for scope in self._coming.values():
            scope.cancel()
        self._coming.clear()

    def _rests(self, actor: HostedActor, order: int, state: Frames | str) -> None:
        key = actor.run.key
        if self._going.get(key) != order or self._actors.present(key) is not actor:
            return  # its move was given up, and it knows
        if isinstance(state, str):
            del self._going[key]
            actor.stay()
            self._stays(key, order, actor.run.run, state)
        else:
            nbytes = sum(memoryview(frame).nbytes for frame in state)
            self._store.put_frames(actor_state(key), state, nbytes)
            self._core.actor_held(ActorHeld(key, order, actor.run.run, ""), nbytes)
            self._act()

    def _stays(self, key: Key, order: int, run: RunId, why: str) -> None:
        self._core.actor_held(ActorHeld(key, order, run, why), 0)
        self._act()

    async def _take(self, message: TakeActor) -> None:
        """Fetch an actor's object and make it; report what has come of it, unless the move is given up meanwhile."""
        key, _, order, _ = message
        with trio.CancelScope() as scope:
            self._coming[key] = scope
            made = await self._make(message)
            if self._coming.get(key) is not scope:
                return
            del self._coming[key]
            value, text, nbytes = None, "", 0
            if isinstance(made, str):
                text = made
            else:
                proxy = self._actors.proxy_of(made)
                try:
                    pickled = pickle_value(proxy, self._inline_limit)
                except SerializationError as error:
                    made.leave()
                    text = str(error)
                else:
                    value, nbytes = pickled.inline, pickled.nbytes
                    self._actors.add(made)
                    self._store.put(key, proxy, nbytes)
            self._core.actor_taken(ActorTaken(key, order, value, text), nbytes)
            self._act()

    async def _make(self, message: TakeActor) -> HostedActor | str:
        """The actor, which rests; or why it cannot be made."""
        key, run, _, address = message
        got: list[Frames] = []

        def take(_: Key, frames: Frames | None) -> None:
            if frames is not None:
                got.append(frames)

        try:
            await self._peers.fetch(address, (actor_state(key),), take)
        except (OSError, TrioDaskError) as error:
            return f"its object could not be fetched: {error}"
        if not got:
            return f"{address} could not send its object"
        made = trio.Event()
        texts: list[str] = []
        token = trio.lowlevel.current_trio_token()

        def hear(text: str) -> None:
            texts.append(text)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(made.set)

        context = self._context_of(Run(run, key, b"", b"", (), 0, {}))
        try:
            actor = HostedActor(context, None, state=got.pop(), made=hear)
        except RuntimeError as error:
            return f"it got no thread: {error}"
        try:
            await made.wait()
        except trio.Cancelled:
            actor.leave()
            raise
        return texts[0] or actor
