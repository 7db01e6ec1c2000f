"""What this client wants, and what became of it.

Three things come in: the user's wishes (`submit`, `release`, `cancel`, ...), the scheduler's messages (`handle`) and
the outcomes of fetches (`fetched`, `fetch_failed`). Two go out: messages (`drain`) and fetches (`next_fetches`).
Waiters and readers are called once. No clock, no thread, no socket; the caller of the core holds the lock.

A key can live twice: released or cancelled, then submitted again, perhaps as a different task. What the scheduler had
sent about the first life may still be under way, and must not settle the second. Messages arrive in order, so a fence
is enough: a query whose answer means nothing is sent between the two lives, and what arrives for the key before the
answer is about the first one. Only keys that come back pay for it.

A connection that is lost and made again changes nothing here (`resend_buffer`). With a lost scheduler everything that
was asked of it is lost, and the core begins anew with the next one (`end_session`).

This file is long because all wishes and messages change the same table of keys, and each is a few lines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from trio_dask.client.core.fetch_queue import FetchQueue, FetchRequest
from trio_dask.client.core.key_state import TERMINAL, Ended, Frames, KeyState, NotSent, Reader, Waiter
from trio_dask.client.core.outbox import NO_EXTRA, Content, GraphPart, Outbox, Row
from trio_dask.client.core.resend_buffer import ACK_BYTES, ResendBuffer
from trio_dask.client.core.stuck_reasons import StuckReasons
from trio_dask.client.core.unsent_tasks import ExpectedGraph, UnsentTasks
from trio_dask.errors import KeyConflict, ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol.messages import (
    Cancel,
    Dropped,
    FetchFailed,
    FireAndForget,
    KeyFailed,
    KeyPending,
    KeyReady,
    Message,
    Query,
    Received,
    Reply,
    Retry,
    Shutdown,
    Stuck,
    SubmitGraph,
    Subscribe,
    TopicEvent,
)

INLINE_BUDGET_BYTES: Final = 64 * 1024 * 1024
BLOB_BUDGET_BYTES: Final = 256 * 1024 * 1024
FETCH_TRIES: Final = 6
"""After this many failed fetches of a key its readers are told why."""
RELEASES_PER_FENCE: Final = 10_000
FENCE: Final = "fence"
"""The query that the scheduler answers with nothing: all that it sent before has arrived when the answer does."""

_NO_TASKS: Final = SubmitGraph((), (), (), (), (), (), (), (), (), (), (), (), ())

OnReply: TypeAlias = Callable[[Any, Ended | None], None]
"""Called once: with the payload of the reply, or with the reason why none will come."""


class ClientCore:
    """All keys of one client, and all that it asks of its scheduler."""

    def __init__(self, inline_budget_bytes: int = INLINE_BUDGET_BYTES) -> None:
        self.states: dict[Key, KeyState] = {}
        self.scheduler = ""
        """The incarnation of the scheduler that knows this client; empty if none does."""
        self.sessions = 0
        """How many have ended."""
        self.received = 0
        """Messages of that scheduler that were handled. On the next connection it sends those that come after them."""
        self.stuck = StuckReasons()
        self.topics: dict[str, None] = {}
        """What this client subscribes to, at every scheduler."""
        self.on_event: Callable[[TopicEvent], object] = ignore_event
        """Called with each event of them."""
        self._resend = ResendBuffer()
        self._outbox = Outbox(BLOB_BUDGET_BYTES)
        self._unsent = UnsentTasks()
        self._fetch_queue = FetchQueue()
        self._inline: OrderedDict[Key, KeyState] = OrderedDict()
        self._inline_bytes = 0
        self._inline_budget = inline_budget_bytes
        self._pending_replies: dict[int, OnReply] = {}
        self._last_request = 0
        self._given_up: set[Key] = set()
        """Keys that this client gave up since it sent the last fence."""
        self._fences: dict[int, set[Key]] = {}

    # ------------------------------------------------------------------------------------------ the user's wishes

    def submit(
        self, function: Content, rows: Iterable[Row], contents: Sequence[Content], extra: Mapping[str, Any] = NO_EXTRA
    ) -> list[KeyState]:
        """Ask for these tasks; each key gains one reference. Keys that are known already are not sent again.

        Raises `KeyConflict` if a key that the user chose stands for another call already; then it asks for none.
        """
        outbox, states = self._outbox, self.states
        digest, data = function
        outbox.ship(digest, data)
        for content in contents:
            outbox.ship(*content)
        found: list[KeyState] = []
        new: dict[Key, KeyState] = {}
        fresh: list[Row] = []
        for row in rows:
            key = row[0]
            state = states.get(key) or new.get(key)
            if state is None or _is_over(state):
                new[key] = state = KeyState(key, row[4])
                fresh.append(row)
                if key in self._given_up or self._fences:
                    self._fence_off(state)
            elif row[4] and state.token and row[4] != state.token:
                raise _conflict(key)
            found.append(state)
        for state in found:
            state.refs += 1
        if fresh and self._unsent.states:
            fresh = self._unsent.postpone(fresh, new, states, function, contents, extra)
            states.update(new)
        if fresh:
            # In this order: an interrupt in between leaves tasks without futures, not futures without tasks.
            outbox.submit(digest, extra, fresh)
            states.update(new)
        return found

    def expect_graph(self, tokens: Mapping[Key, bytes]) -> ExpectedGraph:
        """Futures for the outputs of a graph that this client is about to send; each key gains one reference.

        The tokens stand for the calls. They are empty for keys that derive from them, and where `submit_graph` will
        bring them.

        Raises `KeyConflict` if a key stands for another call already; then it expects nothing.
        """
        for key, token in tokens.items():
            known = self.states.get(key)
            if known is not None and token and known.token and token != known.token and not _is_over(known):
                raise _conflict(key)
        new: list[Key] = []
        states = self._adopt(tokens, new.append)
        for key in new:
            self.states[key].token = tokens[key]
        return self._unsent.expect(states, [self.states[key] for key in new])

    def submit_graph(self, graph: ExpectedGraph, part: GraphPart) -> bool:
        """Ask for the next part of a graph, unless nobody waits for what was not sent; whether it did.

        Raises whatever kept a task that the part needs from being sent.
        """
        unsent = self._unsent
        if not self.needs(graph):
            return False
        message, states = part.message, unsent.states
        for key in message.inputs:
            if key in states and isinstance(failure := states[key].failure, NotSent):
                raise failure.error
        for content in part.contents:
            self._outbox.ship(*content)
        outputs = graph.outputs
        sent = [(number, key) for number, key in part.outputs if key in states and states[key] is outputs.get(key)]
        self._outbox.put(message._replace(wanted=tuple([number for number, _ in sent])))
        if message.tokens:
            for number, key in sent:
                states[key].token = message.tokens[number]
        graph.held.update([(message.keys[number], None) for number in message.held])
        for key in message.unheld:
            graph.held.pop(key, None)
        self._pass_on([key for _, key in sent])
        return True

    def needs(self, graph: ExpectedGraph) -> bool:
        """Whether anybody waits for an output of this graph that was not sent."""
        return self._unsent.is_needed(graph)

    def end_graph(self, graph: ExpectedGraph, error: BaseException | None = None) -> None:
        """A graph was sent whole, or given up; then what the scheduler still holds of it is let go.

        With an error those of its outputs that were not sent fail. Without one, the scheduler is asked for them.
        """
        unsent = self._unsent
        if not unsent.expects(graph):
            return
        self._outbox.put_keys(lambda part: _NO_TASKS._replace(unheld=part), list(graph.held))
        left = unsent.end(graph)
        if error is None:
            for state in left:
                self._outbox.want(state.key)
            self._pass_on([state.key for state in left])
            return
        for state in left:
            self._fail_unsent(state, NotSent(error))
        for state, failure in unsent.failing():
            self._fail_unsent(state, failure)
        self.dereference(())

    def _fail_unsent(self, state: KeyState, failure: NotSent) -> None:
        self._unsent.failed(state)
        state.failure = failure
        self._settle(state, "error")

    def _pass_on(self, keys: Iterable[Key]) -> None:
        """These tasks are sent: send what waited for that."""
        ready, detached = self._unsent.sent(keys)
        for _, _, _, function, contents, _ in ready:
            for content in (function, *contents):
                self._outbox.ship(*content)
        for row, _, _, function, _, extra in ready:
            self._outbox.submit(function[0], extra, [row])
        self._outbox.put_keys(FireAndForget, [state.key for state in detached])
        self.dereference(())

    def want(self, keys: Iterable[Key]) -> list[KeyState]:
        """Futures for tasks that another client submitted; each key gains one reference."""
        return self._adopt(keys, self._outbox.want)

    def expect(self, keys: Iterable[Key]) -> list[KeyState]:
        """Futures for values that this client is about to put on workers; each key gains one reference."""
        return self._adopt(keys, lambda _: None)

    def dereference(self, states: Iterable[KeyState]) -> None:
        """Take one future from each of these; a key without futures is released."""
        while True:
            for state in states:
                state.refs -= 1
                if not state.refs and self.states.get(state.key) is state:
                    self._forget(state)
            states, self._unsent.unneeded = self._unsent.unneeded, []
            if not states:
                return

    def cancel(self, states: Iterable[KeyState], force: bool, text: str) -> None:
        """Cancel these, and their futures now."""
        keys: list[Key] = []
        if self._unsent.states:
            states = list(states)
            states += self._unsent.dependents(states)
        for state in states:
            if self.states.get(state.key) is state and state.status not in TERMINAL:
                keys.append(state.key)
                self._end(state, "cancelled", Dropped(state.key, "cancelled", text))
                self._given_up.add(state.key)
        self._outbox.put_keys(lambda part: Cancel(part, force), keys)
        self.dereference(())

    def retry(self, states: Iterable[KeyState]) -> None:
        """Run again those of these that have erred."""
        keys: list[Key] = []
        for state in states:
            if state.status == "error" and not isinstance(state.failure, NotSent):
                state.status, state.failure = "pending", None
                keys.append(state.key)
        self._outbox.put_keys(Retry, keys)

    def detach(self, states: Iterable[KeyState]) -> None:
        """Let these finish even if no client wants their results."""
        unsent = self._unsent
        keys = [state.key for state in states if self.states.get(state.key) is state and not unsent.detach(state)]
        self._outbox.put_keys(FireAndForget, keys)

    def cancel_all(self, text: str) -> None:
        """The scheduler is about to drop all tasks; every future is cancelled now."""
        for state in list(self.states.values()):
            self._given_up.add(state.key)
            self._end(state, "cancelled", Dropped(state.key, "cancelled", text))
        self.dereference(())

    def request(self, make: Callable[[int], Message], on_reply: OnReply) -> int:
        """Send a message that the scheduler answers; `make` makes it from the number of the request."""
        self._last_request = number = self._last_request + 1
        self._pending_replies[number] = on_reply
        self._outbox.put(make(number))
        return number

    def tell(self, message: Message) -> None:
        """Send a message that the scheduler does not answer."""
        self._outbox.put(message)

    def subscribe(self, topic: str, *, wanted: bool) -> None:
        """Hear of the events of a topic from now on, or no longer."""
        if wanted:
            self.topics[topic] = None
        else:
            self.topics.pop(topic, None)
        self._outbox.put(Subscribe(topic, wanted))

    def is_unsent(self, state: KeyState) -> bool:
        """Whether the task of this key was not sent yet."""
        return self._unsent.states.get(state.key) is state

    def shutdown(self) -> None:
        """End the cluster."""
        self._outbox.put(Shutdown())

    # ------------------------------------------------------------------------------------------ waiting and reading

    def wait(self, state: KeyState, waiter: Waiter) -> None:
        """Call `waiter` once `state` is not pending: now, or when it settles."""
        if state.status != "pending":
            waiter(state)
        elif state.waiters is None:
            state.waiters = [waiter]
        else:
            state.waiters.append(waiter)

    def read(self, state: KeyState, reader: Reader) -> None:
        """Call `reader` once with the value of `state`, or once it is certain that there will be none."""
        if state.status == "finished" and state.value is not None:
            reader(state, (state.value,), "")
            return
        if state.status not in ("finished", "pending"):
            reader(state, None, "")
            return
        if state.readers is None:
            state.readers = []
            state.tries = 0
        state.readers.append(reader)
        if state.status == "finished" and not state.fetching:
            self._request_value(state)

    def abandon(self, state: KeyState, waiter: Waiter | Reader) -> None:
        """Stop calling this waiter or reader."""
        for name in ("waiters", "readers"):
            calls: list[Any] = [call for call in getattr(state, name) or () if call is not waiter]
            setattr(state, name, calls or None)

    def when_over(self, state: KeyState, waiter: Waiter) -> None:
        """Call `waiter` once the result of `state`, which is there or will be, is there no longer."""
        state.waiters = [*(state.waiters or ()), waiter]

    def settle_call(self, state: KeyState, outcome: bytes | KeyFailed) -> None:
        """The call that this state stands for has ended. It is none of the keys here: no scheduler knows it."""
        if isinstance(outcome, KeyFailed):
            state.failure = outcome
            self._settle(state, "error")
            return
        state.value = outcome
        self._settle(state, "finished")
        self._deliver(state, (outcome,))

    # ------------------------------------------------------------------------------------------ what arrives

    def handle(self, message: Message) -> None:
        """Take one message of the scheduler.

        Raises `ProtocolError` for what a scheduler does not say to a client.
        """
        self.received += 1
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a scheduler does not send {type(message).__name__} to a client")
        handler(self, message)

    def _key_ready(self, message: KeyReady) -> None:
        state = self.states.get(message[0])
        if state is None or state.fence or state.status in TERMINAL:
            if message.value is None and (state is None or not state.fence):
                # The scheduler may still keep it for us: a returning worker reports again what was scattered.
                self._outbox.release(message.key)
            return
        _, state.nbytes, state.type_name, value, state.holders = message
        if value is not None:
            self._keep_inline(state, value)
        if state.status != "finished":
            state.failure = None
            self._settle(state, "finished")
        if state.readers is not None:
            if value is not None:
                self._deliver(state, (value,))
            elif state.fetching not in state.holders:  # also if it is not being fetched
                self._request_value(state)

    def _key_failed(self, message: KeyFailed) -> None:
        state = self._current(message.key)
        if state is not None:
            self._drop_inline(state)
            state.failure, state.holders = message, ()
            self._settle(state, "error")

    def _key_pending(self, message: KeyPending) -> None:
        state = self._current(message.key)
        if state is not None and state.value is None:  # a value that is here is right whatever becomes of others
            state.status, state.failure, state.holders, state.fetching = "pending", None, (), ""

    def _dropped(self, message: Dropped) -> None:
        state = self._current(message.key)
        if state is not None:
            self._end(state, "lost" if message.reason == "lost" else "cancelled", message)

    def _reply(self, message: Reply) -> None:
        on_reply = self._pending_replies.pop(message.request, None)
        if on_reply is not None:
            on_reply(message.payload, None)

    def _stuck(self, message: Stuck) -> None:
        self.stuck.update(message)

    def _topic_event(self, message: TopicEvent) -> None:
        if isinstance(message.payload, bytes):
            self._resend.ack_due_at -= len(message.payload) // ACK_BYTES
        self.on_event(message)

    def _received(self, message: Received) -> None:
        self._resend.acknowledged(message.number)

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, Any], None]]] = {
        KeyReady: _key_ready,
        KeyFailed: _key_failed,
        KeyPending: _key_pending,
        Dropped: _dropped,
        Reply: _reply,
        Stuck: _stuck,
        TopicEvent: _topic_event,
        Received: _received,
    }

    # ------------------------------------------------------------------------------------------ schedulers

    def connected(self, scheduler: str, handled: int | None) -> None:
        """There is a connection with this scheduler, which has `handled` this many messages of this client.

        With None it does not know this client, and everything that was asked before is lost.

        Raises `ProtocolError` for an impossible number.
        """
        before = self.scheduler
        if before and scheduler != before:
            text = f"the scheduler {before} is gone; another one, {scheduler}, has taken its place"
            self.end_session(Ended(lost=True, text=text))
        elif before and handled is None:
            text = f"the scheduler {before} has given up on this client: the connection was lost for too long"
            self.end_session(Ended(lost=True, text=text))
        elif before and handled is not None:
            self._outbox.put_first(self._resend.take_unacknowledged(handled))
        if not self.scheduler:
            for topic in self.topics:
                self._outbox.put(Subscribe(topic, True))
        self.scheduler = scheduler

    def end_session(self, ended: Ended) -> None:
        """The scheduler is lost, or the client closes: waiting calls fail now. The next scheduler knows nothing."""
        self.stuck.forget()
        self.scheduler = ""
        self.sessions += 1
        self.received = 0
        self._resend = ResendBuffer()
        self._outbox = Outbox(BLOB_BUDGET_BYTES)
        self._unsent = UnsentTasks()
        self._fetch_queue.clear()
        states, self.states = self.states, {}
        for state in states.values():
            self._end(state, "lost" if ended.lost else "cancelled", ended)
        replies, self._pending_replies = self._pending_replies, {}
        for on_reply in replies.values():
            on_reply(None, ended)
        self._given_up.clear()
        self._fences.clear()

    # ------------------------------------------------------------------------------------------ fetching

    def fetched(self, address: str, state: KeyState, frames: Frames) -> None:
        """The value of this key has arrived from `address`."""
        if state.fetching == address:
            state.fetching = ""
        self._deliver(state, frames)

    def fetch_failed(
        self, address: str, state: KeyState, reason: str, *, final: bool = False, is_silent: bool = False
    ) -> None:
        """The fetch of this key from `address` failed; `final` if no other worker can give it either.

        A worker that only `is_silent` may still have it: the scheduler knows whether the worker is lost.
        """
        if state.fetching != address:
            return
        state.fetching = ""
        if not state.readers or state.status != "finished":
            return
        state.tries += 1
        if final or state.tries >= FETCH_TRIES:
            readers, state.readers = state.readers, None
            for reader in readers:
                reader(state, None, reason)
            return
        if is_silent:
            self._outbox.want(state.key)
        else:
            self._outbox.put(FetchFailed(state.key, address))
        # With another holder there is no need to wait for the scheduler's answer, which is a KeyReady or a KeyPending.
        state.holders = tuple(holder for holder in state.holders if holder != address)
        if state.holders:
            self._fetch_queue.enqueue(state)

    def fetch_ended(self, address: str) -> None:
        """A fetch request has ended; every key of it was reported."""
        self._fetch_queue.ended(address)

    def next_fetches(self) -> list[FetchRequest]:
        """The fetches that can start now."""
        return self._fetch_queue.next()

    def drain(self) -> Sequence[Message]:
        """The messages to send now, in this order."""
        return self._resend.sent(self._outbox.drain(), self.received)

    @property
    def has_messages(self) -> bool:
        """Whether `drain` would give any."""
        return bool(self._outbox.items)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to send, to confirm or to fetch."""
        return bool(self._outbox.items or self._fetch_queue.queues or self.received >= self._resend.ack_due_at)

    # ------------------------------------------------------------------------------------------ inside

    def _adopt(self, keys: Iterable[Key], announce: Callable[[Key], None]) -> list[KeyState]:
        found: list[KeyState] = []
        for key in keys:
            state = self.states.get(key)
            if state is None or _is_over(state):
                if state is not None:
                    self._unsent.drop(state)
                state = KeyState(key)
                self._fence_off(state)
                announce(key)
                self.states[key] = state
            state.refs += 1
            found.append(state)
        return found

    def _current(self, key: Key) -> KeyState | None:
        """The state that a message about `key` is meant for, if any."""
        state = self.states.get(key)
        return None if state is None or state.fence or state.status in TERMINAL else state

    def _settle(self, state: KeyState, status: Any) -> None:
        state.status = status
        waiters, state.waiters = state.waiters, None
        if waiters is not None:
            for waiter in waiters:
                waiter(state)
        if status != "finished" and state.readers is not None:
            readers, state.readers = state.readers, None
            for reader in readers:
                reader(state, None, "")

    def _end(self, state: KeyState, status: str, failure: Dropped | Ended) -> None:
        """Give this state its last status; the key can be submitted anew."""
        if state.status in TERMINAL:
            return
        self._unsent.drop(state)
        self._drop_inline(state)
        state.failure, state.holders, state.fetching = failure, (), ""
        self._settle(state, status)

    def _forget(self, state: KeyState) -> None:
        del self.states[state.key]
        self._drop_inline(state)
        if state.status in TERMINAL or (
            self._unsent.states and self._unsent.drop(state) and state.status == "pending"
        ):  # the scheduler does not keep it for this client
            return
        self._outbox.release(state.key)
        self._given_up.add(state.key)
        if len(self._given_up) > RELEASES_PER_FENCE:
            self._send_fence()

    def _fence_off(self, state: KeyState) -> None:
        """If messages about an earlier life of this key may be under way, make this one ignore them."""
        if state.key in self._given_up:
            state.fence = self._send_fence()
        else:
            for number, keys in self._fences.items():
                if state.key in keys:
                    state.fence = number

    def _send_fence(self) -> int:
        number = self.request(
            lambda request: Query(request, FENCE, ()), lambda _payload, _end: self._lift_fence(number)
        )
        self._fences[number], self._given_up = self._given_up, set()
        return number

    def _lift_fence(self, number: int) -> None:
        for key in self._fences.pop(number, ()):
            state = self.states.get(key)
            if state is not None and state.fence == number:
                state.fence = 0

    def _request_value(self, state: KeyState) -> None:
        """Get the value of a finished key for its readers."""
        if state.holders:
            self._fetch_queue.enqueue(state)
        else:
            # The inline copy has made room for others: ask the scheduler again where the value is.
            self._outbox.want(state.key)

    def _deliver(self, state: KeyState, frames: Frames) -> None:
        readers, state.readers = state.readers, None
        if readers is None:
            return
        readers[0](state, frames, "")
        for reader in readers[1:]:
            # Arrays are built on these buffers in place: two readers must not share them.
            reader(state, (frames[0], *[bytearray(frame) for frame in frames[1:]]), "")

    def _keep_inline(self, state: KeyState, value: bytes) -> None:
        if state.value is not None:
            self._inline_bytes -= len(state.value)
        state.value = value
        self._inline[state.key] = state
        self._inline_bytes += len(value)
        while self._inline_bytes > self._inline_budget:
            _, oldest = self._inline.popitem(last=False)
            self._inline_bytes -= len(oldest.value or b"")
            oldest.value = None

    def _drop_inline(self, state: KeyState) -> None:
        if state.value is not None and self._inline.get(state.key) is state:
            del self._inline[state.key]
            self._inline_bytes -= len(state.value)
        state.value = None


def ignore_event(event: TopicEvent) -> None:
    """For a client that hears of no topic."""


def _is_over(state: KeyState) -> bool:
    """Whether a new submission of the key makes a new state."""
    return state.status in TERMINAL or type(state.failure) is NotSent


def _conflict(key: Key) -> KeyConflict:
    return KeyConflict(f"the key {key!r} stands for a different call already; choose another, or release it")
