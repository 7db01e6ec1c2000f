"""What was sent to the scheduler and may have to be sent again.

Both sides number their messages and keep what they have sent until the other confirms that it has handled it. After a
lost link each says how many it has handled, and gets the rest: both streams go on as if nothing had happened, wherever
they were cut. So nothing else in this room knows of lost links.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import Message, Received

__all__ = ["Stream"]

CONFIRM_EVERY: Final = 64
"""So many messages of the scheduler are confirmed together."""


class Stream:
    """What is sent in one session, in all its links."""

    __slots__ = ("_before", "_kept", "_told")

    def __init__(self) -> None:
        self._told = 0
        self._before = 0
        self._kept: deque[Message] = deque()

    def sent(self, messages: Sequence[Message], received: int) -> Sequence[Message]:
        """These are to be sent now. Returns them, behind them a confirmation of so many that came, if one is due."""
        if self.owes(received):
            self._told = received
            messages = (*messages, Received(received))
        if messages:
            self._kept += messages
        return messages

    def owes(self, received: int) -> bool:
        """Whether a confirmation of so many messages that came is due."""
        return received - self._told >= CONFIRM_EVERY

    def confirmed(self, number: int) -> None:
        """The scheduler has handled so many messages.

        Raises `ProtocolError` if it was not sent so many.
        """
        kept = self._kept
        if number > self._before + len(kept):
            raise ProtocolError(f"the scheduler has handled {number} messages of {self._before + len(kept)}")
        while self._before < number:
            kept.popleft()
            self._before += 1

    def take_back(self, number: int) -> list[Message]:
        """The link was lost, and the scheduler has handled so many messages: the rest, to be sent again.

        Raises `ProtocolError` if that cannot be.
        """
        if number < self._before:
            raise ProtocolError(f"the scheduler has handled {number} messages, and {self._before} before")
        self.confirmed(number)
        rest = list(self._kept)
        self._kept.clear()
        return rest
