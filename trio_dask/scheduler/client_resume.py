"""Which session a client goes on with: a new one, or the one that it had before its link was cut.

Between the answer to a hello and the session it opens, everything may happen: the client gives that link up and calls
again, its time is over, its first link turns out to be alive. The last hello counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.core import SchedulerCore

__all__ = ["Returns"]

MOST_MESSAGES: Final = 2**62


class Returns:
    """The clients that were greeted and told that they can go on."""

    def __init__(self, core: SchedulerCore, scheduler: Incarnation) -> None:
        self._core = core
        self._scheduler = scheduler
        self._promised: dict[PeerId, Hello] = {}

    def greet(self, hello: Hello, now: float) -> tuple[dict[str, Any], PeerId | None]:
        """What to tell a client that calls, and the peer whose link, if it still has one, is over by that.

        Raises:
          ProtocolError: something in the hello cannot be.
        """
        previous, received = self._previous(hello)
        found = self._core.expect_client(previous, received, now) if previous else None
        if found is not None:
            peer, handled = found
            clients = self._core.state.clients
            self._promised = {other: other_hello for other, other_hello in self._promised.items() if other in clients}
            self._promised[peer] = hello
            return {"returned": True, "received": handled}, peer
        # It begins anew, so whatever stands here under its name is over.
        former = self._core.client_peer(hello.incarnation)
        if former is not None:
            self._core.remove_peer(former, "it has begun another session", now, expected=True)
        return {"returned": False, "received": 0}, former

    def enter(self, hello: Hello, mint: Callable[[], PeerId], now: float) -> PeerId | None:
        """The peer of the session that this hello opens; None if it opens none, and its client has to call again.

        Raises:
          ProtocolError: something in the hello cannot be.
        """
        grace_s = _grace_s(hello)
        known = self._core.client_peer(hello.incarnation)
        if known is not None and self._promised.get(known) is hello:
            del self._promised[known]
            return known if self._core.client_back(known, self._previous(hello)[1], now) else None
        if known is not None or any(promised is hello for promised in self._promised.values()):
            return None
        peer = mint()
        self._core.add_client(peer, hello.incarnation, hello.name, now, grace_s=grace_s)
        return peer

    def _previous(self, hello: Hello) -> tuple[Incarnation, int]:
        """The session of this scheduler in which a client was before, and what it has handled of it."""
        details = hello.details
        received = details.get("received", 0)
        if type(received) is not int or not 0 <= received <= MOST_MESSAGES:
            raise ProtocolError("the number of messages that a client has received is a whole number")
        # A client keeps its incarnation for life: what it names as its previous session can only be its own.
        is_own = details.get("scheduler") == self._scheduler and details.get("previous") == hello.incarnation
        return hello.incarnation if is_own else Incarnation(""), received


def _grace_s(hello: Hello) -> float:
    grace_s = hello.details.get("grace_s", 0)
    if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s < math.inf:
        raise ProtocolError("the grace of a client is a number of seconds")
    return float(grace_s)
