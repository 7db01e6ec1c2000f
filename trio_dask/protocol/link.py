"""What two peers may expect of each other on a connection."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["DEFAULT_LIMITS", "LinkLimits"]


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
