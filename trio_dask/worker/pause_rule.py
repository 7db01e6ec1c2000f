"""When a worker stops taking tasks for want of memory, and when it takes some again."""

from __future__ import annotations

from math import inf

__all__ = ["PauseRule"]


class PauseRule:
    """Paused above `above_bytes`, open again below `below_bytes`; in between it stays as it was.

    A paused worker may be *stuck*: nothing runs, nothing can be spilled or released, and memory does not come down.
    What fills it is then either needed by tasks that nobody else can run, or it has leaked. To wait for it would be to
    wait for ever, so after `patience_s` the worker takes what it cannot change for what is normal: it opens, and pauses
    again when it uses `step_bytes` more than that. So tasks that need little memory get done, perhaps one by one; if
    they need much, the nanny ends the process at its own limit, and the tasks hear why.
    """

    def __init__(self, above_bytes: float, below_bytes: float, *, step_bytes: float, patience_s: float) -> None:
        self.paused = False
        self._above = self._usual_above = above_bytes
        self._below = self._usual_below = below_bytes
        self._step = step_bytes
        self._patience_s = patience_s
        self._stuck_since = inf

    def judge(self, now: float, used_bytes: float, *, stuck: bool) -> bool:
        """Whether to be paused, now that the process uses so much."""
        if used_bytes < self._usual_below:
            self._above, self._below = self._usual_above, self._usual_below
        if not self.paused:
            self.paused = used_bytes > self._above
            self._stuck_since = inf
        elif used_bytes < self._below:
            self.paused = False
        elif not stuck:
            self._stuck_since = inf
        else:
            self._stuck_since = min(self._stuck_since, now)
            if now >= self._stuck_since + self._patience_s:
                self.paused = False
                self._above, self._below = used_bytes + self._step, used_bytes
        return self.paused
