"""What clients and futures talk to: one core, its link with a scheduler, and the callers that wait for results.

One lock guards the core, and no thread holds it while it waits. A caller changes the core and leaves; `Outgoing` sends
the resulting messages. `Link` handles arriving messages in the loop, a batch at a time, and wakes the callers that wait
for them. docs/design/client.md says which thread does what.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any, Concatenate, Final, ParamSpec

from trio_dask.client.actor_lines import ActorLines, BothWays
from trio_dask.client.core.client import OnReply
from trio_dask.client.core.key_state import TERMINAL, Frames, KeyState, Reader, Waiter
from trio_dask.client.core.local_leases import Lease, LeaseWaiter, LocalLeases, Place
from trio_dask.client.core.outbox import Content, GraphPart, Row
from trio_dask.client.graph_sender import GraphSender, Lead
from trio_dask.client.link import Link
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.outgoing import Outgoing
from trio_dask.client.shared_state import Closed, Connected, Dial, Phase, SharedState, Status
from trio_dask.client.topic_handlers import TopicHandlers
from trio_dask.client.wait_signals import PendingReply, SettleWaiter, ThreadSignal, TrioSignal, ValueReader
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.errors import KeyConflict, UsageError
from trio_dask.hooks import hooks
from trio_dask.ids import Incarnation, Key
from trio_dask.parsing import checked_text
from trio_dask.protocol.messages import Message, Query
from trio_dask.protocol.pickling import PickledFunction, load_value
from trio_dask.security.credentials import NO_CREDENTIALS

_P = ParamSpec("_P")

LARGEST_QUESTION_BYTES: Final = 48 * 2**20
ARGUMENT_BYTES: Final = 64
"""What each argument of a question counts beside its text; so there are no more of them than a list may have."""

loading: ContextVar[Engine | None] = ContextVar("trio_dask client that unpickles", default=None)
"""While a value is unpickled: the client that futures inside it belong to."""


def _no_future(engine: Engine, state: KeyState) -> Any:
    raise RuntimeError("this client makes no futures")


def _no_client() -> None:
    return None


def _checked(argument: str) -> str:
    return checked_text("the text", argument, LARGEST_QUESTION_BYTES)


class Engine:
    """All that one client can do. Safe from any thread, unless a docstring says otherwise.

    `call`, `run_soon`, `drop`, `serve` and others are methods of its parts.
    """

    def __init__(
        self,
        incarnation: Incarnation,
        dial: Dial,
        open_channel: Callable[[str], Awaitable[BothWays]],
        *,
        grace_s: float = 2.0,
        patience_s: float = math.inf,
        loss_level: int = logging.WARNING,
    ) -> None:
        self.incarnation = incarnation
        self.address = ""
        """Of the scheduler, once connected."""
        self.credentials = NO_CREDENTIALS
        """Those that it connected with."""
        self.serial = count(1)
        """Numbers for keys that stand for one call each; all clients that share this draw from it."""
        self.channels = WorkerChannels(open_channel)
        self.shared = shared = SharedState()
        self.core = shared.core
        self.check_open = shared.check_open

        self.calls = calls = LoopCalls(shared)
        self.call, self.call_async = calls.call, calls.call_async
        self.start, self.run_soon = calls.start, calls.run_soon

        self._outgoing = outgoing = Outgoing(shared, calls, self.channels)
        self.drop, self.when_unused = outgoing.drop, outgoing.when_unused

        self.lines = ActorLines(shared, calls, open_channel, lambda key: self.ask("actor_home", (key,)))
        """To the actors on workers."""

        self.link = link = Link(shared, calls, outgoing, self.channels, dial, grace_s, patience_s, loss_level)
        self.attach, self.serve = link.attach, link.serve

        self.leases = LocalLeases(self.core, time.monotonic)
        self._graphs = GraphSender(shared, outgoing)
        self.topics = TopicHandlers(self)
        self.core.on_event = self.topics.arrived

        self._client: Callable[[], Any] = _no_client
        self.future_type: Callable[[Engine, KeyState], Any] = _no_future
        self.run_callback: Callable[[Callable[[], object]], object] = self.run_soon

    def bind_client(self, client: Any, future_type: Callable[[Engine, KeyState], Any]) -> None:
        """Set the client that futures name as theirs, and the type of its futures."""
        self._client, self.future_type = lambda: client, future_type

    @property
    def client(self) -> Any:
        """The client that futures name as theirs; None if there is none any more."""
        return self._client()

    def hold_client_weakly(self) -> None:
        """Keep the client no longer than others do."""
        self._client = weakref.ref(self._client())

    @property
    def phase(self) -> Phase:
        """What the link is doing."""
        return self.shared.phase

    @property
    def status(self) -> Status:
        """The phase, as users read it."""
        return self.shared.phase.status

    def stop(self) -> None:
        """Have `serve` say goodbye and return. For the loop's own thread."""
        self.link.stop()

    async def wait_stopped(self) -> None:
        """Return once `serve` has ended. For the loop's own thread."""
        await self.link.wait_stopped()

    def submit(
        self, function: PickledFunction, rows: Iterable[Row], contents: Sequence[Content], extra: Mapping[str, Any]
    ) -> list[KeyState]:
        """Ask for tasks; each state has one reference more, which its future gives back.

        Raises `KeyConflict`, and what `check_open` raises.
        """
        outgoing = self._outgoing
        with self.shared.lock:
            if type(self.shared.phase) is not Connected:
                self.check_open()
            if outgoing.failure_dropped:
                outgoing.collect_all_dropped()
            try:
                states = self.core.submit(function[:2], rows, contents, extra)
            except KeyConflict:
                outgoing.collect_all_dropped()
                states = self.core.submit(function[:2], rows, contents, extra)
        if not outgoing.is_woken:
            if len(states) == 1:
                outgoing.send_or_wake()
            else:
                outgoing.wake()
        return states

    def wanted(self) -> dict[Key, KeyState]:
        """The states of all keys for which there are futures."""
        with self.shared.lock:
            self._outgoing.collect_all_dropped()
            return {key: state for key, state in self.core.states.items() if state.refs}

    def known(self, keys: Iterable[Key]) -> set[Key]:
        """Those of these keys for which there are futures."""
        with self.shared.lock:
            states = self.core.states
            return {key for key in keys if key in states}

    def send_graph(self, tokens: Mapping[Key, bytes], parts: Iterable[GraphPart], lead: Lead) -> list[KeyState]:
        """Have a graph sent by a thread of its own; each state of its outputs has one reference more.

        The outputs come with the tokens of their calls, which are empty where the keys derive from the calls or were
        not known before. The parts are made in that thread, unless all outputs are known already. What `parts` raises
        is the error of the outputs that were not sent by then. This waits for the `lead` of that thread.

        Raises `KeyConflict`, and what `check_open` raises.
        """
        with self.shared.lock:
            self.check_open()
            self._outgoing.collect_all_dropped()
            graph = self.core.expect_graph(tokens)
        if graph.outputs:
            try:
                self._graphs.send(parts, graph, lead)
            except BaseException:  # the wait was interrupted, so nobody gets the futures
                self.release(graph.states)
                raise
        return graph.states

    def adopt(self, keys: Iterable[Key], *, submitted: bool = True) -> list[KeyState]:
        """Futures for keys that another client submitted, or (not `submitted`) for values about to go onto workers."""
        with self.shared.lock:
            self.check_open()
            states = self.core.want(keys) if submitted else self.core.expect(keys)
        self._outgoing.wake()
        return states

    def find(self, keys: Iterable[Key]) -> list[KeyState]:
        """The states of those of these keys for which there are futures; each has one reference more."""
        with self.shared.lock:
            self._outgoing.collect_all_dropped()
            found = [state for key in keys if (state := self.core.states.get(key)) and state.status not in TERMINAL]
            for state in found:
                state.refs += 1
        return found

    def cancel(self, states: Iterable[KeyState], *, force: bool, text: str) -> None:
        """Cancel these."""
        self._change(self.core.cancel, states, force, text)

    def release(self, states: Iterable[KeyState]) -> None:
        """Give back one reference of each."""
        self._change(self.core.dereference, states)

    def retry(self, states: Iterable[KeyState]) -> None:
        """Run again those of these that have erred."""
        self._change(self.core.retry, states)

    def detach(self, states: Iterable[KeyState]) -> None:
        """Let these finish even if no client wants their results."""
        self._change(self.core.detach, states)

    def _change(self, change: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        with self.shared.lock:
            change(*args, **kwargs)
        self._outgoing.wake()

    def shutdown(self) -> None:
        """End the cluster."""
        with self.shared.lock:
            self.check_open()
            self.core.shutdown()
        self._outgoing.flush_or_wake()

    def call_when_done(self, state: KeyState, callback: Callable[[], object]) -> None:
        """Have the client's callback runner call this once `state` is not pending."""
        with self.shared.lock:
            self.core.wait(state, partial(self._run_callback, callback))

    def _run_callback(self, callback: Callable[[], object], _: KeyState) -> None:
        self.run_callback(callback)

    def watch(self, states: Iterable[KeyState], waiter: Callable[..., None], *, values: bool) -> None:
        """Have `waiter` called once for each of these, under the lock, now or later.

        It is a `Waiter`, or a `Reader` of `values`.
        """
        with self.shared.lock:
            watch: Callable[[KeyState, Callable[..., None]], None] = self.core.read if values else self.core.wait
            for state in states:
                watch(state, waiter)
        self._outgoing.flush_or_wake()

    def unwatch(self, states: Iterable[KeyState], waiter: Waiter | Reader) -> None:
        """Stop calling this waiter or reader."""
        with self.shared.lock:
            for state in states:
                self.core.abandon(state, waiter)

    def wait_for(self, states: Sequence[KeyState], waiter: SettleWaiter | ValueReader, timeout_s: float | None) -> bool:
        """Block until `waiter` has been called for enough of these; False if the time was up before."""
        waiter.signal = signal = ThreadSignal()
        if not states:
            signal.set()
        self.watch(states, waiter, values=type(waiter) is ValueReader)
        try:
            return self.block(signal, timeout_s)
        finally:
            if waiter.left:
                self.unwatch(states, waiter)

    async def wait_for_async(self, states: Sequence[KeyState], waiter: SettleWaiter | ValueReader) -> None:
        """Wait until `waiter` has been called for enough of these."""
        waiter.signal = signal = TrioSignal()
        if not states:
            signal.set()
        self.watch(states, waiter, values=type(waiter) is ValueReader)
        try:
            await self.wait_async(signal)
        finally:
            if waiter.left:
                self.unwatch(states, waiter)

    def block(self, signal: ThreadSignal, timeout_s: float | None) -> bool:
        """Wait for results; False if the time was up before. A task gives its slot to others while it waits."""
        self._outgoing.has_waited = True
        if signal.is_set or hooks.tasks is None:
            return signal.wait(timeout_s)
        with hooks.tasks.outside_of_slots(self.client):
            return signal.wait(timeout_s)

    async def wait_async(self, signal: TrioSignal) -> None:
        """The same under Trio."""
        if signal.is_set or hooks.tasks is None:
            await signal.wait()
        else:
            async with hooks.tasks.outside_of_slots_async(self.client):
                await signal.wait()

    def too_late(self, text: str, states: Iterable[KeyState]) -> TimeoutError:
        """An error with this text, and the reason if no scheduler or worker is there for some of these."""
        connected = isinstance(self.phase, Connected)
        why = self.core.stuck.why(states) if connected else "the client is not connected to a scheduler"
        return TimeoutError(f"{text}; {why}" if why else text)

    def load(self, frames: Frames) -> Any:
        """Unpickle a value; futures inside it become futures of this client."""
        before = loading.set(self)
        try:
            return load_value(frames)
        finally:
            loading.reset(before)

    async def ask(self, what: str, arguments: Iterable[str] = ()) -> Any:
        """Put a question to the scheduler and return its answer. From any Trio loop.

        Raises `UsageError` if no message can carry the arguments, or the answer.
        """
        given = tuple(arguments)
        nbytes = sum([len(_checked(argument).encode()) + ARGUMENT_BYTES for argument in given])
        if nbytes > LARGEST_QUESTION_BYTES:
            raise UsageError(f"{len(given)} keys are too many for one question: ask for fewer")
        return await self.request(Query, what, given)

    def cancel_all(self, text: str) -> None:
        """Cancel every future of this client."""
        self._change(self.core.cancel_all, text)

    def post(self, make: Callable[[int], Message], on_reply: OnReply) -> int:
        """Send a request as a lone one, and return its number. `on_reply` is called under the lock, by any thread.

        Raises what `check_open` raises.
        """
        with self.shared.lock:
            self.check_open()
            number = self.core.request(make, on_reply)
        self._send_alone()
        return number

    def tell(self, message: Message) -> None:
        """Send a message that has no answer, unless the client has ended."""
        with self.shared.lock:
            if not isinstance(self.shared.phase, Closed):
                self.core.tell(message)
        self._send_alone()

    def acquire_lease(self, place: Place, waiter: LeaseWaiter) -> None:
        """Have a caller wait for a lease. It is told under the lock, by any thread.

        Raises what `check_open` raises.
        """
        with self.shared.lock:
            self.check_open()
            self.leases.acquire(place, waiter)
        if self.core.has_messages:
            self._send_alone()

    def release_lease(self, lease: Lease) -> None:
        """Give a lease to the next caller, here or elsewhere."""
        self._change_leases(self.leases.release, lease)

    def leave_line(self, place: Place, waiter: LeaseWaiter) -> None:
        """This caller waits no longer for a lease, and has none."""
        self._change_leases(self.leases.leave, place, waiter)

    def _change_leases(self, change: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        with self.shared.lock:
            if not isinstance(self.shared.phase, Closed):
                change(*args, **kwargs)
        if self.core.has_messages:
            self._send_alone()

    def subscribe(self, topic: str, *, wanted: bool) -> None:
        """Have the scheduler tell the events of a topic from now on, or no longer."""
        self._change(self.core.subscribe, topic, wanted=wanted)

    def _send_alone(self) -> None:
        self._outgoing.has_waited = True
        self._outgoing.send_or_wake()

    async def request(self, kind: Callable[Concatenate[int, _P], Message], *args: _P.args, **kwargs: _P.kwargs) -> Any:
        """Send a message that asks for a reply (its number comes first), and return the reply. From any Trio loop."""
        signal = TrioSignal()
        reply = PendingReply(signal)
        with self.shared.lock:
            if isinstance(self.shared.phase, Closed):
                reply(None, self.shared.phase.ended)
            else:
                self.core.request(lambda number: kind(number, *args, **kwargs), reply)
        self._outgoing.flush_or_wake()
        await signal.wait()
        return reply.unwrap()
