"""What clients and futures talk to: wishes, waiting and reading, over one core."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any

from trio_dask.client.core.key_state import Frames, KeyState, Reader, Waiter
from trio_dask.client.core.outbox import Content, Row
from trio_dask.client.driver import Driver
from trio_dask.client.link import Dial
from trio_dask.client.loop_calls import Answer
from trio_dask.client.wait_signals import Reading, Settling, Signal, ThreadSignal, TrioSignal
from trio_dask.client.worker_channels import Channel
from trio_dask.errors import KeyConflict
from trio_dask.hooks import hooks
from trio_dask.ids import Incarnation, Key
from trio_dask.protocol.pickling import PickledFunction, load_value

__all__ = ["Engine", "loading"]

loading: ContextVar[Engine | None] = ContextVar("trio_dask client that unpickles", default=None)
"""While a value is unpickled: the client that futures inside it belong to."""


def _no_future(engine: Engine, state: KeyState) -> Any:
    raise RuntimeError("this client makes no futures")


def _nobody() -> None:
    return None


class Engine(Driver):
    """One client core, driven, with everything that can be asked of it. Safe from any thread."""

    def __init__(
        self,
        incarnation: Incarnation,
        dial: Dial,
        open_channel: Callable[[str], Awaitable[Channel]],
        *,
        grace_s: float = 2.0,
    ) -> None:
        super().__init__(dial, open_channel, grace_s)
        self.incarnation = incarnation
        self.address = ""
        """Of the scheduler, once connected."""
        self.serial = count(1)
        """For keys that stand for one call each, of all clients that share this."""
        self._facade: Callable[[], Any] = _nobody
        self.future_type: Callable[[Engine, KeyState], Any] = _no_future
        self.run_callback: Callable[[Callable[[], object]], object] = self.run_soon

    def belong_to(self, client: Any, future_type: Callable[[Engine, KeyState], Any]) -> None:
        """Say which client futures name as theirs, and what its futures are."""
        self._facade, self.future_type = lambda: client, future_type

    @property
    def facade(self) -> Any:
        """The client that futures name as theirs; None if there is none any more."""
        return self._facade()

    def loosen(self) -> None:
        """Refer to the client no longer than others do."""
        self._facade = weakref.ref(self._facade())

    # ------------------------------------------------------------------------------------------------ wishes

    def submit(
        self, function: PickledFunction, rows: Iterable[Row], contents: Iterable[Content], extra: Mapping[str, Any]
    ) -> list[KeyState]:
        """Ask for tasks; each state has one reference more, which its future gives back.

        Raises `KeyConflict`, and what `check_open` raises.
        """
        with self.lock:
            self.check_open()
            if self._failure_dropped:
                self._collect_all_dropped()
            try:
                states = self.core.submit(function[:2], rows, contents, extra)
            except KeyConflict:
                self._collect_all_dropped()
                states = self.core.submit(function[:2], rows, contents, extra)
        if not self._woken:
            if len(states) == 1:
                self.send_or_wake()
            else:
                self.wake()
        return states

    def adopt(self, keys: Iterable[Key], *, submitted: bool = True) -> list[KeyState]:
        """Futures for keys that this client did not submit: others did, or it is about to put the values on workers."""
        with self.lock:
            self.check_open()
            states = self.core.want(keys) if submitted else self.core.expect(keys)
        self.wake()
        return states

    def cancel(self, states: Iterable[KeyState], *, force: bool, text: str) -> None:
        """Give these up."""
        with self.lock:
            self.core.cancel(states, force, text)
        self.wake()

    def release(self, states: Iterable[KeyState]) -> None:
        """Give back one reference of each."""
        with self.lock:
            self.core.dereference(states)
        self.wake()

    def retry(self, states: Iterable[KeyState]) -> None:
        """Run those of these that have erred again."""
        with self.lock:
            self.core.retry(states)
        self.wake()

    def detach(self, states: Iterable[KeyState]) -> None:
        """Let these finish, wanted or not."""
        with self.lock:
            self.core.detach(states)
        self.wake()

    def shutdown(self) -> None:
        """End the cluster."""
        with self.lock:
            self.check_open()
            self.core.shutdown()
        self.push()

    def call_when_done(self, state: KeyState, callback: Callable[[], object]) -> None:
        """Have the client's callback runner call this once `state` is not pending."""
        with self.lock:
            self.core.wait(state, partial(self._run_callback, callback))

    def _run_callback(self, callback: Callable[[], object], _: KeyState) -> None:
        self.run_callback(callback)

    # ------------------------------------------------------------------------------------------------ waiting

    def watch(self, states: Iterable[KeyState], waiter: Waiter) -> None:
        """Have `waiter` called once for each of these, when it is not pending: under the lock, now or later."""
        with self.lock:
            wait = self.core.wait
            for state in states:
                wait(state, waiter)
        self.push()

    def watch_values(self, states: Iterable[KeyState], reader: Reader) -> None:
        """Have `reader` called once for each of these, with its value or without one: under the lock, now or later."""
        with self.lock:
            read = self.core.read
            for state in states:
                read(state, reader)
        self.push()

    def unwatch(self, states: Iterable[KeyState], waiter: Waiter | Reader) -> None:
        """Call this waiter or reader no more."""
        with self.lock:
            for state in states:
                self.core.abandon(state, waiter)

    def settle(self, states: Sequence[KeyState], count: int, timeout_s: float | None) -> bool:
        """Block until `count` of these have settled; False if the time was up before."""
        signal = ThreadSignal()
        waiter = self._start_settling(states, count, signal)
        try:
            return self.block(signal, timeout_s)
        finally:
            if waiter.is_left:
                self._abandon(states, waiter)

    async def settle_async(self, states: Sequence[KeyState], count: int) -> None:
        """Wait until `count` of these have settled."""
        signal = TrioSignal()
        waiter = self._start_settling(states, count, signal)
        try:
            await self.rest(signal)
        finally:
            if waiter.is_left:
                self._abandon(states, waiter)

    def read(self, states: Sequence[KeyState], timeout_s: float | None, *, on_failure: bool) -> Reading | None:
        """Block until the values of these are here; None if the time was up before.

        With `on_failure` the first key that has none ends it.
        """
        signal = ThreadSignal()
        reading = self._start_reading(states, Reading(signal, len(states), on_failure=on_failure))
        try:
            return reading if self.block(signal, timeout_s) else None
        finally:
            if reading.is_left:
                self._abandon(states, reading)

    async def read_async(self, states: Sequence[KeyState], *, on_failure: bool) -> Reading:
        """Wait until the values of these are here; with `on_failure` the first key that has none ends it."""
        signal = TrioSignal()
        reading = self._start_reading(states, Reading(signal, len(states), on_failure=on_failure))
        try:
            await self.rest(signal)
        finally:
            if reading.is_left:
                self._abandon(states, reading)
        return reading

    def block(self, signal: ThreadSignal, timeout_s: float | None) -> bool:
        """Wait for results; False if the time was up before. A task that waits leaves its slot to others meanwhile."""
        self._waited = True
        if signal.is_set or hooks.tasks is None:
            return signal.wait(timeout_s)
        with hooks.tasks.outside_of_slots(self.facade):
            return signal.wait(timeout_s)

    async def rest(self, signal: TrioSignal) -> None:
        """The same under Trio."""
        if signal.is_set or hooks.tasks is None:
            await signal.wait()
        else:
            async with hooks.tasks.outside_of_slots_async(self.facade):
                await signal.wait()

    def too_late(self, text: str, states: Iterable[KeyState]) -> TimeoutError:
        """The time is up, which the text says; with the reason, if these wait for a worker that is not there."""
        stuck = self.core.stuck.why(states)
        return TimeoutError(f"{text}; {stuck}" if stuck else text)

    def load(self, frames: Frames) -> Any:
        """Unpickle a value; futures inside it become futures of this client."""
        before = loading.set(self)
        try:
            return load_value(frames)
        finally:
            loading.reset(before)

    def _start_settling(self, states: Sequence[KeyState], count: int, signal: Signal) -> Settling:
        waiter = Settling(signal, count, len(states))
        with self.lock:
            wait = self.core.wait
            for state in states:
                wait(state, waiter)
        self.push()
        return waiter

    def _start_reading(self, states: Sequence[KeyState], reading: Reading) -> Reading:
        with self.lock:
            read = self.core.read
            for state in states:
                read(state, reading)
        self.push()
        return reading

    def _abandon(self, states: Sequence[KeyState], waiter: Settling | Reading) -> None:
        with self.lock:
            for state in states:
                self.core.abandon(state, waiter)

    # ------------------------------------------------------------------------------------------------ asking

    async def ask(self, what: str, arguments: Iterable[str] = ()) -> Any:
        """Put a question to the scheduler and return its answer. From any Trio loop."""
        return await self._request(lambda answer: self.core.ask(what, tuple(arguments), answer))

    async def restart(self) -> Any:
        """Have the cluster begin afresh; returns when it has."""
        return await self._request(self.core.restart)

    async def restart_workers(self, workers: Sequence[str]) -> Any:
        """Have these workers begin afresh; returns when they have."""
        return await self._request(lambda answer: self.core.restart_workers(workers, answer))

    async def retire(self, workers: Sequence[str], number: int) -> Any:
        """Have these workers leave, or so many; returns when they have."""
        return await self._request(lambda answer: self.core.retire(workers, number, answer))

    async def _request(self, put: Callable[[Answer], None]) -> Any:
        signal = TrioSignal()
        answer = Answer(signal)
        with self.lock:
            put(answer)
        self.push()
        await signal.wait()
        return answer.unwrap()
