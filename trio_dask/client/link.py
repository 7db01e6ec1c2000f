"""The task that keeps a client connected with its scheduler.

After a lost connection it dials again, while callers wait. When the scheduler is lost, all waiting calls fail at once,
and it does not dial until the next request; then it dials for as long as it did at the start.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

import trio

from trio_dask.client.core.key_state import Ended
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.outgoing import Outgoing
from trio_dask.client.shared_state import (
    CLOSED,
    Closed,
    Connected,
    Connecting,
    Connection,
    Dial,
    Lost,
    NotStarted,
    SharedState,
)
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.comm.captured_error import CapturedError
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, UnavailableError, UsageError
from trio_dask.protocol.messages import Message

_logger = logging.getLogger("trio_dask.client")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

MESSAGES_AT_ONCE: Final = 1000
"""This many messages are handled before a thread that waits for the lock gets it."""


class _Loss(NamedTuple):
    """Why a connection ended; `is_final` if dialling the same scheduler again is of no use."""

    text: str
    is_final: bool


class Link:
    """Changes the phase; outside of forked children nothing else does. For the loop's own thread only."""

    def __init__(
        self,
        shared: SharedState,
        calls: LoopCalls,
        outgoing: Outgoing,
        channels: WorkerChannels,
        dial: Dial,
        grace_s: float,
        patience_s: float,
        loss_level: int,
    ) -> None:
        """`loss_level` is that of the lines in the log which say that the scheduler is lost, and is back."""
        self._shared = shared
        self._calls = calls
        self._outgoing = outgoing
        self._channels = channels
        self._dial = dial
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._loss_level = loss_level
        self._scope = trio.CancelScope()
        """Around what `stop` cancels."""
        self._is_stopping = False
        self._stopped = trio.Event()
        self.transports: trio.Nursery
        """For the tasks of transports, while this serves."""

    def attach(self) -> None:
        """Belong to the Trio loop that runs here: from now on all calls can be made, and wait for the connection."""
        self._calls.attach()
        if isinstance(self._shared.phase, NotStarted):
            self._shared.phase = Connecting()

    async def serve(
        self, *, outlive_cancellation: bool = False, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect, and stay until `stop`. A lost scheduler does not end it: later calls raise the loss.

        With `outlive_cancellation`, once it is connected, only `stop` ends it.

        Raises `NoScheduler` or `RefusedError`, only before it is connected.
        """
        self.attach()
        block = CapturedError()
        async with trio.open_nursery() as self.transports:
            with block:
                try:
                    connection = await self._unless_stopped(self._dial, "", 0)
                    if connection is not None:
                        with trio.CancelScope(shield=outlive_cancellation):
                            async with trio.open_nursery() as nursery:
                                try:
                                    await nursery.start(self._calls.host)
                                except BaseException:  # cancelled, most likely; nobody else has the connection yet
                                    connection.abort()
                                    raise
                                await self._stay_connected(connection, task_status.started)
                except (NoScheduler, RefusedError) as error:
                    self._close(Ended(lost=True, text=str(error)))
                    raise
                finally:
                    self._close(Ended(lost=False, text=CLOSED))
                    self._stopped.set()
        block.raise_it()

    def stop(self) -> None:
        """Have `serve` say goodbye and return."""
        self._is_stopping = True
        self._scope.cancel()

    async def wait_stopped(self) -> None:
        """Return once `serve` has ended."""
        await self._stopped.wait()

    async def _unless_stopped(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T | None:
        """What this returns, or None if the client is to stop before."""
        if not self._is_stopping:
            with trio.CancelScope() as self._scope:
                return await function(*args)
        return None

    async def _stay_connected(self, first: Connection, started: Callable[[], None]) -> None:
        connection: Connection | None = first
        try:
            while connection is not None:
                loss: _Loss | None = None
                async with connection:
                    try:
                        phase = self._begin(connection)
                        if isinstance(phase, _Loss):
                            loss = phase
                        else:
                            started()
                            loss = await self._unless_stopped(self._listen, phase)
                    finally:
                        if loss is None:
                            await self._take_leave(connection)  # noqa: ASYNC102 - it shields itself, with a limit
                        else:
                            self._shared.phase = Connecting()
                started = _announce_nothing
                connection = None if loss is None else await self._reconnect(loss)
        finally:
            await self._take_leave(None)  # noqa: ASYNC102 - it shields itself, with a limit

    def _begin(self, connection: Connection) -> Connected | _Loss:
        """Go on with this connection, unless the welcome of its scheduler is impossible."""
        welcome = connection.hello
        try:
            with self._shared.lock:
                self._shared.core.connected(welcome.incarnation, _handled(welcome.details))
        except ProtocolError as error:
            return _Loss(f"the scheduler is lost: {error}", True)
        phase = self._shared.phase = Connected(connection)
        self._outgoing.flush()
        return phase

    async def _listen(self, phase: Connected) -> _Loss:
        """Take what the scheduler says until the connection ends."""
        connection = phase.connection
        try:
            with phase.scope:
                async for batch in connection.batches():
                    self._handle_batch(batch)
        except (OSError, trio.BrokenResourceError) as error:
            return _Loss(f"the scheduler is lost: {str(error) or type(error).__name__}", False)
        except ProtocolError as error:  # the scheduler would send the same again
            return _Loss(f"the scheduler is lost: {error}", True)
        except Exception as error:  # a bug of ours must raise errors in the waiting calls, not leave them waiting
            phase.fail(error)
        if phase.failure:
            return _Loss(f"the scheduler is lost: the client failed: {phase.failure}", True)
        if connection.goodbye is not None:
            return _Loss(f"the scheduler closed the connection ({connection.goodbye.reason})", True)
        return _Loss("the scheduler is lost: it closed the connection unexpectedly", False)

    def _handle_batch(self, batch: Sequence[Message]) -> None:
        core = self._shared.core
        handle = core.handle
        for start in range(0, len(batch), MESSAGES_AT_ONCE):
            with self._shared.lock:
                for message in batch[start : start + MESSAGES_AT_ONCE]:
                    handle(message)
            if core.stuck.aloud:
                _logger.warning("%s", core.stuck.take_aloud())
        self._outgoing.flush()
        if not self._outgoing.is_delaying:
            self._outgoing.flush_later()

    async def _reconnect(self, loss: _Loss) -> Connection | None:
        """The next connection, with the same scheduler or another one; None if the client is to stop before."""
        if loss.is_final:
            self._lose(loss.text)
        else:
            self._say("%s; calls wait, and the client dials for up to %g s", loss.text, self._patience_s)
        lost_at = trio.current_time()
        while True:
            if isinstance(self._shared.phase, Lost):
                await self._unless_stopped(self._shared.phase.asked.wait)
                self._shared.phase = Connecting()
                if not self._is_stopping:
                    self._say("a call needs the scheduler; the client dials for up to %g s", self._patience_s)
            lost = self._shared.core.scheduler
            try:
                connection = await self._unless_stopped(self._dial, lost, self._shared.core.received)
            except (NoScheduler, RefusedError, UnavailableError, UsageError) as error:
                if lost:
                    self._say("the client gives up until the next call: %s", error)
                self._lose(f"{loss.text}; reconnecting failed: {error}" if lost else str(error))
            else:
                if connection is not None:
                    self._say("the client is connected again, after %.1f s", trio.current_time() - lost_at)
                return connection

    def _say(self, line: str, *arguments: object) -> None:
        _logger.log(self._loss_level, line, *arguments)

    def _lose(self, text: str) -> None:
        """No scheduler knows this client any more."""
        with self._shared.lock:
            self._shared.core.end_session(Ended(lost=True, text=text))
            self._shared.phase = Lost(trio.Event())

    async def _take_leave(self, connection: Connection | None) -> None:
        """End the client's calls, send what is left, and say goodbye."""
        with trio.move_on_after(self._grace_s, shield=True):
            await self._calls.end()
            if connection is not None:
                self._outgoing.flush()
            self._close(Ended(lost=False, text=CLOSED))
            await self._channels.aclose()
            if connection is not None:
                await connection.aclose("the client was closed")

    def _close(self, ended: Ended) -> None:
        with self._shared.lock:
            if not isinstance(self._shared.phase, Closed):
                self._shared.phase = Closed(ended)
                self._shared.core.end_session(ended)
        self._calls.fail_early(Closed(ended).error())


def _announce_nothing() -> None:
    """Takes the place of `task_status.started` after the first connection."""


def _handled(details: Mapping[str, Any]) -> int | None:
    """How many of our messages the scheduler has handled, if it goes on with us where the last connection was cut.

    Raises `ProtocolError` for what is no number.
    """
    if details.get("returned") is not True:
        return None
    number = details.get("received")
    if type(number) is not int:
        raise ProtocolError(f"a scheduler that goes on with this client has handled {number!r} messages of it")
    return number
