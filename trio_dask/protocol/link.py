"""One end of a connection after the hello, without a socket or a clock: what came, what is due, how it ends.

Whoever moves the bytes tells it what has come and what time it is. It gives the messages, says when to `tick` next, and
then whether to speak up, or to give the peer up. How a connection ends is one of five phases:

- OPEN: neither side has said goodbye.
- LEAVING: this side has. What the peer still sends is received, and the end of the stream is a quiet one.
- PEER_LEFT: the peer has said goodbye. Nothing that it sends after that counts.
- OVER: the stream ended, and one of the two had announced it.
- LOST: the stream ended unannounced, or this side has given the peer up; `loss` tells why.

A goodbye of this side after a loss is one to nobody, and makes the end quiet. All else changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from trio_dask.protocol.codec import Allowed, decode
from trio_dask.protocol.frames import FrameDecoder, Kind
from trio_dask.protocol.messages import Goodbye, Message


class LinkLimits(NamedTuple):
    """The patience of one end of a connection, and how much it lets wait."""

    keepalive_s: float = 5.0
    """After this long without a frame of our own, a `PING` tells the peer that we are alive."""

    silence_s: float = 30.0
    """After this long without a byte from the peer, it counts as dead."""

    cleanup_s: float = 2.0
    """How long a closing connection may take to deliver what was sent, and to see the other side close."""

    max_backlog_bytes: int = 256 * 2**20
    """A peer that lets more than this wait for `silence_s` does not read, and is given up."""


DEFAULT_LIMITS: Final = LinkLimits()


class Phase(Enum):
    """How far a connection is, see above."""

    OPEN = auto()
    LEAVING = auto()
    PEER_LEFT = auto()
    OVER = auto()
    LOST = auto()


class Event(Enum):
    """What moves a connection from phase to phase."""

    SAY_GOODBYE = auto()
    HEAR_GOODBYE = auto()
    GIVE_UP = auto()
    STREAM_ENDS = auto()


STEPS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.OPEN, Event.SAY_GOODBYE): Phase.LEAVING,
    (Phase.OPEN, Event.HEAR_GOODBYE): Phase.PEER_LEFT,
    (Phase.OPEN, Event.GIVE_UP): Phase.LOST,
    (Phase.OPEN, Event.STREAM_ENDS): Phase.LOST,
    (Phase.LEAVING, Event.HEAR_GOODBYE): Phase.PEER_LEFT,
    (Phase.LEAVING, Event.STREAM_ENDS): Phase.OVER,
    (Phase.PEER_LEFT, Event.STREAM_ENDS): Phase.OVER,
    (Phase.LOST, Event.SAY_GOODBYE): Phase.LEAVING,
}
"""Every step there is; an event that has none here leaves the phase as it is."""


class Ping(NamedTuple):
    """This side has been silent for long enough: send a `PING`."""


class GiveUp(NamedTuple):
    """The peer is dead, or does not read: close, for this reason."""

    reason: str


PING: Final = Ping()


class Link:
    """What one end knows of the connection. `remote` names the peer; `extra` reads the frames that hold no messages."""

    __slots__ = (
        "_allowed",
        "_deadline",
        "_extra",
        "_limits",
        "_remote",
        "bearable_at",
        "decoder",
        "goodbye",
        "heard_at",
        "loss",
        "phase",
        "sent_at",
        "silence_s",
    )

    def __init__(
        self,
        remote: str,
        allowed: Allowed,
        limits: LinkLimits,
        now: float,
        extra: Callable[[int, memoryview], list[Message]],
    ) -> None:
        self._remote = remote
        self._allowed = allowed
        self._limits = limits
        self._extra = extra
        self._deadline = now
        self.decoder = FrameDecoder()
        """Its `room` is where the next bytes belong, if it has some."""
        self.phase = Phase.OPEN
        self.goodbye: Goodbye | None = None
        """What the peer said when it left, if it did."""
        self.loss = ""
        """Why it is lost, once it is."""
        self.silence_s = limits.silence_s
        """How long the peer may be silent."""
        self.heard_at = now
        """When the last byte came."""
        self.sent_at = now
        """When the last frame of this side was begun; set by whoever sends."""
        self.bearable_at = now
        """When no more waited here than may; set by whoever sends."""

    # ---------------------------------------------------------------------------------------------------- receiving

    def receive(self, data: bytes, now: float, *, filled: int = 0) -> list[Message]:
        """The messages that these bytes complete, up to a goodbye; or the bytes that `filled` the decoder's `room`.

        Raises `ProtocolError` for what the peer may not send.
        """
        self.heard_at = now
        frames = self.decoder.filled(filled) if filled else self.decoder.feed(data)
        if self.goodbye is not None:
            return []
        batch: list[Message] = []
        for kind, payload in frames:
            if kind == Kind.RECORDS:
                batch += decode(payload, self._allowed)
            elif kind != Kind.PING:
                batch += self._extra(kind, payload)
        if Goodbye in map(type, batch):
            self._hear_goodbye(batch)
        return batch

    def _hear_goodbye(self, batch: list[Message]) -> None:
        for position, message in enumerate(batch):
            if isinstance(message, Goodbye):
                self.goodbye = message
                self._step(Event.HEAR_GOODBYE)
                del batch[position:]
                return

    # --------------------------------------------------------------------------------------------------------- ending

    def say_goodbye(self) -> None:
        """This side leaves."""
        self._step(Event.SAY_GOODBYE)

    def give_up(self, reason: str) -> None:
        """This side leaves without a word, unless the end was announced; the first reason counts."""
        if self.phase is Phase.OPEN:
            self.loss = reason
        self._step(Event.GIVE_UP)

    def stream_ends(self, how: str) -> bool:
        """Nothing more can be received. False if nobody announced that: it is lost then, and `loss` says why."""
        if self.phase is Phase.OPEN:
            self.loss = how
        self._step(Event.STREAM_ENDS)
        return self.phase is not Phase.LOST

    def _step(self, event: Event) -> None:
        self.phase = STEPS.get((self.phase, event), self.phase)

    # ----------------------------------------------------------------------------------------------------------- time

    def next_deadline(self) -> float:
        """When to `tick`, unless something is sent or received before."""
        self._deadline = min(self.sent_at + self._limits.keepalive_s, self.heard_at + self.silence_s)
        return self._deadline

    def tick(self, now: float, *, has_input: Callable[[], bool], backlog_bytes: int) -> Ping | GiveUp | None:
        """What is due. `has_input` tells whether something has come that was not received yet."""
        limits = self._limits
        if now >= self.heard_at + self.silence_s:
            # When this process was stopped or busy, it is late itself: what came meanwhile waits to be read. And if
            # nothing came, the peer may have been stopped likewise, as all processes of a job can be.
            if not has_input() and now < self._deadline + limits.keepalive_s:
                return GiveUp(f"{self._remote} was silent for {self.silence_s:g} s")
            self.heard_at = now
        if backlog_bytes > limits.max_backlog_bytes and now >= self.bearable_at + limits.silence_s:
            return GiveUp(f"{self._remote} has stopped reading: {backlog_bytes} bytes are waiting for it")
        if now >= self.sent_at + limits.keepalive_s:
            self.sent_at = now
            return PING
        return None
