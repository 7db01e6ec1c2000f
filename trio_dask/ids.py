"""What each name in a cluster names, and how it is minted.

| name | names | minted by |
|---|---|---|
| `Key` | a task and its result, for as long as anybody wants it | the client (deterministic for pure calls) |
| `RunId` | one assignment of a task to a worker; every outcome quotes it | the scheduler, counting up |
| `PeerId` | one session of one peer with the scheduler | the scheduler, counting up |
| `Incarnation` | one registration of a process; a process that returns has a new one | the process itself, at random |
| `Digest` | a blob, by its content | the process that made the blob |

An outcome that quotes a `RunId` that is no longer current is stale: it is dropped and noted, never an error.
"""

from __future__ import annotations

import secrets
from typing import Final, NewType, TypeAlias

Key = str
RunId = NewType("RunId", int)
PeerId = NewType("PeerId", int)
Incarnation = NewType("Incarnation", str)
Digest = bytes
WorkerName: TypeAlias = str | int
"""A worker's name as users write and read it; inside, all names are texts."""

LONGEST_NUMBER: Final = 18
"""Digits of a name that may be an integer: longer ones are texts that happen to have no letters."""


def new_incarnation() -> Incarnation:
    """A fresh random incarnation: 96 bits, written in hexadecimal."""
    return Incarnation(secrets.token_hex(12))


def places_of(address: str) -> tuple[str, str, str]:
    """What users may call the place of this address: the whole, without its scheme, and the host alone."""
    place = address.rpartition("://")[2]
    return address, place, place.rpartition(":")[0].strip("[]") or place


def given_name(name: str) -> WorkerName:
    """A worker's name as users read it: an integer if it is written as one, as in distributed."""
    return int(name) if len(name) <= LONGEST_NUMBER and name.isdecimal() and str(int(name)) == name else name


def actor_state(key: Key) -> Key:
    """The name under which the pickled object of an actor that moves can be fetched; no key of a user is like it."""
    return f"\0actor\0{key}"


def name_of(key: Key) -> str:
    """The name of a task's function, from its key: "add" of "add-b07a...", and of a block, "('add-b07a...', 0, 1)"."""
    name = key[2:].partition("'")[0] if key.startswith("('") else key
    return name.rpartition("-")[0] or name
