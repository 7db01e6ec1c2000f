"""Why tasks of a client wait for a worker that is not there, in the words of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trio_dask.client.core.key_state import KeyState
from trio_dask.ids import Key
from trio_dask.protocol.messages import Stuck

MOST_REASONS: Final = 3


class StuckReasons:
    """What the scheduler said last: each reason with the keys that it holds up; None means all keys."""

    def __init__(self) -> None:
        self._reasons: tuple[tuple[str, frozenset[Key] | None], ...] = ()
        self.aloud = ""
        """What the user has not been told yet."""

    def update(self, message: Stuck) -> None:
        """The scheduler has sent all reasons anew."""
        self._reasons = tuple((reason, None if keys is None else frozenset(keys)) for reason, keys in message.reasons)
        if message.aloud:
            self.aloud = message.text

    def forget(self) -> None:
        """The scheduler is lost."""
        self._reasons = ()

    def take_aloud(self) -> str:
        """What the user has not been told yet, once; empty if nothing."""
        aloud, self.aloud = self.aloud, ""
        return aloud

    def why(self, states: Iterable[KeyState]) -> str:
        """Why some of these wait for a worker; empty if none does as far as is known. From any thread."""
        pending = {state.key for state in states if state.status == "pending"}
        parts: list[str] = []
        for reason, keys in self._reasons:
            count = len(pending if keys is None else pending & keys)
            if count:
                parts.append(f"{count} {'tasks wait' if count > 1 else 'task waits'}: {reason}")
        if len(parts) > MOST_REASONS:
            parts[MOST_REASONS:] = ["and so do others, for other reasons"]
        return "; ".join(parts)
