"""What was sent to the scheduler and may have to be sent again.

Both sides number their messages and keep what they have sent until the other acknowledges that it has handled it. On
the next connection each says how many it has handled, and gets the rest: both streams go on as if nothing had happened,
wherever they were cut. So nothing else in this folder knows of lost connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import Message, Received

ACK_EVERY: Final = 64
"""This many messages of the scheduler are acknowledged together."""

ACK_BYTES: Final = 2**16
"""A message that the scheduler keeps counts once more for each such piece."""


class ResendBuffer:
    """What the client sends in one session, over all its connections."""

    __slots__ = ("_before", "_kept", "ack_due_at")

    def __init__(self) -> None:
        self.ack_due_at = ACK_EVERY
        """From this number of received messages on, an acknowledgement is due."""
        self._before = 0
        self._kept: deque[Message] = deque()

    def sent(self, messages: Sequence[Message], received: int) -> Sequence[Message]:
        """Keep what is to be sent now. Returns it, followed by an acknowledgement of what came if one is due."""
        if received >= self.ack_due_at:
            self.ack_due_at = received + ACK_EVERY
            messages = (*messages, Received(received))
        if messages:
            self._kept += messages
        return messages

    def acknowledged(self, number: int) -> None:
        """The scheduler has handled this many messages.

        Raises `ProtocolError` if it was sent fewer.
        """
        kept = self._kept
        if number > self._before + len(kept):
            raise ProtocolError(f"the scheduler has handled {number} messages of {self._before + len(kept)}")
        while self._before < number:
            kept.popleft()
            self._before += 1

    def take_unacknowledged(self, number: int) -> list[Message]:
        """The connection was lost, and the scheduler has handled this many messages: the rest, to be sent again.

        Raises `ProtocolError` if that is impossible.
        """
        if number < self._before:
            raise ProtocolError(f"the scheduler has handled {number} messages, and {self._before} before")
        self.acknowledged(number)
        rest = list(self._kept)
        self._kept.clear()
        return rest
