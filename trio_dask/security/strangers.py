"""Which strangers are heard, which have to go, and when.

A *stranger* is a peer that has connected and has not shown yet that it belongs here. It waits, silent at first, until
it has said something and there is a place; then it is *heard*: a task exchanges the hello with it. Friends look like
anybody else until then, so these rules see to it that nobody can keep them out by being many:

- Every address counts for itself. Where there are too many, the address with the most gives way.
- If too many wait, the silent one goes that came first; if none is silent, the one that has spoken first.
- Addresses are heard in turn, and of one address the stranger that has spoken last. If there are more than can be
  heard, the others have waited for long already, and may have given up.
- If all places are taken, a stranger is heard instead of one that has made no step for `TURN_S`. A stranger whose
  bytes nobody has read yet makes steps: it waits for us.
- Nobody waits for longer than its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

TURN_S: Final = 1.0
"""How long a stranger keeps its place without a step, if others want it."""

_T = TypeVar("_T")


class Turn(NamedTuple, Generic[_T]):
    """Whom to hear now. It came at `since`; `gives_way` loses its place to it."""

    stranger: _T
    since: float
    gives_way: _T | None


class Strangers(Generic[_T]):
    """All strangers of one listener: at most `most_waiting` wait, for `limit_s`, and `most_heard` are heard."""

    def __init__(self, most_waiting: int, most_heard: int, limit_s: float) -> None:
        self._most_waiting = most_waiting
        self._most_heard = most_heard
        self._limit_s = limit_s
        self._came: dict[_T, float] = {}  # those that wait, in this order
        self._address: dict[_T, str] = {}  # all
        self._silent: dict[str, dict[_T, None]] = {}
        self._spoken: dict[str, dict[_T, None]] = {}  # the addresses in the order of their turns
        self._waiting = _Counts()
        self._steps: dict[str, dict[_T, float]] = {}  # when those that are heard made the last step, in this order
        self._heard = _Counts()

    def arrive(self, stranger: _T, address: str, now: float) -> _T | None:
        """A stranger has connected. Gives another one that has to go, if too many wait."""
        gives_way = self._longest_waiting() if len(self._came) >= self._most_waiting else None
        if gives_way is not None:
            self.leave(gives_way)
        self._came[stranger] = now
        self._address[stranger] = address
        self._silent.setdefault(address, {})[stranger] = None
        self._waiting.add(address)
        return gives_way

    def speak(self, stranger: _T) -> None:
        """A silent stranger has said something."""
        address = self._address[stranger]
        _take(self._silent, address, stranger)
        self._spoken.setdefault(address, {})[stranger] = None

    def hear(self, now: float, is_unread: Callable[[_T], bool]) -> Turn[_T] | None:
        """The next stranger to be heard, if there is one and a place for it."""
        if not self._spoken:
            return None
        gives_way = None
        if self._heard.total >= self._most_heard:
            gives_way = self._idle(now, is_unread)
            if gives_way is None:
                return None
            self.leave(gives_way)
        address = next(iter(self._spoken))
        spoken = self._spoken.pop(address)
        stranger, _ = spoken.popitem()
        if spoken:
            self._spoken[address] = spoken
        self._waiting.remove(address)
        self._steps.setdefault(address, {})[stranger] = now
        self._heard.add(address)
        return Turn(stranger, self._came.pop(stranger), gives_way)

    def step(self, stranger: _T, now: float) -> None:
        """A stranger that is heard has said what was asked of it."""
        steps = self._steps.get(self._address.get(stranger, ""), {})
        if steps.pop(stranger, None) is not None:
            steps[stranger] = now

    def leave(self, stranger: _T) -> None:
        """It is none any more, or is gone. Does nothing if that is known."""
        address = self._address.pop(stranger, None)
        if address is None:
            return
        if self._came.pop(stranger, None) is None:
            _take(self._steps, address, stranger)
            self._heard.remove(address)
            return
        if not _take(self._silent, address, stranger):
            _take(self._spoken, address, stranger)
        self._waiting.remove(address)

    def make_room(self, now: float, is_unread: Callable[[_T], bool]) -> _T | None:
        """Descriptors are short: the stranger that has to go, if there is one that may be sent away."""
        gives_way = self._longest_waiting() if self._came else self._idle(now, is_unread)
        if gives_way is not None:
            self.leave(gives_way)
        return gives_way

    def due(self, now: float) -> list[_T]:
        """Those that have waited for too long; they are gone."""
        due: list[_T] = []
        while self._came and now >= next(iter(self._came.values())) + self._limit_s:
            due.append(stranger := next(iter(self._came)))
            self.leave(stranger)
        return due

    def waiting(self) -> list[_T]:
        """All that wait."""
        return [*self._came]

    def next_deadline(self) -> float:
        """When to call `due` and `hear` again, unless something happens before."""
        deadline = next(iter(self._came.values()), math.inf) + self._limit_s
        if not self._spoken:
            return deadline
        if self._heard.total < self._most_heard:
            return -math.inf
        return min(deadline, next(iter(self._steps[self._heard.largest()].values())) + TURN_S)

    def _longest_waiting(self) -> _T:
        address = self._waiting.largest()
        return next(iter(self._silent.get(address) or self._spoken[address]))

    def _idle(self, now: float, is_unread: Callable[[_T], bool]) -> _T | None:
        if not self._heard.total:
            return None
        steps = self._steps[self._heard.largest()]
        while now >= next(iter(steps.values())) + TURN_S:
            stranger = next(iter(steps))
            if not is_unread(stranger):
                return stranger
            self.step(stranger, now)
        return None


class _Counts:
    """How many there are of each address."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[str, int] = {}
        self._addresses: dict[int, dict[str, None]] = {}  # by their count: few counts differ, however many addresses

    def add(self, address: str) -> None:
        self._move(address, 1)

    def remove(self, address: str) -> None:
        self._move(address, -1)

    def largest(self) -> str:
        """The address of which there are the most."""
        return next(iter(self._addresses[max(self._addresses)]))

    def _move(self, address: str, difference: int) -> None:
        count = self._counts.pop(address, 0)
        _take(self._addresses, count, address)
        count += difference
        if count:
            self._counts[address] = count
            self._addresses.setdefault(count, {})[address] = None
        self.total += difference


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _take(groups: dict[_Key, dict[_T, _Value]], key: _Key, member: _T) -> bool:
    """Take a member out of its group, and an empty group away. False if it is not there."""
    group = groups.get(key)
    if group is None or member not in group:
        return False
    del group[member]
    if not group:
        del groups[key]
    return True
