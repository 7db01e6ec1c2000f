"""The way out of an engine: what is put into its core is sent to the scheduler, or fetched from workers.

The caller's own thread sends a lone request for which the caller waits, so no other thread has to wake. The loop sends
everything else, and wakes once for all that gathered meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Final

import trio

from trio_dask.client.core.fetch_queue import FetchRequest
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.fetch_results import fetch
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import Connected, Lost, SharedState
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.protocol.messages import Message

RELEASES_AT_ONCE: Final = 1000
"""This many releases are handled before a thread that waits for the lock gets it."""

DELAY_S: Final = 0.02
"""When results have just come in, how long releases may wait for other messages to leave with."""


class Outgoing:
    """Sends what the core has to say. `wake`, `drop` and `send_or_wake` may be called from any thread."""

    def __init__(self, shared: SharedState, calls: LoopCalls, channels: WorkerChannels) -> None:
        self.is_woken = False
        """Whether the loop is about to flush anyway."""
        self.has_waited = False
        """Whether a caller has blocked since one last sent a request itself; otherwise requests come in a burst."""
        self.is_delaying = False
        """Whether the loop will flush within `DELAY_S`."""
        self.failure_dropped = False
        """Whether a failed task is among the dropped: a new submission of it wants another attempt, not its error."""
        self._shared = shared
        self._calls = calls
        self._channels = channels
        # A thread holds it from taking messages out of the core until they are sent, so that they leave in order.
        self._sending = threading.Lock()
        self._dropped: deque[KeyState] = deque()
        self._when_unused: Callable[[], object] | None = None

    def send_or_wake(self) -> None:
        """Send what was put into the core, if that is a lone request; otherwise have the loop send it."""
        phase = self._shared.phase
        if (
            not self.has_waited
            or type(phase) is not Connected
            or not phase.connection.thread_safe_send
            or get_ident() == self._calls.thread
            or not self._sending.acquire(blocking=False)
        ):
            self.wake()
            return
        try:
            self.has_waited = False
            with self._shared.lock:
                self._collect_dropped()
                messages = self._shared.core.drain() if self._shared.phase is phase else ()
            if messages:
                phase.connection.send_many_nowait(messages)
                phase.connection.flush_nowait()
        except Exception as error:  # as in `_send`: the loop raises it in the waiting calls
            self._calls.run_soon(phase.fail, error)
        except BaseException:  # Ctrl-C perhaps, in the middle of a message: the next connection resumes both streams
            self._calls.run_soon(phase.connection.abort, "a caller was interrupted while it sent something")
            raise
        finally:
            self._sending.release()

    def flush_or_wake(self) -> None:
        """Have what was put into the core, if anything, sent soon: from the loop's own thread at once."""
        if get_ident() == self._calls.thread:
            self.flush()
        elif self._shared.core.has_work:
            self.wake()

    def wake(self) -> None:
        """Have the loop flush. Safe anywhere: any thread, finalizers, signal handlers, the end of the interpreter."""
        token = self._calls.token
        if self.is_woken or token is None:
            return
        self.is_woken = True
        try:
            token.run_sync_soon(self._on_wake)
        except trio.RunFinishedError:
            pass  # the flag stays up: the loop has ended
        except BaseException:  # interrupted: the loop may not have been woken
            self.is_woken = False
            raise

    def drop(self, state: KeyState) -> None:
        """A future is gone. Takes no lock, so that finalizers can call it.

        While results come in it does not wake the loop: the release leaves with the next message, or soon.
        """
        self._dropped.append(state)
        if state.status == "error":
            self.failure_dropped = True
        if not self.is_delaying:
            self.wake()

    def collect_all_dropped(self) -> None:
        """Release now what no future refers to any more, not when the loop gets to it. Under the lock."""
        self.failure_dropped = False
        while self._dropped:
            self._collect_dropped()

    def _collect_dropped(self) -> None:
        dropped = self._dropped
        if dropped:
            self._shared.core.dereference([dropped.popleft() for _ in range(min(len(dropped), RELEASES_AT_ONCE))])
        if self._when_unused is not None and not self._shared.core.states:
            callback, self._when_unused = self._when_unused, None
            callback()

    def flush(self) -> None:
        """Send and fetch everything there is."""
        phase, nursery, core = self._shared.phase, self._calls.nursery, self._shared.core
        if not self._dropped and type(phase) is Connected and not core.has_work:
            return
        while len(self._dropped) > RELEASES_AT_ONCE:
            with self._shared.lock:
                self._collect_dropped()
        with self._sending:
            with self._shared.lock:
                self._collect_dropped()
                requests = core.next_fetches() if nursery is not None else ()
                messages = core.drain() if type(phase) is Connected else ()
                if type(phase) is Lost and core.has_messages:
                    phase.asked.set()
            if type(phase) is Connected and messages:
                _send(phase, messages)
        if nursery is not None:
            for request in requests:
                nursery.start_soon(self._fetch, request)

    def flush_later(self) -> None:
        """Flush in a moment: results have come in, so futures may be dropped soon."""
        if self._calls.nursery is not None:
            self.is_delaying = True
            self._calls.nursery.start_soon(self._flush_after_delay)

    def when_unused(self, callback: Callable[[], object]) -> None:
        """Call this once there is no future of this client."""
        self._when_unused = callback
        with self._shared.lock:
            self._collect_dropped()

    def _on_wake(self) -> None:
        self.is_woken = False
        self.flush()

    async def _flush_after_delay(self) -> None:
        await trio.sleep(DELAY_S)
        self.is_delaying = False
        self.flush()

    async def _fetch(self, request: FetchRequest) -> None:
        await fetch(request, self._channels, self._shared.core, self._shared.lock)
        self.flush()


def _send(phase: Connected, messages: Sequence[Message]) -> None:
    try:
        phase.connection.send_many_nowait(messages)
        phase.connection.flush_nowait()
    except Exception as error:  # a bug of ours must raise errors in the waiting calls, not leave them waiting
        phase.fail(error)
