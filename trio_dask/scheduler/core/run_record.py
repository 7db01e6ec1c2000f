"""The last runs of tasks, kept while a client is there that has asked for them."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key, PeerId

KEPT: Final = 100_000
KEPT_BYTES: Final = 32 * 2**20
RUN_BYTES: Final = 120
"""What a run takes in an answer, beside its key."""


class Ran(NamedTuple):
    """A run has ended: when (seconds since 1970), where, for how long, with a result of how many bytes of which type.

    A run that failed has no type.
    """

    stop: float
    worker: str
    key: Key
    duration_s: float
    nbytes: int
    type_name: str
    span: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """About the bytes that it takes in an answer."""
        return len(self.key) + RUN_BYTES + sum(map(len, self.span))


class RunRecord:
    """Older runs are dropped; `clients` are those that have asked."""

    def __init__(self) -> None:
        self.clients: dict[PeerId, None] = {}
        self._runs: deque[Ran] = deque()
        self._nbytes = 0

    def note(self, ran: Ran) -> None:
        """Keep a run."""
        self._runs.append(ran)
        self._nbytes += ran.weight
        while len(self._runs) > KEPT or self._nbytes > KEPT_BYTES:
            self._nbytes -= self._runs.popleft().weight

    def between(self, arguments: tuple[str, ...]) -> list[Ran]:
        """The runs that ended after the first of two times and began before the second.

        Raises `ProtocolError` for what are no two times.
        """
        try:
            start, stop = map(float, arguments)
        except ValueError:
            raise ProtocolError(f"task_stream takes two times, not {arguments!r:.60}") from None
        return [ran for ran in self._runs if ran.stop >= start and ran.stop - ran.duration_s <= stop]
