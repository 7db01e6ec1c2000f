"""Leases of a limited number, given in the order of the requests: semaphores, and locks, which have one lease."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.coordination.requests import Answer, Effects, Request, unknown


class Lock:
    """One lease. A request for it names the lease; it is forgotten while it is free."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self.max_leases = 1
        self._holders: dict[Request, None] = {}
        self._waiting: dict[Request, None] = {}

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "acquire", (bool(waits),):
                self._acquire(request, waits=waits)
            case "count", ():
                self._effects.append(Answer(request, "done", len(self._holders)))
            case _:
                raise unknown(operation, arguments)

    def _acquire(self, request: Request, *, waits: bool) -> None:
        if len(self._holders) < self.max_leases:
            self._holders[request] = None
            self._effects.append(Answer(request, "done", True))
        elif waits:
            self._waiting[request] = None
        else:
            self._effects.append(Answer(request, "done", False))

    def _give_free_leases(self) -> None:
        while self._waiting and len(self._holders) < self.max_leases:
            request = next(iter(self._waiting))
            del self._waiting[request]
            self._holders[request] = None
            self._effects.append(Answer(request, "done", True))

    def end(self, request: Request) -> None:
        if request in self._waiting:
            del self._waiting[request]
            self._effects.append(Answer(request, "ended"))
        elif request in self._holders:
            del self._holders[request]
            self._give_free_leases()

    def taken(self, request: Request) -> None: ...

    def session_ended(self, peer: PeerId) -> None:
        for requests in (self._waiting, self._holders):
            for request in [request for request in requests if request.peer == peer]:
                del requests[request]
        self._give_free_leases()

    @property
    def is_unused(self) -> bool:
        return not self._holders and not self._waiting

    def requests(self) -> Iterator[Request]:
        yield from self._holders
        yield from self._waiting

    def check(self) -> None:
        count = len(self._holders)
        assert count <= self.max_leases, f"{count} leases of {self.max_leases} are held"
        assert not self._waiting or count == self.max_leases, "a request waits for a lease that is free"


class Semaphore(Lock):
    """Several leases: how many, its first request says. It keeps that number until it is closed."""

    def __init__(self, effects: Effects) -> None:
        super().__init__(effects)
        self.max_leases = 0
        """0 until the first request says it, and again once it is closed."""

    def handle(self, request: Request, operation: str, arguments: tuple[Any, ...]) -> None:
        match operation, arguments:
            case "acquire", (bool(waits), int(number)) if number > 0 and not isinstance(number, bool):
                if self.max_leases not in (0, number):
                    text = f"this semaphore has {self.max_leases} leases, not {number}"
                    self._effects.append(Answer(request, "refused", text))
                    return
                self.max_leases = number
                self._acquire(request, waits=waits)
            case "count", ():
                super().handle(request, operation, arguments)
            case "close", ():
                self._effects += [Answer(waiter, "closed", "this semaphore was closed") for waiter in self._waiting]
                self._effects.append(Answer(request, "done"))
                self._waiting.clear()
                self._holders.clear()
                self.max_leases = 0
            case _:
                raise unknown(operation, arguments)

    @property
    def is_unused(self) -> bool:
        return not self.max_leases
