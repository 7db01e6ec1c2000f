"""Numbers on which both ends of a connection rely; what only one end needs stands where that end uses it."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2
"""The version of everything that follows the hello; peers with different ones refuse each other."""

MAX_CONTROL_FRAME: Final = 64 * 2**20
"""The longest payload of a frame between scheduler, workers and clients; a receiver refuses a longer one."""

MAX_ITEMS: Final = 2**20
"""The longest array or map inside a message. The sender cuts a message that is one longer list into several."""

MAX_DEPTH: Final = 32
"""The greatest nesting of plain values, in messages and in the details of a hello."""

MAX_KEY_LENGTH: Final = 2**12
"""The longest key, in characters. A client refuses a longer one, and names of workers and resources likewise."""

MAX_KEYS_PER_FETCH: Final = 2**9
"""The most keys that are asked for in one `Fetch`."""

MAX_BUFFERS: Final = 2**16
"""The most buffers that follow a message on the data plane; a value with more has the rest in its pickle."""

MAX_DATA_MESSAGE: Final = 2**20 + 4 * MAX_KEY_LENGTH * MAX_KEYS_PER_FETCH
"""The longest message between two workers, or a client and a worker, in bytes and without the values themselves: the
longest `Fetch`, since no character takes more than 4 bytes, or the sizes of MAX_BUFFERS buffers."""

MAX_INVENTORY_BYTES: Final = MAX_CONTROL_FRAME * 3 // 4
"""The longest `Inventory` of a worker that comes back: it is one message, and has to fit into a frame."""

MAX_NANNY_CALL_BYTES: Final = MAX_CONTROL_FRAME * 3 // 4
"""The longest pickle of a function that a nanny is to call, and of its answer: each is one message."""

DIGEST_BYTES: Final = 16
"""The length of a digest; one end writes digests into calls, the other reads them from there."""

PRIORITY_BITS: Final = 48
"""Scheduler and workers order runs by one number: the user's priority stands above this many bits, the order of
submission below them."""

SMALL_VALUE_BYTES: Final = 256
"""A result of at most this size goes with the runs that need it, by way of the scheduler; larger ones are fetched."""

MAX_SECEDED: Final = 5000
"""A worker lets at most this many tasks secede, since each is a thread; the scheduler believes no more slots than that
beyond the worker's threads."""

LONGEST_GRACE_S: Final = 3600.0
"""A client asks the scheduler for at most this grace, and the scheduler grants no more."""

TOO_LONG: Final = "too long"
"""The first part of what a `Reply` says in place of an answer that no message can carry; the second is a sentence."""
