"""The messages of the data plane: values between workers, and between workers and clients. See `messages`."""

from __future__ import annotations

from typing import NamedTuple

from trio_dask.ids import Key

__all__ = ["Absent", "Call", "CallResult", "Fetch", "MemoryOffered", "MemoryRead", "Put", "PutDone", "Value"]


class Fetch(NamedTuple):
    """Send me these keys; answered for each, in this order, by `Value` or `Absent`."""

    keys: tuple[Key, ...]


class Value(NamedTuple):
    """A pickled value follows as raw bytes: `sizes[0]` of pickle, then each out-of-band buffer."""

    key: Key
    sizes: tuple[int, ...]


class Absent(NamedTuple):
    """The key is not here, or (`text` not empty) could not be sent, for the reason given."""

    key: Key
    text: str


class Put(NamedTuple):
    """Keep this value, which follows as raw bytes like that of `Value`; answered by `PutDone`."""

    key: Key
    client: str
    type_name: str
    sizes: tuple[int, ...]


class PutDone(NamedTuple):
    """The value is stored."""

    key: Key
    nbytes: int


class Call(NamedTuple):
    """Call a function in this process, outside the task slots (`client.run`); it follows as raw bytes, pickled."""

    sizes: tuple[int, ...]


class CallResult(NamedTuple):
    """What the function of `Call` returned (`ok`) or raised; it follows as raw bytes, pickled."""

    ok: bool
    text: str
    sizes: tuple[int, ...]


class MemoryOffered(NamedTuple):
    """The raw bytes of the message after this one lie in the memory of process `pid`, each buffer at its place.

    The process has the bytes of `liveness_token` at `token_address` as long as they are valid. The answer is a
    `MemoryRead`.
    """

    pid: int
    token_address: int
    liveness_token: bytes
    places: tuple[int, ...]


class MemoryRead(NamedTuple):
    """The offered memory has been read, or (not `ok`) could not be: then the raw bytes follow after all."""

    ok: bool
