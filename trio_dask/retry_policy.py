"""When to try again to reach a scheduler, and when to give up: one policy for workers, nannies and clients.

It reads no clock and draws no random number: the time is an argument, and `uniform(low, high)` draws the jitter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from trio_dask.errors import NoScheduler, ProvenRefusal, RefusedError

SOUND_SESSION_S: Final = 10.0
"""After two shorter sessions in a row, pauses keep growing."""

UNPROVEN_REFUSAL_S: Final = 3600.0
"""How long anything at the scheduler's port has to refuse us without a proof until we believe it.

A scheduler of another release or with another key cannot prove itself, so this is how long a worker without a death
timeout outlives such a change. It is also how long a stranger has to hold the port to end that worker.
"""


class Backoff(NamedTuple):
    """Pauses that double from `first_s` to `longest_s`, each multiplied by a random factor within `spread`.

    The factor keeps a thousand processes that lost one scheduler from calling the next one all at once.
    """

    first_s: float
    longest_s: float
    spread: tuple[float, float]


WORKERS: Final = Backoff(first_s=0.1, longest_s=3.0, spread=(0.5, 1.0))
CLIENTS: Final = Backoff(first_s=0.02, longest_s=1.0, spread=(0.5, 1.5))


class RetryPolicy:
    """One process that looks for its scheduler, from its start or from a lost session on.

    Args:
      give_up_s: how long it may be without a scheduler.
      was_connected: it has had a session before.
      refusal_may_pass_s: how long after a lost session a refusal may only mean that the scheduler has not noticed yet.
      hopeless: causes of a `NoScheduler` that no waiting mends.
    """

    def __init__(
        self,
        backoff: Backoff,
        uniform: Callable[[float, float], float],
        now: float,
        *,
        give_up_s: float,
        was_connected: bool = False,
        refusal_may_pass_s: float = 0.0,
        hopeless: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.away_since = now
        """When the last contact with a scheduler ended; infinite during one."""
        self.was_connected = was_connected
        self._backoff = backoff
        self._uniform = uniform
        self._give_up_s = give_up_s
        self._refusal_may_pass_s = refusal_may_pass_s
        self._hopeless = hopeless
        self._pause_s = backoff.first_s
        self._began_at = now
        self._was_short = False
        self._refused_since = math.inf
        """When the first refusal without a proof came since the last session."""

    @property
    def deadline(self) -> float:
        """When to give up; infinite while there is a session."""
        return self.away_since + self._give_up_s

    def connected(self, now: float) -> None:
        """A session has begun."""
        self.was_connected = True
        self.away_since = self._refused_since = math.inf
        self._began_at = now

    def lost_contact(self, now: float, silent_s: float = 0.0) -> None:
        """The scheduler was heard last `silent_s` ago."""
        self.away_since = now - silent_s

    def session_lost(self, now: float) -> bool:
        """A session ended unexpectedly. True if pauses begin anew: it was long enough, or the first short one."""
        is_short = now < self._began_at + SOUND_SESSION_S
        begins_anew = not (is_short and self._was_short)
        self._was_short = is_short
        if begins_anew:
            self.begin_anew()
        return begins_anew

    def begin_anew(self) -> None:
        """The next pause is the first one again."""
        self._pause_s = self._backoff.first_s

    def next_pause_s(self) -> float:
        """How long to wait before the next try; the pause after it is twice as long."""
        low, high = self._backoff.spread
        pause_s = self._uniform(low * self._pause_s, high * self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._backoff.longest_s)
        return pause_s

    def is_final(self, error: Exception, now: float) -> bool:
        """Whether trying again is useless after this error, which has come now.

        What worked once may fail for a while: a file that is being replaced, a network that is down, or another program
        at the scheduler's port, which must not be able to end us soon.
        """
        if not self.was_connected:
            return not isinstance(error, NoScheduler) or isinstance(error.__cause__, self._hopeless)
        if isinstance(error, ProvenRefusal):
            return now >= self.away_since + self._refusal_may_pass_s
        if isinstance(error, RefusedError):
            self._refused_since = min(self._refused_since, now)
            return now >= self._refused_since + UNPROVEN_REFUSAL_S
        return False
