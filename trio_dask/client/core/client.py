"""What this client wants, and what became of it.

Three things come in: the user's wishes (`submit`, `release`, `cancel`, ...), the scheduler's messages (`handle`) and
the outcomes of fetches (`fetched`, `unfetched`). Two go out: messages (`drain`) and fetches (`next_fetches`). Those who
wait are told by a call, once. No clock, no thread, no socket: whoever drives the core brings the lock.

A key can live twice: released or cancelled, then submitted again, perhaps as a different task. What the scheduler had
sent about the first life may still be under way, and must not settle the second. Messages arrive in order, so a fence
is enough: a query is sent between the two lives, and what arrives for the key before its reply is about the first one.
Only keys that come back pay for it.

A link that is lost and found again changes nothing here (`stream`). A scheduler that is lost takes everything along
that it was asked for, and the core begins anew with the next one (`forsake`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from trio_dask.client.core.fetch_queue import Fetches, FetchKeys
from trio_dask.client.core.key_state import OVER, Ended, Frames, KeyState, Reader, Waiter
from trio_dask.client.core.outbox import NO_EXTRA, Content, Outbox, Row
from trio_dask.client.core.resend_buffer import Stream
from trio_dask.client.core.stuck_reasons import StuckReasons
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
    Restart,
    RestartWorkers,
    Retire,
    Retry,
    Shutdown,
    Stuck,
)

__all__ = ["ClientCore"]

INLINE_BUDGET_BYTES: Final = 64 * 1024 * 1024
BLOB_BUDGET_BYTES: Final = 256 * 1024 * 1024
FETCH_TRIES: Final = 6
"""So many workers in turn may fail to deliver a key; then whoever waits for it is told why."""
RELEASES_PER_FENCE: Final = 10_000

Answer = Callable[[Any, Ended | None], None]
"""Called once: with the payload of the reply, or with the reason why none will come."""


class ClientCore:
    """All keys of one client, and all that it asks of its scheduler."""

    def __init__(self, inline_budget_bytes: int = INLINE_BUDGET_BYTES) -> None:
        self.states: dict[Key, KeyState] = {}
        self.ended: Ended | None = None
        self.scheduler = ""
        """The incarnation of the scheduler that knows of this client; empty if none does."""
        self.received = 0
        """Messages of that scheduler that were handled. After a lost link it sends those that come after them."""
        self.stuck = StuckReasons()
        self._stream = Stream()
        self._outbox = Outbox(BLOB_BUDGET_BYTES)
        self._fetches = Fetches()
        self._inline: OrderedDict[Key, KeyState] = OrderedDict()
        self._inline_bytes = 0
        self._inline_budget = inline_budget_bytes
        self._answers: dict[int, Answer] = {}
        self._requests = 0
        self._gone: set[Key] = set()
        """Keys that this client gave up since the last fence was sent."""
        self._fences: dict[int, set[Key]] = {}

    # ------------------------------------------------------------------------------------------ the user's wishes

    def submit(
        self, function: Content, rows: Iterable[Row], contents: Iterable[Content], extra: Mapping[str, Any] = NO_EXTRA
    ) -> list[KeyState]:
        """Ask for these tasks; each key gains one reference. Keys that are known already are not sent again.

        Raises `KeyConflict` if a key that the user chose stands for another call already; then none of them is asked
        for.
        """
        outbox, states = self._outbox, self.states
        digest, data = function
        outbox.ship(digest, data)
        for content in contents:
            outbox.ship(*content)
        found: list[KeyState] = []
        new: dict[Key, KeyState] = {}
        fresh: list[Row] = []
        recurring = self._gone or self._fences
        for row in rows:
            key = row[0]
            state = states.get(key) or new.get(key)
            if state is None or state.status in OVER:
                new[key] = state = KeyState(key, row[4])
                fresh.append(row)
                if recurring:
                    self._fence(state)
            elif row[4] and state.token and row[4] != state.token:
                raise KeyConflict(f"the key {key!r} stands for a different call already; choose another, or release it")
            found.append(state)
        for state in found:
            state.refs += 1
        if fresh:
            # In this order: an interrupt in between leaves tasks that nobody waits for, not the reverse.
            outbox.submit(digest, extra, fresh)
            states.update(new)
        return found

    def want(self, keys: Iterable[Key]) -> list[KeyState]:
        """Futures for tasks that somebody else submitted; each key gains one reference."""
        return self._adopt(keys, self._outbox.want)

    def expect(self, keys: Iterable[Key]) -> list[KeyState]:
        """Futures for values that this client is about to put on workers; each key gains one reference."""
        return self._adopt(keys, lambda _: None)

    def dereference(self, states: Iterable[KeyState]) -> None:
        """One future less for each of these; a key without futures is released."""
        for state in states:
            state.refs -= 1
            if not state.refs and self.states.get(state.key) is state:
                self._forget(state)

    def cancel(self, states: Iterable[KeyState], force: bool, text: str) -> None:
        """Give these up; their futures are cancelled now."""
        keys: list[Key] = []
        for state in states:
            if self.states.get(state.key) is state and state.status not in OVER:
                keys.append(state.key)
                self._end(state, "cancelled", Dropped(state.key, "cancelled", text))
                self._gone.add(state.key)
        self._outbox.put_keys(lambda part: Cancel(part, force), keys)

    def retry(self, states: Iterable[KeyState]) -> None:
        """Run those of these that have erred again."""
        keys: list[Key] = []
        for state in states:
            if state.status == "error":
                state.status, state.failure = "pending", None
                keys.append(state.key)
        self._outbox.put_keys(Retry, keys)

    def detach(self, states: Iterable[KeyState]) -> None:
        """Let these finish, wanted or not."""
        keys = [state.key for state in states if self.states.get(state.key) is state]
        self._outbox.put_keys(FireAndForget, keys)

    def ask(self, what: str, arguments: Sequence[str], answer: Answer) -> None:
        """Put a question to the scheduler."""
        self._request(lambda number: Query(number, what, tuple(arguments)), answer)

    def restart(self, answer: Answer) -> None:
        """Have the cluster begin afresh; every future is cancelled now."""
        if self.ended is None:
            for state in list(self.states.values()):
                self._gone.add(state.key)
                self._end(state, "cancelled", Dropped(state.key, "cancelled", "the cluster was restarted"))
        self._request(Restart, answer)

    def restart_workers(self, workers: Sequence[str], answer: Answer) -> None:
        """Have these workers begin afresh."""
        self._request(lambda number: RestartWorkers(number, tuple(workers)), answer)

    def retire(self, workers: Sequence[str], number: int, answer: Answer) -> None:
        """Have these workers leave without losing anything, or so many as the scheduler chooses."""
        self._request(lambda request: Retire(request, tuple(workers), number), answer)

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
            self._seek(state)

    def abandon(self, state: KeyState, waiter: Waiter | Reader) -> None:
        """Whoever waited or read has gone away."""
        for name in ("waiters", "readers"):
            calls: list[Any] = [call for call in getattr(state, name) or () if call is not waiter]
            setattr(state, name, calls or None)

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
        if state is None or state.fence or state.status in OVER:
            if message.value is None and (state is None or not state.fence):
                # It may be wanted in our name all the same: a worker that returns tells again what was scattered.
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
            elif state.fetching not in state.holders:  # nor is it fetched from anybody, perhaps
                self._seek(state)

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
        answer = self._answers.pop(message.request, None)
        if answer is not None:
            answer(message.payload, None)

    def _stuck(self, message: Stuck) -> None:
        self.stuck.hear(message)

    def _received(self, message: Received) -> None:
        self._stream.confirmed(message.number)

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, Any], None]]] = {
        KeyReady: _key_ready,
        KeyFailed: _key_failed,
        KeyPending: _key_pending,
        Dropped: _dropped,
        Reply: _reply,
        Stuck: _stuck,
        Received: _received,
    }

    # ------------------------------------------------------------------------------------------ schedulers

    def join(self, scheduler: str, handled: int | None) -> None:
        """There is a link to this scheduler; if it still knows of this client, it has `handled` so many messages.

        If it does not, what was asked of the one before is lost.

        Raises `ProtocolError` for a number that cannot be.
        """
        before = self.scheduler
        if before and scheduler != before:
            text = f"the scheduler {before} is gone; another one, {scheduler}, has taken its place"
            self.forsake(Ended(lost=True, text=text))
        elif before and handled is None:
            text = f"the scheduler {before} has given up on this client: the connection was lost for too long"
            self.forsake(Ended(lost=True, text=text))
        elif before and handled is not None:
            self._outbox.put_first(self._stream.take_back(handled))
        self.scheduler = scheduler

    def forsake(self, ended: Ended) -> None:
        """The scheduler is lost, and all that was asked of it: whoever waits hears it now. The next knows nothing."""
        self.stuck.forget()
        self.scheduler = ""
        self.received = 0
        self._stream = Stream()
        self._outbox = Outbox(BLOB_BUDGET_BYTES)
        self._fetches.clear()
        states, self.states = self.states, {}
        for state in states.values():
            self._end(state, "lost" if ended.lost else "cancelled", ended)
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer(None, ended)
        self._gone.clear()
        self._fences.clear()

    def end(self, ended: Ended) -> None:
        """The client is over; nothing more will arrive, and whoever waits hears it now."""
        if self.ended is None:
            self.ended = ended
            self.forsake(ended)

    # ------------------------------------------------------------------------------------------ fetching

    def fetched(self, address: str, state: KeyState, frames: Frames) -> None:
        """The value of this key has arrived from `address`."""
        if state.fetching == address:
            state.fetching = ""
        self._deliver(state, frames)

    def unfetched(
        self, address: str, state: KeyState, reason: str, *, final: bool = False, is_silent: bool = False
    ) -> None:
        """This key could not be had from `address`; `final`: nor from anywhere else.

        One that merely `is_silent` may have it all the same: the scheduler knows whether it is lost.
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
            self._fetches.enqueue(state)

    def fetch_ended(self, address: str) -> None:
        """A request is over; every key of it was reported."""
        self._fetches.ended(address)

    def next_fetches(self) -> list[FetchKeys]:
        """The fetches that can start now."""
        return self._fetches.next()

    def drain(self) -> Sequence[Message]:
        """The messages to send now, in this order."""
        return self._stream.sent(self._outbox.drain(), self.received)

    @property
    def has_messages(self) -> bool:
        """Whether `drain` would give any."""
        return bool(self._outbox)

    @property
    def has_something(self) -> bool:
        """Whether there is anything to send, to confirm or to fetch."""
        return bool(self._outbox or self._fetches) or self._stream.owes(self.received)

    # ------------------------------------------------------------------------------------------ inside

    def _request(self, make: Callable[[int], Message], answer: Answer) -> None:
        if self.ended is not None:
            answer(None, self.ended)
            return
        self._requests += 1
        self._answers[self._requests] = answer
        self._outbox.put(make(self._requests))

    def _adopt(self, keys: Iterable[Key], announce: Callable[[Key], None]) -> list[KeyState]:
        found: list[KeyState] = []
        for key in keys:
            state = self.states.get(key)
            if state is None or state.status in OVER:
                state = KeyState(key)
                self._fence(state)
                announce(key)
                self.states[key] = state
            state.refs += 1
            found.append(state)
        return found

    def _current(self, key: Key) -> KeyState | None:
        """The state that a message about `key` is meant for, if any."""
        state = self.states.get(key)
        return None if state is None or state.fence or state.status in OVER else state

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
        """The last status of this state; the key can be submitted anew."""
        if state.status in OVER:
            return
        self._drop_inline(state)
        state.failure, state.holders, state.fetching = failure, (), ""
        self._settle(state, status)

    def _forget(self, state: KeyState) -> None:
        del self.states[state.key]
        self._drop_inline(state)
        if state.status in OVER:
            return
        self._outbox.release(state.key)
        self._gone.add(state.key)
        if len(self._gone) > RELEASES_PER_FENCE:
            self._send_fence()

    def _fence(self, state: KeyState) -> None:
        """If messages about an earlier life of this key may be under way, have this one ignore them."""
        if state.key in self._gone:
            state.fence = self._send_fence()
        else:
            for number, keys in self._fences.items():
                if state.key in keys:
                    state.fence = number

    def _send_fence(self) -> int:
        number = self._requests + 1
        self._fences[number], self._gone = self._gone, set()
        self.ask("who_has", ("",), lambda _payload, _ended: self._lift_fence(number))
        return number

    def _lift_fence(self, number: int) -> None:
        for key in self._fences.pop(number, ()):
            state = self.states.get(key)
            if state is not None and state.fence == number:
                state.fence = 0

    def _seek(self, state: KeyState) -> None:
        """Get the value of a finished key to those who read it."""
        if state.holders:
            self._fetches.enqueue(state)
        else:
            # The copy that came along made room for others: the scheduler says again where the value is.
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
