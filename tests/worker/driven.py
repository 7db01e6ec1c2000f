"""A worker core alone, in a session. Its tables are checked after every event; messages pass through the real codec."""

from __future__ import annotations

from typing import cast

from tests.worker.invariants import check
from trio_dask.ids import RunId
from trio_dask.protocol import codec
from trio_dask.protocol.messages import Blob, FromWorker, Run, ToWorker
from trio_dask.worker.core.effects import Request, StartFetch
from trio_dask.worker.core.fetch_plan import FetchLimits
from trio_dask.worker.core.worker import WorkerCore

FUNCTION = b"f" * 16
HERE, THERE, ELSEWHERE = "tcp://here:1", "tcp://there:1", "tcp://elsewhere:1"


def run(
    number: int, key: str, *dependencies: tuple[str, tuple[str, ...] | bytes], priority: int = 0, **extra: object
) -> Run:
    return Run(RunId(number), key, FUNCTION, b"", dependencies, priority, extra)


class Driven:
    """A core in a session."""

    def __init__(self, slots: int = 1, **limits: int) -> None:
        self.core = WorkerCore(slots, limits=FetchLimits(**limits), grace_s=1.0)
        self.core.session_began(HERE)
        self.now = 0.0
        self.tell(Blob(FUNCTION, 1, b"f"))

    def tell(self, *messages: ToWorker) -> None:
        for message in codec.decode(codec.encode(messages), codec.TO_WORKER):
            self.core.handle(cast("ToWorker", message), self.now)
            check(self.core)

    def take(self, key: str) -> Run:
        """A slot takes the best run, which is to be this one."""
        taken = self.core.ready.take()
        assert taken is not None
        assert taken.key == key
        check(self.core)
        return taken

    def finish(self, taken: Run, nbytes: int = 10) -> bool:
        kept = self.core.finished(taken, nbytes, "int", None, 0.5)
        check(self.core)
        return kept

    def run_to_end(self, key: str) -> None:
        assert self.finish(self.take(key))

    def said(self) -> list[FromWorker]:
        """What it has to say, as the scheduler reads it."""
        messages = codec.decode(codec.encode(self.core.take_effects().messages), codec.FROM_WORKER)
        check(self.core)
        return cast("list[FromWorker]", messages)

    def wanted(self) -> list[Request]:
        return self.core.take_effects().requests

    def fetch(self) -> StartFetch:
        """The one thing that it wants, a fetch."""
        (start,) = self.wanted()
        assert isinstance(start, StartFetch)
        return start

    def lose(self) -> None:
        """The link is cut; what was said may not have arrived."""
        self.core.take_effects()
        self.core.session_lost(self.now)
        check(self.core)

    def come_back(self) -> list[FromWorker]:
        """The scheduler takes the worker back; its first words."""
        self.core.session_began(HERE, returned=True)
        check(self.core)
        return self.said()
