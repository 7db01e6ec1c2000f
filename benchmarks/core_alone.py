"""The scheduler core without sockets or processes: what one task costs in it, and what one pending task weighs.

Its workers are "zero workers": they answer each run at once, in this process. What is timed is everything from the
first ``Submit`` to the last ``KeyReady``, the making of the workers' answers included; messages pass as records, not
through the codec. As in the service, each peer's batch of messages is followed by one placement and one flush.

``CoreUnderTest`` is the only place that knows how the core is made and spoken to.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from .model import OURS, Case, Context, Kind, Metric, Unsupported, absolute
from .programs import resident_bytes

KEYS_IN_SUBMIT = 1_000
FUNCTION = b"the pickled function of the benchmark"
CALL = b"\x80\x05\x95\x0a\x00\x00\x00\x00\x00\x00\x00K\x2a\x85\x94}\x94\x86\x94."
RESULT = b"\x80\x05K\x2b."


class CoreUnderTest:
    """The adapter: peers join, messages go in, messages come out."""

    def __init__(self) -> None:
        # Imported here: a run that leaves this case out, or measures only rivals, needs no trio_dask.
        self.messages: Any = importlib.import_module("trio_dask.protocol.messages")
        self.hello: Any = importlib.import_module("trio_dask.protocol.hello").Hello
        self.core: Any = importlib.import_module("trio_dask.scheduler.core").SchedulerCore()
        self.peers = 0

    def _join(self, role: str, **details: Any) -> int:
        self.peers += 1
        hello = self.hello(role=role, incarnation=f"{role}-{self.peers}", name=f"{role}-{self.peers}", details=details)
        self.core.greet(hello, time.monotonic())
        peer: int = self.core.begin_session(hello, time.monotonic()).peer
        return peer

    def join_client(self) -> int:
        return self._join("client")

    def join_worker(self) -> int:
        return self._join("worker", address=f"tcp://127.0.0.1:{self.peers + 1}", nthreads=1)

    def batch(self, peer: int, messages: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
        """What the service does with all messages that came from one peer at once; then what goes out to whom."""
        core, now = self.core, time.monotonic()
        handle = core.handle
        for message in messages:
            handle(peer, message, now)
        core.place(now)
        return iter(core.drain().items())

    def submits(self, tasks: int) -> Iterator[Any]:
        """The function, and then all tasks, each with a key and a call of its own."""
        digest = hashlib.blake2b(FUNCTION, digest_size=16).digest()
        yield self.messages.Blob(digest, len(FUNCTION), FUNCTION)
        for first in range(0, tasks, KEYS_IN_SUBMIT):
            numbers = range(first, min(first + KEYS_IN_SUBMIT, tasks))
            yield self.messages.Submit(
                function=digest,
                keys=tuple(f"increment-{number:032x}" for number in numbers),
                # A copy for each, as from the wire: shared bytes would weigh nothing.
                calls=tuple(bytes(bytearray(CALL)) for _ in numbers),
                dependencies=(),
                blobs=(),
                tokens=(),
                extra={},
            )


def run_all(under_test: CoreUnderTest, client: int, submits: Iterable[Any]) -> int:
    """Let the zero workers work until nothing is left to send; how many results the client was told of."""
    run, finished = under_test.messages.Run, under_test.messages.RunFinished
    ready_type = under_test.messages.KeyReady
    ready = 0
    outgoing: deque[tuple[int, list[Any]]] = deque()
    for submit in submits:
        outgoing.extend(under_test.batch(client, (submit,)))
    while outgoing:
        peer, messages = outgoing.popleft()
        if peer == client:
            ready += sum(type(message) is ready_type for message in messages)
            continue
        answers = [finished(m.run, len(RESULT), "int", 1e-6, RESULT) for m in messages if type(m) is run]
        if answers:
            outgoing.extend(under_test.batch(peer, answers))
    return ready


def seconds_per_task(workers: int, tasks: int) -> tuple[float, float]:
    """To finish the tasks; and to release them all afterwards."""
    under_test = CoreUnderTest()
    for _ in range(workers):
        under_test.join_worker()
    client = under_test.join_client()
    deque(under_test.batch(client, ()), maxlen=0)
    submits = list(under_test.submits(tasks))
    gc.collect()
    started = time.perf_counter()
    ready = run_all(under_test, client, submits)
    finished = time.perf_counter()
    if ready != tasks:
        raise RuntimeError(f"{ready} of {tasks} tasks finished")
    release = under_test.messages.Release
    releases = [release(message.keys) for message in submits[1:]]
    releasing = time.perf_counter()
    for message in releases:
        deque(under_test.batch(client, (message,)), maxlen=0)
    released = time.perf_counter()
    return (finished - started) / tasks, (released - releasing) / tasks


def bytes_per_pending_task(tasks: int) -> float:
    """Growth of this process while tasks wait for one worker that never answers."""
    under_test = CoreUnderTest()
    under_test.join_worker()
    client = under_test.join_client()
    gc.collect()
    before = resident_bytes()
    for submit in under_test.submits(tasks):
        deque(under_test.batch(client, (submit,)), maxlen=0)
    gc.collect()
    return (resident_bytes() - before) / tasks


def refuse_rivals(context: Context) -> None:
    if context.rival.name != OURS:
        raise Unsupported("measures the scheduler core of trio_dask")


def speed(context: Context) -> dict[str, float]:
    refuse_rivals(context)
    sizes = context.sizes
    seconds_per_task(1, min(sizes.core_tasks, 5_000))
    figures: dict[str, float] = {}
    costs = []
    for workers in sizes.core_workers:
        cost, release = seconds_per_task(workers, sizes.core_tasks)
        costs.append(cost)
        figures[f"workers_{workers}"] = cost
        figures["release"] = release
    figures["spread"] = max(costs) / min(costs)
    return figures


def memory(context: Context) -> dict[str, float]:
    refuse_rivals(context)
    return {"per_task": bytes_per_pending_task(context.sizes.core_memory_tasks)}


CASES = (
    Case(
        "core",
        "scheduler core alone, with workers that answer at once",
        speed,
        (
            *(
                Metric(
                    f"workers_{workers}",
                    f"scheduler core, {workers:,} worker{'s' if workers > 1 else ''}, per task",
                    Kind.TIME,
                    (absolute(20e-6, "at most 20 µs"),),
                )
                for workers in (1, 10, 100, 1000)
            ),
            Metric(
                "spread",
                "scheduler core, dearest to cheapest of these",
                Kind.NUMBER,
                (absolute(1.3, "within 1.3 times"),),
            ),
            Metric("release", "scheduler core, release, 1,000 workers, per task", Kind.TIME),
        ),
        cluster=False,
        only_ours=True,
    ),
    Case(
        "core-memory",
        "scheduler core, memory",
        memory,
        (Metric("per_task", "scheduler memory per pending task", Kind.SIZE, (absolute(1024, "at most 1 KiB"),)),),
        cluster=False,
        only_ours=True,
    ),
)
