"""What a client knows of one key.

| status | what is true |
|---|---|
| pending | no answer yet, or its result is being computed again |
| finished | the result exists: `value` is here, or `holders` have it, or neither (the copy here has made room) |
| error | `failure` is a `KeyFailed` or `NotSent` |
| cancelled, lost | `failure` is a `Dropped` or `Ended`; terminal: a new submission makes a new state |

Futures hold their `KeyState` directly, so asking a future for its status costs no look-up and no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from trio_dask.ids import Key
from trio_dask.protocol.messages import Dropped, KeyFailed

Status: TypeAlias = Literal["pending", "finished", "error", "cancelled", "lost"]

TERMINAL: Final = frozenset[str](("cancelled", "lost"))

Frames: TypeAlias = Sequence[bytes | bytearray | memoryview]
"""A pickled value: the pickle, then its out-of-band buffers."""


class Ended(NamedTuple):
    """Why the session ended: `lost` if the scheduler was lost, else the client was closed."""

    lost: bool
    text: str


class NotSent(NamedTuple):
    """The task never reached the scheduler: what was raised while its graph was made or pickled."""

    error: BaseException


class KeyState:
    """One key, as this client sees it.

    `refs` counts futures. `waiters` are called once, when the status stops being pending; `readers` once with the
    value, or when it is certain that there will be none.
    """

    __slots__ = (
        "__weakref__",
        "failure",
        "fence",
        "fetching",
        "holders",
        "key",
        "nbytes",
        "readers",
        "refs",
        "status",
        "token",
        "tries",
        "type_name",
        "value",
        "waiters",
    )

    def __init__(self, key: Key, token: bytes = b"") -> None:
        self.key = key
        self.token = token
        """Fingerprint of the call, for keys that the user chose."""
        self.status: Status = "pending"
        self.refs = 0
        self.waiters: list[Waiter] | None = None
        self.readers: list[Reader] | None = None
        self.value: bytes | None = None
        self.holders: tuple[str, ...] = ()
        self.nbytes = 0
        self.type_name = ""
        self.failure: KeyFailed | Dropped | Ended | NotSent | None = None
        self.fence = 0
        """While not 0: what arrives is about an earlier task of this key, until the reply with this number."""
        self.fetching = ""
        """The address it is fetched from, or is queued for."""
        self.tries = 0
        """Fetches that failed since the first reader came."""

    def __repr__(self) -> str:
        return f"<KeyState {self.key} {self.status}>"


Waiter: TypeAlias = Callable[[KeyState], None]
Reader: TypeAlias = Callable[[KeyState, Frames | None, str], None]
"""Called once: with the frames, or with None if the key failed or, for the reason given, could not be fetched."""
