"""One end of a connection, without a socket or a clock: what it says and hears, what is due, and how it ends.

Whoever moves the bytes tells it what has come and what time it is, sends what it gives, and asks when to `tick` next.

A connection opens with a hello (`opening`). Then follow messages, which is `Link`, or values, which is
`data_link.DataLink`. How a `Link` ends is one of five phases:

- OPEN: neither side has said goodbye.
- LEAVING: this side has. What the peer still sends is received, and the end of the stream is a quiet one.
- PEER_LEFT: the peer has said goodbye. Nothing that it sends after that counts.
- OVER: the stream ended, and one of the two had announced it.
- LOST: the stream ended unannounced, or this side has given the peer up; `loss` tells why.

A goodbye of this side after a loss reaches nobody, and makes the end quiet. All else changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from itertools import islice
from typing import Any, Final, NamedTuple

from trio_dask.errors import SerializationError
from trio_dask.protocol.codec import Allowed, OwnFrame, Row, Share, decode, encode_rows, rows_header
from trio_dask.protocol.frames import FrameDecoder, Kind, frame_header
from trio_dask.protocol.messages import Blob, Goodbye, Message


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

FRAME_BYTES: Final = 256 * 2**10
"""Frames end at this size, unless one row alone is larger: the receiver handles a frame in one go."""


# ----------------------------------------------------------------------------------------------------------- messages


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


class Link:
    """One end of a connection for messages. `remote` names the peer; `extra` reads frames of the other kinds.

    Several threads may send, one at a time, while another receives.
    """

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

        self.can_send = True
        self.sent_at = now
        """When a frame of this side last began or moved on; the shell sets it when bytes have gone out."""
        self.unsent: memoryview | None = None
        """The rest of the frame under way, which the shell shortens; no other frame begins before it is empty."""
        self._rows: list[Row] = []
        self._rows_size = 0
        self._has_own_frame = False  # one of the rows may be an `OwnFrame` that is smaller than a frame of records
        self._share: Share | None = None
        self._bearable_at = now  # when no more waited here than may

    # ------------------------------------------------------------------------------------------------------ sending

    def share_blobs(self, share: Share) -> None:
        """From now on, of each blob that `share` can place, send the place instead."""

        def share_and_note(blob: Blob) -> bytes | None:
            payload = share(blob)
            if payload:
                self._has_own_frame = True
            return payload

        self._share = share_and_note

    def send(self, batch: Sequence[Message], now: float) -> None:
        """Put messages behind those that wait, for `next_frame`; they are dropped when nothing can be sent any more.

        Raises `SerializationError` for messages that cannot be sent at all; the others wait as they should.
        """
        if not self.can_send:
            return
        try:
            rows = encode_rows(batch, self._share)
        except SerializationError:
            for message in batch:
                with suppress(SerializationError):
                    self._add(encode_rows((message,), self._share), now)
            raise
        self._add(rows, now)

    def send_own(self, kind: Kind, payload: bytes, now: float) -> None:
        """The same for a frame that holds no messages."""
        if self.can_send:
            self._has_own_frame = True
            self._add([OwnFrame(kind, payload)], now)

    def _add(self, rows: list[Row], now: float) -> None:
        if self._rows_size + len(self.unsent or b"") <= self._limits.max_backlog_bytes:
            self._bearable_at = now
        self._rows += rows
        self._rows_size += sum(map(len, rows))

    @property
    def backlog_bytes(self) -> int:
        """How much waits to be sent."""
        return self._rows_size + len(self.unsent or b"")

    def next_frame(self, now: float) -> bytes:
        """The frame to begin now, of the rows that have waited longest; empty if there is none, or one is under way.

        Rows gather until a frame is wanted, so that frames are as large as the peer is slow.
        """
        if self.unsent or not self._rows:
            return b""
        self.sent_at = now
        parts: list[Any]
        if (size := self._rows_size) <= FRAME_BYTES and not self._has_own_frame:
            parts, self._rows, self._rows_size = self._rows, [], 0
        else:
            rows = self._first_rows()
            if isinstance(own := rows[0], OwnFrame):
                return b"".join((frame_header(own.kind, len(own)), *own.parts))
            parts = [*rows]
            size = sum(map(len, parts))
        header = rows_header(len(parts))
        return b"".join((frame_header(Kind.RECORDS, len(header) + size), header, *parts))

    def _first_rows(self) -> list[Row]:
        """As many as make a frame."""
        size = count = 0
        for row in self._rows:
            own = isinstance(row, OwnFrame)
            if count and own:
                break
            size += len(row)
            count += 1
            if own or size >= FRAME_BYTES:
                break
        rows = list(islice(self._rows, count))
        del self._rows[:count]
        self._rows_size -= size
        self._has_own_frame = bool(self._rows)  # perhaps
        return rows

    def stop_sending(self) -> None:
        """Drop what waits, and all that is sent from now on."""
        self.can_send = False
        self._rows.clear()
        self._rows_size = 0
        self.unsent = None

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

    # ------------------------------------------------------------------------------------------------------- ending

    def say_goodbye(self, reason: str, now: float) -> None:
        """This side leaves, once all that waits is sent."""
        self._step(Event.SAY_GOODBYE)
        self.send((Goodbye(reason),), now)

    def give_up(self, reason: str) -> None:
        """This side leaves without a word, unless the end was announced; the first reason counts."""
        if self.phase is Phase.OPEN:
            self.loss = reason
        self._step(Event.GIVE_UP)
        self.stop_sending()

    def stream_ends(self, how: str) -> bool:
        """Nothing more can be received. False if nobody announced that: it is lost then, and `loss` says why."""
        if self.phase is Phase.OPEN:
            self.loss = how
        self._step(Event.STREAM_ENDS)
        return self.phase is not Phase.LOST

    def _step(self, event: Event) -> None:
        self.phase = STEPS.get((self.phase, event), self.phase)

    # --------------------------------------------------------------------------------------------------------- time

    def next_deadline(self) -> float:
        """When to `tick`, unless something is sent or received before."""
        self._deadline = min(self.sent_at + self._limits.keepalive_s, self.heard_at + self.silence_s)
        return self._deadline

    def tick(self, now: float, *, has_input: Callable[[], bool]) -> str:
        """Do what is due: make a `PING`, or tell why to give the peer up, since it is dead or does not read; else "".

        `has_input` tells whether something has come that was not received yet.
        """
        limits = self._limits
        if now >= self.heard_at + self.silence_s:
            # When this process was stopped or busy, it is late itself: what came meanwhile waits to be read. And if
            # nothing came, the peer may have been stopped likewise, as all processes of a job can be.
            if not has_input() and now < self._deadline + limits.keepalive_s:
                return f"{self._remote} was silent for {self.silence_s:g} s"
            self.heard_at = now
        if self.backlog_bytes > limits.max_backlog_bytes and now >= self._bearable_at + limits.silence_s:
            return f"{self._remote} has stopped reading: {self.backlog_bytes} bytes are waiting for it"
        if now >= self.sent_at + limits.keepalive_s:
            self.sent_at = now
            if not self.backlog_bytes:
                self.send_own(Kind.PING, b"", now)
        return ""
