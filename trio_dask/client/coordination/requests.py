"""What the primitives have in common: a name, a client, and requests that wait until their timeout.

The scheduler knows no timeouts. A call that stops waiting, for whatever reason, sends an `EndRequest`: what the request
had got until then, or gets meanwhile, is released again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import trio

from trio_dask.client.call_forms import CallForms, Timeout
from trio_dask.client.core.key_state import Ended
from trio_dask.client.default_clients import NO_CLIENT, usable
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import Signal, ThreadSignal, TrioSignal, as_seconds, limit
from trio_dask.errors import FutureCancelledError, ProtocolError, SchedulerLost, UsageError
from trio_dask.hooks import client_here
from trio_dask.ids import new_incarnation
from trio_dask.protocol.messages import Coordinate, EndRequest
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH, TOO_LONG

R = TypeVar("R")

_NOT_TEXT: Final = "\0"
"""The texts that stand for names of other types begin with it."""

AT_ONCE: Final = 0.0
"""A timeout for what must not wait for other clients."""

KEEP_SLOT_S: Final = 0.005
"""A task that waits for longer frees its slot. To free it, and to get one again, takes a thread and messages."""


class Primitive(CallForms):
    """Something that programs and tasks share by its name. Pickled, it is one of the same name elsewhere.

    It uses the client that it was given, else the one of `get_client()`: in a task that of its worker. What it holds
    belongs to the session of that client, and is free as soon as that ends.
    """

    KIND: ClassVar[str]

    def __init__(self, name: Any = None, client: Any = None) -> None:
        self.name: Any = f"{self.KIND}-{new_incarnation()}" if name is None else name
        self.name_sent = name_to_send(self.name, self.KIND)
        """The text by which the scheduler knows it."""
        self._client = client

    @property
    def client(self) -> Any:
        """The client that the next call will use; None if there is none."""
        if self._client is not None:
            return self._client
        try:
            return usable(client_here())
        except ValueError:
            return None

    @property
    def engine(self) -> Engine:
        """That of the client.

        Raises:
          RuntimeError: there is no client.
          ForkedClientError: there is one, of the process that this one was forked from.
        """
        client = self.client
        if client is None:
            raise RuntimeError(f"{self!r}: {NO_CLIENT}")
        engine: Engine = client.engine
        return engine

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def name_to_send(name: Any, kind: str) -> str:
    """The text that stands for a name; two names have the same text only if they are equal, and of one type.

    Names of files may have bytes that are no text, which Python has as half pairs. No message can carry these.

    Raises `UsageError` for what is no name, or is too long.
    """
    is_sent_as_it_is = isinstance(name, str) and not name.startswith(_NOT_TEXT) and _is_unicode(name)
    text = name if is_sent_as_it_is else f"{_NOT_TEXT}{name!r}"
    if not _is_plain(name) or len(text) > MAX_KEY_LENGTH:
        raise UsageError(
            f"the name of {_with_article(kind)} is a text, bytes, a number, or a list or tuple of these, of at most "
            f"{MAX_KEY_LENGTH} characters: {name!r:.60}"
        )
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain(name: Any) -> bool:
    """Whether this is written in the same way by all programs."""
    if type(name) in (list, tuple):
        return all(map(_is_plain, name))
    return isinstance(name, str) or type(name) in (bytes, int, float, bool)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class RequestId(NamedTuple):
    """A request, from the view of its client: for as long as it waits, or what it got is held."""

    engine: Engine
    number: int
    kind: str
    name: str

    def end(self, *, is_taken: bool = False) -> None:
        """Release what it got, or wait no longer; or say that the futures in what it got are taken over."""
        self.engine.tell(EndRequest(self.number, self.kind, self.name, is_taken))


class _Reply:
    """What becomes of one request; every method is called under the lock of the engine."""

    __slots__ = ("ended", "is_abandoned", "payload", "request", "signal", "undo")

    def __init__(self, signal: Signal, undo: Callable[[RequestId, Any], None] | None) -> None:
        self.request: RequestId | None = None
        """None until it is sent."""
        self.signal = signal
        self.undo = undo
        self.payload: tuple[str, Any] | None = None
        self.ended: Ended | None = None
        self.is_abandoned = False

    def __call__(self, payload: Any, ended: Ended | None) -> None:
        self.payload, self.ended = payload, ended
        if self.is_abandoned:
            self.take_back()
        else:
            self.signal.set()

    def end_request(self) -> None:
        """Tell the scheduler that the call waits no longer, if it was asked."""
        if self.request is not None:
            self.request.end()

    def take_back(self) -> None:
        """Nobody takes what the answer brings."""
        if (
            self.undo is not None
            and self.request is not None
            and self.payload is not None
            and self.payload[0] == "done"
        ):
            self.undo(self.request, self.payload[1])


@dataclass(slots=True, eq=False)
class ForAnswer(Generic[R]):
    """Waits for the answer to one request: a definition returns this (see `call_forms`).

    `finish` makes the value of the call from the request and its answer; `too_late` makes it, or raises, when the time
    was up. `undo` is called, under the lock, with an answer that nobody takes. If `frees_slot`, a task has no slot
    while it waits. With `must_know` the call waits, after its timeout, to hear what became of the request.
    """

    primitive: Primitive
    operation: str
    arguments: tuple[Any, ...]
    finish: Callable[[RequestId, Any], R]
    timeout: Timeout = None
    too_late: Callable[[], R] | None = None
    undo: Callable[[RequestId, Any], None] | None = None
    frees_slot: bool = False
    must_know: bool = False
    futures: object = None
    """Kept alive until the scheduler keeps them."""
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = self.primitive.engine

    def block(self) -> R:
        seconds = as_seconds(self.timeout)
        signal = ThreadSignal()
        reply = _Reply(signal, self.undo)
        try:
            self._send(reply)
            in_time = self._block(signal, seconds)
            if not in_time and self.must_know:
                reply.end_request()
                signal.wait()
        except BaseException:  # Ctrl-C: what the answer brings must not be lost
            self._abandon(reply, is_taken=False)
            raise
        return self._result(reply)

    async def wait(self) -> R:
        signal = TrioSignal()
        reply = _Reply(signal, self.undo)
        try:
            self._send(reply)
            with limit(self.timeout) if self.timeout is not None else nullcontext():
                await self._wait(signal)
            if not signal.is_set and self.must_know:
                reply.end_request()
                await signal.wait()
        except BaseException:  # cancelled: what the answer brings must not be lost
            self._abandon(reply, is_taken=False)
            raise
        return self._result(reply)

    def _block(self, signal: ThreadSignal, seconds: float | None) -> bool:
        if not self.frees_slot or (seconds is not None and seconds <= KEEP_SLOT_S):
            return signal.wait(seconds)
        left = None if seconds is None else seconds - KEEP_SLOT_S
        return signal.wait(KEEP_SLOT_S) or self.engine.block(signal, left)

    async def _wait(self, signal: TrioSignal) -> None:
        if not self.frees_slot:
            await signal.wait()
            return
        with trio.move_on_after(KEEP_SLOT_S):
            await signal.wait()
            return
        await self.engine.wait_async(signal)

    def _send(self, reply: _Reply) -> None:
        primitive = self.primitive
        kind, name, operation, arguments = primitive.KIND, primitive.name_sent, self.operation, self.arguments

        def make(number: int) -> Coordinate:
            # Here, since an interrupt may come before `post` returns: then what was sent must be ended.
            reply.request = RequestId(self.engine, number, kind, name)
            return Coordinate(number, kind, name, operation, arguments)

        self.engine.post(make, reply)

    def _abandon(self, reply: _Reply, *, is_taken: bool) -> None:
        """End the request, unless it was answered and the answer is taken."""
        with self.engine.shared.lock:
            if reply.payload is None and reply.ended is None:
                reply.is_abandoned = True
            elif is_taken:
                return
            else:
                reply.take_back()
        reply.end_request()

    def _result(self, reply: _Reply) -> R:
        self._abandon(reply, is_taken=True)
        if reply.ended is not None:
            raise end_of_session(reply.ended)
        outcome, value = ("ended", None) if reply.payload is None else reply.payload
        if outcome == "done":
            assert reply.request is not None, "there is no answer without a request"
            return self.finish(reply.request, value)
        if outcome == "ended" and self.too_late is not None:
            return self.too_late()
        raise refusal(outcome, value)


_ERRORS: Final[dict[str, type[Exception]]] = {
    "refused": UsageError,
    "closed": RuntimeError,
    TOO_LONG: UsageError,
}


def refusal(outcome: str, text: str | None) -> Exception:
    """The error for a request with this outcome."""
    return _ERRORS.get(outcome, ProtocolError)(text)


def end_of_session(ended: Ended) -> Exception:
    """The error for a request that has no answer."""
    return (SchedulerLost if ended.lost else FutureCancelledError)(ended.text)


def answered(_: RequestId, value: Any) -> Any:
    """The answer itself, as the value of a call."""
    return value


def ask(primitive: Primitive, operation: str, *arguments: Any) -> ForAnswer[Any]:
    """A request that is answered at once."""
    return ForAnswer(primitive, operation, arguments, answered)


def too_late(what: str, timeout: Timeout) -> TimeoutError:
    """The error for a call whose time was up: `what` says what did not happen."""
    return TimeoutError(f"{what} within {as_seconds(timeout):g} s")


def wants_at_once(blocking: bool, timeout: Timeout) -> bool:
    """Whether a call with these arguments must not wait. Raises `ValueError` if they contradict each other."""
    seconds = as_seconds(timeout)
    if not blocking and seconds is not None:
        raise ValueError("a call that does not block takes no timeout")
    return not blocking or (seconds is not None and seconds <= AT_ONCE)
